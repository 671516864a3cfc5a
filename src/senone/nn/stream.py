"""Causal convolutions whose state is a value: `forward(x, state) -> (y, state)`.

`state=None` starts a recording. Fed in any pieces, the outputs join up to what one call gives (SoundStream §III-A;
the overlap of a transposed convolution is carried, never emitted early).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

State = Any  # a tree of tensors, lists and dictionaries


def conv(
    x: Float[Tensor, "batch in time"],
    weight: Float[Tensor, "out in kernel"],
    bias: Float[Tensor, "out"] | None = None,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> Float[Tensor, "batch out frame"]:
    """`nn.functional.conv1d`; where that pays off with memory laid out (batch, time, channel), see `_channels_last`."""
    if not _channels_last(x):
        return F.conv1d(x, weight, bias, stride, 0, dilation, groups)
    x = x.transpose(1, 2).contiguous()  # copies nothing if it is laid out so
    if weight.shape[2] == stride == groups == 1:
        return F.linear(x, weight[:, :, 0], bias).transpose(1, 2)
    # two-dimensional, because conv1d would undo the layout
    x = x.transpose(1, 2)[:, :, None]
    return F.conv2d(x, weight[:, :, None], bias, (1, stride), 0, (1, dilation), groups).squeeze(2)


def _channels_last(x: Tensor) -> bool:
    """Whether features should lie next to each other: oneDNN then runs at twice the speed and more, also backwards.

    It has no double precision, and below this size it is slower than the plain loop.
    """
    return x.device.type == "cpu" and x.dtype != torch.float64 and x.numel() > 20480


class _Elu(torch.autograd.Function):
    """ELU whose gradient comes from its result: no second exponential, nothing else kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.elu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return torch.ops.aten.elu_backward(grad, 1, 1, 1, True, y)


def elu(x: Tensor) -> Tensor:
    """`nn.functional.elu`."""
    return _Elu.apply(x)  # type: ignore[return-value]


class ELU(nn.Module):
    """`nn.ELU`."""

    def forward(self, x: Tensor) -> Tensor:
        return elu(x)


def _join(past: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both in a row, in the layout that `conv` wants; and the past of what comes next."""
    if _channels_last(x):
        joined = torch.cat([past.transpose(1, 2), x.transpose(1, 2)], 1).transpose(1, 2)
    else:
        joined = torch.cat([past, x], 2)
    return joined, joined[:, :, x.shape[2] :].clone()  # a view would hold the whole input alive


class CausalConv1d(nn.Conv1d):
    """A convolution that sees the past only; state: the last (kernel - 1) * dilation + 1 - stride inputs.

    Input lengths must be multiples of the stride; the output has length / stride frames.
    """

    @property
    def past(self) -> int:
        """Inputs that must be kept from before: zeros at the start of a recording."""
        return (self.kernel_size[0] - 1) * self.dilation[0] + 1 - self.stride[0]

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch in time"], state: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch out frame"], Tensor]:
        if state is None:
            state = x.new_zeros(len(x), self.in_channels, self.past)
        x, state = _join(state, x)
        return conv(x, self.weight, self.bias, self.stride[0], self.dilation[0], self.groups), state


class CausalConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution that emits `stride` outputs a frame; state: the frames that later outputs still need.

    Computed as a plain convolution over frames with `stride` outputs at once, so nothing is emitted early.
    """

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch in frame"], state: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch out time"], Tensor]:
        size, stride = self.kernel_size[0], self.stride[0]
        frames = -(-size // stride)
        if state is None:
            state = x.new_zeros(len(x), self.in_channels, frames - 1)
        x, state = _join(state, x)
        weight = F.pad(self.weight, (0, frames * stride - size)).unflatten(2, (frames, stride)).flip(2)
        weight = weight.permute(3, 1, 0, 2).flatten(0, 1)  # (stride * out, in, frames)
        y = conv(x, weight, None if self.bias is None else self.bias.repeat(stride))
        y = y.transpose(1, 2).unflatten(2, (stride, self.out_channels)).flatten(1, 2).transpose(1, 2)
        return y, state


class Chain(nn.Sequential):
    """Modules in a row; those with state hand theirs on as a list, in order."""

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:  # type: ignore[override]
        kept = []
        for module in self:
            if is_stateful(module):
                x, new = module(x, None if state is None else state[len(kept)])
                kept.append(new)
            else:
                x = module(x)
        return x, kept


def is_stateful(module: nn.Module) -> bool:
    """Whether `module` takes and returns a state."""
    return isinstance(module, Streaming | CausalConv1d | CausalConvTranspose1d | Chain)


class Streaming(nn.Module):
    """Base of a module of one's own that takes and returns a state."""
