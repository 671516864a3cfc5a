"""Quantizers: vectors to codes and back.

Every quantizer has `sizes` (entries per level) and three methods: `forward(z, levels) -> Quantized` for training,
`encode(z, levels) -> codes`, `decode(codes) -> z`.
"""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

# On the edge between two cells the rounding error decides, and that differs with the shape of a batch. In double
# precision (an error near 1e-15) only exact edges are hit: silence at 0, a codebook with one vector twice. So every
# edge is moved by this much, relative to the scale: exact ties then fall on one side for good.
TIE = 1e-11


class Quantized(NamedTuple):
    """What training needs: z with straight-through gradients, the codes, and losses by name."""

    z: Float[Tensor, "batch dim frame"]
    codes: Int[Tensor, "batch level frame"]
    losses: dict[str, Tensor]


class Quantizer(Protocol):
    """z: (batch, dim, frame); codes: (batch, level, frame), int64."""

    sizes: tuple[int, ...]

    def __call__(self, z: Tensor, levels: Tensor | int | None = None) -> Quantized: ...
    def encode(self, z: Tensor, levels: int | None = None) -> Tensor: ...
    def decode(self, codes: Tensor) -> Tensor: ...


def squares(codes: Float[Tensor, "code dim"]) -> Float[Tensor, "code"]:
    """Squared lengths, to find the nearest code by; in double precision each a TIE above the one before, so that of
    equal codes the first is nearest. Single precision does not resolve that."""
    square = codes.square().sum(1)
    if square.dtype == torch.float64:
        square = square + TIE * square.max() * torch.arange(len(square), device=square.device)
    return square


def full(z: Tensor) -> Tensor:
    """`z` in single precision at least."""
    return z if z.dtype == torch.float64 else z.float()
