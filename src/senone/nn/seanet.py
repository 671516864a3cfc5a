"""Causal SEANet encoder and decoder (SoundStream §III-A and Figure 3): ELU, no normalisation."""

from collections.abc import Iterator
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from senone.nn.stream import ELU, CausalConv1d, CausalConvTranspose1d, Chain, State, Streaming, conv, elu_

SMALL, LARGE, NOISE, CORRELATION = 0.25, 16.0, 0.1, 0.95  # see `start_linear`


class ResidualUnit(Streaming):
    """ELU -> Conv (dilated) -> ELU -> Conv k1, plus the input."""

    def __init__(self, width: int, dilation: int, kernel: int = 7, bias: bool = True) -> None:
        super().__init__()
        self.conv = CausalConv1d(width, width, kernel, dilation=dilation, bias=bias)
        self.mix = nn.Conv1d(width, width, 1, bias=bias)

    def forward(
        self, x: Float[Tensor, "batch width time"], state: State = None
    ) -> tuple[Float[Tensor, "batch width time"], State]:
        y, state = self.conv(x, state, elu=True)
        y = conv(elu_(y), self.mix.weight, self.mix.bias)
        return x + y if y.requires_grad else y.add_(x), state


def residual_units(width: int) -> list[nn.Module]:
    """The three units of a block, dilations 1, 3, 9."""
    return [ResidualUnit(width, dilation) for dilation in (1, 3, 9)]


@torch.no_grad()
def start_linear(encoder: Chain, embed: nn.Conv1d, decoder: Chain, strides: tuple[int, ...], ahead: int = 0) -> None:
    """Weights to start training with: a linear transform codec, and a little noise on top.

    From torch's own start, a net this deep without normalisation needs thousands of steps before any waveform comes
    through, and its codebooks collapse on the constant that does (docs/log.md). Here residual units begin as nothing,
    ELU is nearly linear at the small scale chosen (the embedding is large again, for the commitment loss), and the
    strided convolutions begin as the Karhunen-Loeve transform of a first-order process with the correlation of speech:
    of each hop the strongest coefficients reach the bottleneck, and the decoder begins as the transpose, `ahead` frames
    late.
    """
    nets = [module for net in (encoder, embed, decoder) for module in net.modules()]
    for conv_ in (module for module in nets if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)):
        conv_.weight.normal_(std=NOISE * conv_.weight[0].numel() ** -0.5)
        if conv_.bias is not None:
            conv_.bias.zero_()
    for unit in (module for module in nets if isinstance(module, ResidualUnit)):
        unit.conv.weight.div_(NOISE)
    down = [part for part in encoder if isinstance(part, CausalConv1d)]
    up = [part for part in decoder if isinstance(part, CausalConvTranspose1d)]
    first, last = down[0], [part for part in decoder if isinstance(part, CausalConv1d)][-1]
    first.weight[0, 0, -1] += SMALL
    last.weight[0, 0, -1] += 1 / SMALL
    most = [min(a.out_channels, b.in_channels) for a, b in zip(down[1:], reversed(up), strict=True)]
    for enter, leave, weights in zip(down[1:], reversed(up), karhunen_loeve(strides, most), strict=True):
        new, old, stride = weights.shape
        enter.weight[:new, :old, stride:] += weights.to(enter.weight)
        leave.weight[:new, :old, :stride] += weights.to(enter.weight)
    for conv_, late, scale in ((embed, 0, LARGE), (decoder[0], ahead, 1 / LARGE)):
        assert isinstance(conv_, nn.Conv1d)
        conv_.weight[:, :, -1 - late] += scale * torch.eye(*conv_.weight.shape[:2])


def karhunen_loeve(strides: tuple[int, ...], most: list[int]) -> Iterator[Float[Tensor, "new old step"]]:
    """For each stride, the weights that turn `step` vectors of the coefficients so far into the strongest new ones,
    at most so many: the transform of a first-order process with the correlation of speech, in stages."""
    basis = torch.ones(1, 1, dtype=torch.float64)  # (coefficient, sample) of the signal so far
    for stride, channels in zip(strides, most, strict=True):
        blocks = torch.kron(torch.eye(stride, dtype=basis.dtype), basis)  # rows: step major, coefficient minor
        n = torch.arange(blocks.shape[1])
        covariance = blocks @ CORRELATION ** (n[:, None] - n).abs().double() @ blocks.T
        keep = min(len(blocks), channels)
        strongest = torch.linalg.eigh(covariance)[1].flip(1)[:, :keep].T
        yield strongest.view(keep, stride, len(basis)).transpose(1, 2)
        basis = strongest @ blocks


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
