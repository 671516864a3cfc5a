"""HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units (2106.07447).

The encoder of wav2vec 2.0 (`nn/encoder.py`, §II-A), and for pre-training (§II-B) one projection and one table of unit
embeddings for each set of labels: the probability of a unit is a softmax over cosines, divided by 0.1 (eq. 3).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from senone.hub import Pretrained
from senone.nn.encoder import EncoderConfig, SpeechEncoder

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Config(EncoderConfig):
    """classes: units of each set of labels; empty for an encoder without its pre-training head. dim: of a unit."""

    classes: tuple[int, ...] = ()
    dim: int = 256


class Predicted(NamedTuple):
    """Sums over some frames, by set of labels: cross-entropy in nats, correct predictions; the number of those frames;
    how often each unit of the first set was predicted."""

    loss: Float[Tensor, "set"]
    correct: Float[Tensor, "set"]
    count: Int[Tensor, ""]
    said: Float[Tensor, "class"]


class Hubert(SpeechEncoder, Pretrained):
    """The encoder, with `features(wave, lengths, layer)`, and what its pre-training needs."""

    Config = Config
    model_type = "senone_hubert"
    config: Config

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        if config.classes:
            self.final_proj = nn.Linear(config.width, config.dim * len(config.classes))
            # fairseq draws from [0, 1): vectors that all point one way, which cosines cannot tell apart for long
            self.label_embs_concat = nn.Parameter(torch.randn(sum(config.classes), config.dim))

    def logits(self, x: Float[Tensor, "frame width"]) -> list[Float[Tensor, "frame class"]]:
        """Of each set of labels (eq. 3): cosines over 0.1, in single precision."""
        parts = self.final_proj(x).float().chunk(len(self.config.classes), -1)
        tables = self.label_embs_concat.float().split(list(self.config.classes))
        pairs = zip(parts, tables, strict=True)
        return [F.normalize(a, dim=-1) @ F.normalize(e, dim=-1).T / TEMPERATURE for a, e in pairs]

    def predict(
        self,
        x: Float[Tensor, "batch frame width"],
        labels: Int[Tensor, "batch set frame"],
        where: Bool[Tensor, "batch frame"],
    ) -> Predicted:
        """How well the units of the frames `where` follow from the encoder's output (eq. 2)."""
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x[where].float())
            targets = labels.transpose(0, 1)[:, where]
            loss = [F.cross_entropy(a, b, reduction="sum") for a, b in zip(logits, targets, strict=True)]
            best = [a.argmax(1) for a in logits]
            correct = [(a == b).float().sum() for a, b in zip(best, targets, strict=True)]
        said = torch.bincount(best[0], minlength=self.config.classes[0]).float()
        return Predicted(torch.stack(loss), torch.stack(correct), where.sum(), said)


def base() -> Hubert:
    """BASE: 12 blocks, 95 M parameters."""
    return Hubert()


def large() -> Hubert:
    """LARGE: 24 blocks, 317 M parameters."""
    return Hubert(_large())


def xlarge() -> Hubert:
    """X-LARGE: 48 blocks, 964 M parameters."""
    return Hubert(_large(width=1280, layers=48, hidden=5120, dim=1024))


def _large(**changes: int) -> Config:
    sizes = {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096, "dim": 768} | changes
    switches = {"feat_norm": "layer", "ln_position": "pre", "wav_norm": "fairseq"}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, "layer_drop": 0.0, "feature_grad": 1.0}
    return Config(**sizes, **switches, **still)  # type: ignore[arg-type]
