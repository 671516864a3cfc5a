"""Causal SEANet encoder and decoder (SoundStream §III-A and Figure 3): ELU, no normalisation."""

from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from senone.nn.stream import ELU, CausalConv1d, CausalConvTranspose1d, Chain, State, Streaming, conv, elu


class ResidualUnit(Streaming):
    """Conv k7 (dilated) -> ELU -> Conv k1, plus the input."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = CausalConv1d(width, width, 7, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(
        self, x: Float[Tensor, "batch width time"], state: State = None
    ) -> tuple[Float[Tensor, "batch width time"], State]:
        y, state = self.conv(elu(x), state)
        return x + conv(elu(y), self.mix.weight, self.mix.bias), state


def residual_units(width: int) -> list[nn.Module]:
    """The three units of a block, dilations 1, 3, 9."""
    return [ResidualUnit(width, dilation) for dilation in (1, 3, 9)]


def reach(strides: tuple[int, ...]) -> int:
    """Samples that the decoder looks back, plus one frame; the encoder (embedding conv included) looks back less."""
    step, total = prod(strides), 0
    total += 7 * step
    for stride in reversed(strides):
        total += step  # the tail of a transposed convolution
        step //= stride
        total += 6 * (1 + 3 + 9) * step
    return total + 6


def encoder(filters: int, strides: tuple[int, ...]) -> Chain:
    """(batch 1 samples) -> (batch filters * 2^strides frame), frame = samples / product(strides)."""
    parts: list[nn.Module] = [CausalConv1d(1, filters, 7)]
    for stride in strides:
        parts += residual_units(filters)
        parts += [ELU(), CausalConv1d(filters, 2 * filters, 2 * stride, stride)]
        filters *= 2
    return Chain(*parts, ELU())


def decoder(filters: int, strides: tuple[int, ...], dim: int) -> Chain:
    """(batch dim frame) -> (batch 1 samples): the encoder mirrored; `strides` in the encoder's order."""
    width = filters * 2 ** len(strides)
    parts: list[nn.Module] = [CausalConv1d(dim, width, 7)]
    for stride in reversed(strides):
        parts += [ELU(), CausalConvTranspose1d(width, width // 2, 2 * stride, stride)]
        width //= 2
        parts += residual_units(width)
    return Chain(*parts, ELU(), CausalConv1d(filters, 1, 7))
