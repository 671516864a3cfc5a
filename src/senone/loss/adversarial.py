"""Hinge adversarial and feature-matching losses (SoundStream §III-E, eq. 1 to 3), averaged over discriminators."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Judgement(Protocol):
    """What a sub-discriminator says: logits, and the outputs of its inner layers."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def features(self) -> list[Tensor]: ...


def discriminator(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Float[Tensor, ""]:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(x)))."""
    terms = [(1 - r.logits).relu().mean() + (1 + f.logits).relu().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def generator(fake: Sequence[Judgement]) -> Float[Tensor, ""]:
    """max(0, 1 - D(G(x)))."""
    return torch.stack([(1 - f.logits).relu().mean() for f in fake]).mean()


def features(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Float[Tensor, ""]:
    """Mean absolute difference of inner layers, over layers and discriminators."""
    terms = [
        torch.stack([(a.detach() - b).abs().mean() for a, b in zip(r.features, f.features, strict=True)]).mean()
        for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).mean()
