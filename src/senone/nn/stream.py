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
FEW = 16  # frames up to which a layer spends its time on reading the weights


def conv(
    x: Float[Tensor, "batch in time"],
    weight: Float[Tensor, "out part kernel"],
    bias: Float[Tensor, "out"] | None = None,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> Float[Tensor, "batch out frame"]:
    """`nn.functional.conv1d`, by the way that is fastest here: one result, three layouts of the work.

    On a CPU, large inputs go to oneDNN with the channels last in memory, which doubles its speed and more than that
    backwards; small ones and doubles, which oneDNN does not do well or at all, are matrix products or sums.
    """
    if _channels_last(x):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)  # copies nothing if it is laid out so
        if weight.shape[2] == 1:
            dilation = 2  # nothing to a single tap, but without, torch leaves oneDNN for a loop of its own
        # two-dimensional, because conv1d would undo the layout
        return F.conv2d(x[:, :, None], weight[:, :, None], bias, (1, stride), 0, (1, dilation), groups).squeeze(2)
    size, span = weight.shape[2], (weight.shape[2] - 1) * dilation + 1
    batch, width, count = len(x), x.shape[1], (x.shape[2] - span) // stride + 1
    few, depthwise = count <= FEW, groups == width == len(weight)
    if x.device.type != "cpu" or (groups > 1 and not depthwise) or (groups == dilation == 1 and not few):
        return F.conv1d(x, weight, bias, stride, 0, dilation, groups)
    row, channel, time = x.stride()
    if depthwise:  # torch goes through the channels one by one
        y = x.new_zeros(()) if bias is None else bias[:, None]
        for i in range(size):
            y = torch.addcmul(y, x[:, :, i * dilation :: stride][:, :, :count], weight[:, :, i])
        return y
    if few:  # mostly weights are read: by rows
        taps = x.as_strided((batch, count, width, size), (row, stride * time, channel, dilation * time))
        return F.linear(taps.flatten(2), weight.flatten(1), bias).transpose(1, 2)
    taps = x.as_strided((batch, width, size, count), (row, channel, dilation * time, stride * time)).flatten(1, 2)
    rows = weight.flatten(1).expand(batch, -1, -1)
    return rows @ taps if bias is None else torch.baddbmm(bias[:, None], rows, taps)


def _channels_last(x: Tensor) -> bool:
    """Whether features should lie next to each other."""
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


def elu_(x: Tensor) -> Tensor:
    """`nn.functional.elu`, in the memory of x unless a gradient is wanted."""
    return _Elu.apply(x) if x.requires_grad else F.elu_(x)  # type: ignore[return-value]


class ELU(nn.Module):
    """`elu_`, for what nobody else looks at."""

    def forward(self, x: Tensor) -> Tensor:
        return elu_(x)


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
        self, x: Float[Tensor, "batch in time"], state: Tensor | None = None, elu: bool = False
    ) -> tuple[Float[Tensor, "batch out frame"], Tensor]:
        """`elu`: the convolution of elu(x); the state holds x."""
        if state is None:
            state = x.new_zeros(len(x), self.in_channels, self.past)
        x, state = _join(state, x)
        if elu:
            x = elu_(x)
        return conv(x, self.weight, self.bias, self.stride[0], self.dilation[0], self.groups), state


class CausalConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution that emits `stride` outputs a frame; state: the last kernel / stride - 1 frames.

    Nothing is emitted early: an output waits for the last frame that reaches it, the state is what it has seen of
    the frames before. The kernel must be a multiple of the stride (ValueError).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        if kernel_size % stride:
            raise ValueError(f"the kernel must be a multiple of the stride {stride}, got {kernel_size}")
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.frames = kernel_size // stride

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch in frame"], state: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch out time"], Tensor]:
        stride, frames, count = self.stride[0], self.frames, x.shape[2]
        if state is None:
            state = x.new_zeros(len(x), self.in_channels, frames - 1)
        x, state = _join(state, x)
        # (in, out, frame, stride): what a frame gives to its own outputs, to those of the next one, and so on
        weight, bias = self.weight.view(self.in_channels, self.out_channels, frames, stride), self.bias
        if _channels_last(x):
            # a convolution over frames, with `stride` outputs at once: (stride, out, frame, in) in memory, as it wants
            turned = torch.stack([weight[:, :, i].permute(2, 1, 0) for i in reversed(range(frames))], 2)
            y = conv(x, turned.flatten(0, 1).transpose(1, 2), None if bias is None else bias.repeat(stride))
            return y.transpose(1, 2).unflatten(2, (stride, -1)).flatten(1, 2).transpose(1, 2), state
        if x.device.type != "cpu" or count > FEW:
            y = F.conv_transpose1d(x, self.weight, bias, stride)
            return y[:, :, (frames - 1) * stride :][:, :, : count * stride], state
        parts = (x.transpose(1, 2) @ weight.flatten(1)).view(len(x), -1, *weight.shape[1:])
        y = parts[:, frames - 1 :, :, 0]
        for i in range(1, frames):
            y = y + parts[:, frames - 1 - i : -i, :, i]
        y = y.transpose(1, 2).flatten(2)
        return y if bias is None else y + bias[:, None], state


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
