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
            x = F.pad(x, (self.past, 0))
        else:
            x = torch.cat([state, x], 2)
        keep = x[:, :, x.shape[2] - self.past :]
        # cloned, so that the state does not hold the whole input alive
        return self._conv_forward(x, self.weight, self.bias), keep if self.training else keep.clone()


class CausalConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution that emits `stride` outputs a frame; state: the tail that the next frame completes."""

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch in frame"], state: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch out time"], Tensor]:
        tail = self.kernel_size[0] - self.stride[0]
        y = F.conv_transpose1d(x, self.weight, None, self.stride)
        if state is not None and tail:
            y = torch.cat([y[:, :, :tail] + state, y[:, :, tail:]], 2)
        y, keep = y[:, :, : y.shape[2] - tail], y[:, :, y.shape[2] - tail :]
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y, keep if self.training else keep.clone()


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
