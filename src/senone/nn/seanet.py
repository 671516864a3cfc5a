"""Causal SEANet encoder and decoder (SoundStream §III-A and Figure 3): ELU, no normalisation."""

from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from senone.nn.stream import ELU, CausalConv1d, CausalConvTranspose1d, Chain, State, Streaming, conv, elu_


class ResidualUnit(Streaming):
    """Conv k7 (dilated) -> ELU -> Conv k1, plus the input."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = CausalConv1d(width, width, 7, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(
        self, x: Float[Tensor, "batch width time"], state: State = None
    ) -> tuple[Float[Tensor, "batch width time"], State]:
        y, state = self.conv(x, state, elu=True)
        y = conv(elu_(y), self.mix.weight, self.mix.bias)
        return x + y if y.requires_grad else y.add_(x), state


def residual_units(width: int) -> list[nn.Module]:
    """The three units of a block, dilations 1, 3, 9."""
    return [ResidualUnit(width, dilation) for dilation in (1, 3, 9)]


def even(net: nn.Module, scale: float = 1.0) -> None:
    """Start with weights that keep the scale of a signal through every layer, the last one times `scale`; no biases.

    torch's own start shrinks it threefold a layer; with no normalisation anywhere, what is left of speech at the
    bottleneck is a constant with a whisper on it, and a codebook collapses on that (docs/log.md).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            inputs = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose1d):  # (in, out, kernel); kernel / stride inputs meet in an output
                inputs = module.in_channels * module.kernel_size[0] / module.stride[0]
            nn.init.normal_(module.weight, std=inputs**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, ResidualUnit):
            module.mix.weight.data.mul_(0.5)  # else each unit would double the energy
    last = [module for module in net.modules() if isinstance(module, nn.Conv1d)][-1]
    last.weight.data.mul_(scale)


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
