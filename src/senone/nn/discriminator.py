"""SoundStream's discriminators (§III-D): waves at three scales (after MelGAN), and one complex STFT.

Each takes (batch samples) and returns, per sub-discriminator, its logits and the outputs of its inner layers.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone.features import stft


class Judgement(NamedTuple):
    """Logits over time, and inner layers for the feature loss."""

    logits: Tensor
    features: list[Tensor]


class WaveDiscriminator(nn.Module):
    """Three equal nets on the wave, at half and at quarter rate: 4 grouped convs (down 4, width x 4 up to 1024)."""

    def __init__(self, width: int = 16, scales: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList(self._net(width) for _ in range(scales))

    @staticmethod
    def _net(width: int) -> nn.ModuleList:
        layers: list[nn.Module] = [nn.Conv1d(1, width, 15, padding=7)]
        for _ in range(4):
            wider = min(4 * width, 1024)
            layers.append(nn.Conv1d(width, wider, 41, 4, padding=20, groups=max(1, width // 4)))
            width = wider
        return nn.ModuleList([*layers, nn.Conv1d(width, width, 5, padding=2), nn.Conv1d(width, 1, 3, padding=1)])

    def forward(self, wave: Float[Tensor, "batch samples"]) -> list[Judgement]:
        x, out = wave[:, None], []
        for i, net in enumerate(self.scales):
            x = F.avg_pool1d(x, 4, 2, padding=1) if i else x
            out.append(_judge(net, x))  # type: ignore[arg-type]
        return out


class STFTDiscriminator(nn.Module):
    """Real and imaginary parts of one STFT through 6 residual blocks, strides (time, frequency) (1,2), (2,2), ..."""

    def __init__(self, width: int = 32, n_fft: int = 1024) -> None:
        super().__init__()
        self.n_fft = n_fft
        layers: list[nn.Module] = [nn.Conv2d(2, width, 7, padding=3)]
        inside = width
        for i, (times, grow) in enumerate(((1, 2), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2))):
            layers.append(_Block2d(inside, times * width, grow * times * width, (1 + i % 2, 2)))
            inside = grow * times * width
        # n_fft / 2 bins, halved six times
        self.layers = nn.ModuleList([*layers, nn.Conv2d(inside, 1, (1, n_fft // 128))])

    def forward(self, wave: Float[Tensor, "batch samples"]) -> list[Judgement]:
        spectrum = stft(wave, self.n_fft, self.n_fft // 4)[:, :-1] / self.n_fft**0.5
        # (batch, 2, frame, bin), laid out so: torch 2.13's oneDNN crashes in the backward pass of a strided view
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1).contiguous()
        return [_judge(self.layers, x)]


class _Block2d(nn.Module):
    """Conv 3x3 -> ELU -> strided conv, plus a strided 1x1 of the input."""

    def __init__(self, inside: int, middle: int, outside: int, stride: tuple[int, int]) -> None:
        super().__init__()
        kernel = (stride[0] + 2, stride[1] + 2)
        self.first = nn.Conv2d(inside, middle, 3, padding=1)
        self.second = nn.Conv2d(middle, outside, kernel, stride)
        self.skip = nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.first(F.elu(x)))
        # kernel - stride = 2, and one more where the size is odd: each axis comes out as long as the skip
        height, width = (size % stride for size, stride in zip(x.shape[2:], self.second.stride, strict=True))
        padding = (1, 1 + width, 1, 1 + height)
        return self.second(F.pad(y, padding)) + self.skip(x)


def _judge(layers: nn.ModuleList, x: Tensor) -> Judgement:
    features = []
    *inner, last = layers
    for layer in inner:
        x = F.leaky_relu(layer(x), 0.2)
        features.append(x)
    return Judgement(last(x).flatten(1), features)
