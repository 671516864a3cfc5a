"""Periodic activations: Snake (Ziyin, Hartwig and Ueda 2020, 2006.08195), and SnakeBeta between an up- and a
down-sampling, which takes away the overtones that cannot be heard at the rate at hand (BigVGAN: Lee et al. 2022,
2206.04658, §3.2; after Karras et al. 2021, 2106.12423)."""

from functools import lru_cache
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-9
TAPS = 12
BLOCK = 2**17  # numbers at the doubled rate that are in work at once: they stay in the cache


class Snake(nn.Module):
    """x + sin(alpha x)^2 / (alpha + 1e-9), alpha per channel: (batch channel time)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "batch channel time"]) -> Float[Tensor, "batch channel time"]:
        alpha = self.alpha[:, None]
        return torch.addcmul(x, (x * alpha).sin().square(), 1 / (alpha + EPS))


class SnakeBeta(nn.Module):
    """x + sin(e^alpha x)^2 / (e^beta + 1e-9), alpha and beta per channel: (batch time channel).

    anti_alias: computed at twice the rate, between two low-pass filters of 12 taps; both ends are repeated. With the
    channels last in memory, the two samples of a frame are 2 * channels next to each other: so up-sampling is one
    depthwise convolution of 7 taps over every channel twice, each time with one phase of the filter, and what it gives
    is, as it lies there, the sound at twice the rate.
    """

    def __init__(self, channels: int, anti_alias: bool = True) -> None:
        super().__init__()
        self.anti_alias = anti_alias
        self.alpha, self.beta = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "batch time channel"]) -> Float[Tensor, "batch time channel"]:
        alpha, scale = self.alpha.exp(), 1 / (self.beta.exp() + EPS)
        if not self.anti_alias:
            return _bend(x * alpha, alpha * scale) / alpha
        # the filters take alpha in, and out again: one pass less over the doubled sound
        up, down = (filter_.to(x)[:, None] for filter_ in _filters())
        up = (up * alpha[:, None]).view(-1, 1, 1, up.shape[2])
        down = (down / alpha[:, None]).view(-1, 1, 1, down.shape[2])
        batch, time, channels = x.shape
        size = time if up.requires_grad or x.requires_grad else max(64, BLOCK // (2 * channels * batch))
        pieces = [self._piece(x, i, min(i + size, time), up, down, alpha * scale) for i in range(0, time, size)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)

    def _piece(
        self, x: Tensor, first: int, end: int, up: Tensor, down: Tensor, scale: Tensor
    ) -> Float[Tensor, "batch time channel"]:
        """Frames `first` to `end` of the result. They see 6 more of x on both sides."""
        batch, time, channels = x.shape
        before, after = max(0, 6 - first), max(0, end + 6 - time)
        piece = _hold(x[:, max(0, first - 6) : end + 6], 0, 0, before, after)
        y = _depthwise(torch.cat([piece, piece], 2), up)  # 3 frames more than the result on both sides
        y = _bend(y.reshape(batch, -1, channels), scale)
        before, after = 2 * max(0, before - 3), 2 * max(0, after - 3)
        return _depthwise(_hold(y, before, after, before, after), down, 2)


def _hold(x: Tensor, cut: int, cut_end: int, before: int, after: int) -> Tensor:
    """x short of some frames at both ends, with so many copies of its first and its last instead."""
    if not before and not after:
        return x
    x = x[:, cut : x.shape[1] - cut_end]
    return torch.cat([x[:, :1].expand(-1, before, -1), x, x[:, -1:].expand(-1, after, -1)], 1)


def _bend(x: Tensor, scale: Tensor) -> Tensor:
    """x + scale sin(x)^2, in the memory of x unless a gradient is wanted."""
    if x.requires_grad or scale.requires_grad:
        return torch.addcmul(x, x.sin().square(), scale)
    return x.addcmul_(x.sin().square_(), scale)


def _depthwise(x: Float[Tensor, "batch time channel"], weight: Tensor, stride: int = 1) -> Tensor:
    """No padding. Two-dimensional, because conv1d would undo the layout."""
    y = F.conv2d(x.transpose(1, 2)[:, :, None], weight, None, (1, stride), groups=x.shape[2])
    return y.squeeze(2).transpose(1, 2)


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # whoever asks first, this serves all
def _filters() -> tuple[Float[Tensor, "2 7"], Float[Tensor, "1 13"]]:
    """Both phases of the up-sampling, and the down-sampling: a sinc under a Kaiser window, cut off at half of the
    lower band; as in BigVGAN's code, where the transition is 0.3 wide and the sum 1."""
    attenuation = 2.285 * (TAPS // 2 - 1) * pi * 1.2 + 7.95
    window = torch.kaiser_window(TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
    taps = torch.sinc((torch.arange(TAPS) - TAPS / 2 + 0.5) / 2) * window
    taps = taps / taps.sum()
    up = torch.zeros(2, 7)
    up[0, :6], up[1, 1:] = 2 * taps[1::2].flip(0), 2 * taps[::2].flip(0)
    return up, F.pad(taps, (1, 0))[None]
