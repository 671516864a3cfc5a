"""wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations (Baevski et al. 2020, 2006.11477).

The encoder (`nn/encoder.py`, §2), and for pre-training a quantizer of what the convolutions say (§2, eq. 1) and two
projections: out of what is left of the masked frames, the transformer finds the quantized vector of each (§3.2, eq. 3).
Names of parameters are those of Hugging Face's Wav2Vec2ForPreTraining, which puts `wav2vec2.` before the encoder's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from senone.hub import Pretrained
from senone.loss.contrastive import distractors, info_nce
from senone.nn.encoder import EncoderConfig, SpeechEncoder
from senone.quantize import full
from senone.quantize.gumbel import GumbelQuantizer


@dataclass(frozen=True)
class Config(EncoderConfig):
    """groups, entries: of the quantizer; entries 0 for an encoder without its pre-training heads. code_dim: of a
    quantized vector; dim: where it meets the transformer's output. feature_dropout: before the quantizer."""

    groups: int = 2
    entries: int = 320
    code_dim: int = 256
    dim: int = 256
    feature_dropout: float = 0.1


class Contrasted(NamedTuple):
    """What the losses are made of. Sums over the masked frames: the contrastive loss in nats, hits, the share of
    distractors left out as equal to the target (see `loss.contrastive.Contrast`); how many frames; how often each entry
    is used by them, as the softmax has it and as it was chosen (see `quantize.gumbel.Chosen`); the feature penalty."""

    loss: Float[Tensor, ""]
    correct: Float[Tensor, ""]
    same: Float[Tensor, ""]
    count: Int[Tensor, ""]
    usage: Float[Tensor, "group entry"]
    counts: Float[Tensor, "group entry"]
    penalty: Float[Tensor, ""]


class Wav2Vec2(SpeechEncoder, Pretrained):
    """The encoder, with `features(wave, lengths, layer)`, and what its pre-training needs."""

    Config = Config
    model_type = "senone_wav2vec2"
    config: Config

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        if config.entries:
            self.quantizer = GumbelQuantizer(config.channels[-1], config.code_dim, config.groups, config.entries)
            self.project_hid = nn.Linear(config.width, config.dim)
            self.project_q = nn.Linear(config.code_dim, config.dim)

    def pretrain(
        self,
        wave: Float[Tensor, "batch samples"],
        mask: Bool[Tensor, "batch frame"],
        temperature: float = 2.0,
        negatives: int | Int[Tensor, "masked count"] = 100,
        noise: Float[Tensor, "masked group entry"] | None = None,
        lengths: Int[Tensor, "batch"] | None = None,
    ) -> Contrasted:
        """Tell the quantized vectors of masked frames from distractors, of which `negatives` are drawn for each frame,
        or are given by their numbers among the masked frames. `temperature`: of the Gumbel-softmax in this update,
        and `noise` its draws, if they are not to come from torch's generator.
        """
        out = self(wave, lengths, mask)
        if out.valid is not None:
            mask = mask & out.valid
        with torch.autocast(wave.device.type, enabled=False):
            features = F.dropout(out.features[mask], self.config.feature_dropout, self.training)
            chosen = self.quantizer(features[None], temperature, noise=None if noise is None else noise[None])
            if isinstance(negatives, int):
                negatives = distractors(mask, negatives)
            context, target = self.project_hid(full(out.x[mask])), self.project_q(chosen.vectors[0])
            found = info_nce(context, target, negatives, chosen.codes[0])
        return Contrasted(*found, mask.sum(), chosen.usage, chosen.counts, out.penalty)


def base() -> Wav2Vec2:
    """BASE: 12 blocks, 95 M parameters."""
    return Wav2Vec2()


def large_ls960() -> Wav2Vec2:
    """LARGE as trained on LibriSpeech: GroupNorm and "post", as BASE; 24 blocks, 317 M parameters."""
    return Wav2Vec2(Config(**LARGE, layer_drop=0.2))


def large_lv60() -> Wav2Vec2:
    """LARGE as trained on Libri-Light (and XLSR-53): LayerNorms, biases, "pre", a normalised wave, no dropout."""
    switches: Any = {"feat_norm": "layer", "conv_bias": True, "ln_position": "pre", "wav_norm": "fairseq"}
    still: Any = {f"{name}dropout": 0.0 for name in ("", "attention_", "input_", "feature_")}
    return Wav2Vec2(Config(**LARGE, **switches, **still, layer_drop=0.0, feature_grad=1.0))


LARGE: dict[str, Any] = {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096, "code_dim": 768, "dim": 768}
