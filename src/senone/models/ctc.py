"""A recogniser: an encoder of speech and one linear layer, trained with CTC (wav2vec 2.0 §3.3, HuBERT §II-E).

CTC: Graves et al. 2006. Names of parameters are those of Hugging Face's ForCTC, with `encoder.` for its prefix
(`hubert.` or `wav2vec2.`). What the logits say is read by `senone.ctc`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from senone import config as configs
from senone import hub
from senone.hub import HubError, Pretrained
from senone.nn.encoder import SpeechEncoder

# Blank first, "|" between words, then the letters by frequency: the ids of the released English models.
ENGLISH = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
HEADS = {"classes": [], "entries": 0}  # of pre-training, which a recogniser leaves behind


@dataclass(frozen=True)
class Config:
    """encoder: its config, with its model_type. vocabulary: one string for each output, the blank first.

    beam, lm_weight, word_score: how to search where a language model lies beside the weights (see `senone.ctc.Beam`).
    """

    encoder: dict[str, Any] = field(default_factory=lambda: {"model_type": "senone_hubert"})
    vocabulary: tuple[str, ...] = ENGLISH
    beam: int = 50
    lm_weight: float = 2.0
    word_score: float = -1.0


class Recogniser(nn.Module, Pretrained):
    """Wave at 16 kHz to a score for each letter in each frame. Raises HubError for an encoder of another kind."""

    Config = Config
    model_type = "senone_ctc"

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        settings = dict(config.encoder)
        kind: Any = hub.MODELS.get(str(settings.pop("model_type", None)))
        if not issubclass(kind, SpeechEncoder):
            raise HubError(f"a recogniser needs a wav2vec2 or a hubert, not a {kind.__name__}")
        self.encoder: SpeechEncoder = kind(configs.from_dict(kind.Config, settings, "encoder."))  # type: ignore[attr-defined]
        self.lm_head = nn.Linear(self.encoder.config.width, len(config.vocabulary))
        nn.init.xavier_uniform_(self.lm_head.weight)
        nn.init.zeros_(self.lm_head.bias)

    @classmethod
    def around(
        cls, encoder: Any, vocabulary: tuple[str, ...] = ENGLISH, changes: dict[str, Any] | None = None
    ) -> "Recogniser":
        """A new head on a copy of a pre-trained encoder. `changes`: keys of its config, such as dropout.

        Raises ConfigError for an unknown key, HubError where one changes the shape of a weight.
        """
        model = cls(Config(encoder_config(encoder) | (changes or {}), vocabulary))
        own = model.encoder.state_dict()
        heads = ("final_proj.", "label_embs_concat", "quantizer.", "project_hid.", "project_q.")
        weights = {k: v for k, v in encoder.state_dict().items() if k in own or not k.startswith(heads)}
        hub.load_weights(model.encoder, weights, "the encoder")
        return model

    @property
    def sample_rate(self) -> int:
        """Samples a second, 16000."""
        return self.encoder.sample_rate

    def logits(
        self,
        wave: Float[Tensor, "batch samples"],
        lengths: Int[Tensor, "batch"] | None = None,
        mask: Bool[Tensor, "batch frame"] | None = None,
        channel_mask: Bool[Tensor, "batch width"] | None = None,
        *,
        frozen: bool = False,
    ) -> Float[Tensor, "batch frame vocab"]:
        """Scores before the softmax. A row of a padded batch equals the same row alone in its own frames.

        mask, channel_mask: see `nn.encoder.SpeechEncoder.forward`. frozen: no gradient into the encoder.
        Raises EncoderError for a row that is too short for one frame.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            x = self.encoder(wave, lengths, mask, channel_mask).x
        return self.lm_head(x)

    def forward(
        self, wave: Float[Tensor, "batch samples"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch frame vocab"]:
        """`logits`."""
        return self.logits(wave, lengths)


def ctc_loss(
    logits: Float[Tensor, "batch frame vocab"],
    frames: Int[Tensor, "batch"],
    targets: Int[Tensor, "batch token"],
    sizes: Int[Tensor, "batch"],
) -> Float[Tensor, "batch"]:
    """-log p(targets) of each row in nats, in single precision; 0, without a gradient, where it is infinite: a row of
    fewer frames than its text needs. frames, sizes: how many frames and tokens of a row count; the blank is 0."""
    with torch.autocast(logits.device.type, enabled=False), torch.backends.cudnn.flags(enabled=False):
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_probs, targets, frames, sizes, blank=0, reduction="none", zero_infinity=True)


def encoder_config(encoder: Any) -> dict[str, Any]:
    """The config of a wav2vec2 or hubert, with its model_type and without the heads of pre-training."""
    if not isinstance(encoder, SpeechEncoder) or not isinstance(encoder, Pretrained):
        raise HubError(f"a recogniser needs a wav2vec2 or a hubert, not a {type(encoder).__name__}")
    settings = configs.to_dict(encoder.config)
    return {"model_type": encoder.model_type, **settings, **{k: v for k, v in HEADS.items() if k in settings}}
