"""Adversarial and feature-matching losses (SoundStream §III-E, eq. 1 to 3), averaged over discriminators.

`kind`: the hinge loss of SoundStream and of SpeechTokenizer's paper, or the least squares of SpeechTokenizer's code and
of X-codec2, where logits are drawn to 1 (real) and 0 (fake). Papers that sum over discriminators have larger weights.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["hinge", "least_squares"]


@runtime_checkable
class Judgement(Protocol):
    """What a sub-discriminator says: logits, and the outputs of its inner layers."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def features(self) -> list[Tensor]: ...


def discriminator(real: Sequence[Judgement], fake: Sequence[Judgement], kind: Kind = "hinge") -> Float[Tensor, ""]:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(x))), or (1 - D(x))^2 + D(G(x))^2."""
    if kind == "hinge":
        terms = [(1 - r.logits).relu().mean() + (1 + f.logits).relu().mean() for r, f in zip(real, fake, strict=True)]
    else:
        terms = [(1 - r.logits).square().mean() + f.logits.square().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def generator(fake: Sequence[Judgement], kind: Kind = "hinge") -> Float[Tensor, ""]:
    """max(0, 1 - D(G(x))), or (1 - D(G(x)))^2."""
    away = [1 - f.logits for f in fake]
    return torch.stack([(x.relu() if kind == "hinge" else x.square()).mean() for x in away]).mean()


def features(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Float[Tensor, ""]:
    """Mean absolute difference of inner layers, over layers and discriminators."""
    terms = [
        torch.stack([(a.detach() - b).abs().mean() for a, b in zip(r.features, f.features, strict=True)]).mean()
        for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).mean()
