"""Discriminators. SoundStream's (§III-D): waves at three scales (after MelGAN), and one complex STFT. HiFi-GAN's
(2010.05646 §2.3): periods and scales. EnCodec's (2210.13438 §3.4): complex STFTs. X-codec2's: magnitudes of STFTs.

Each takes (batch samples) and returns, per sub-discriminator, its logits and the outputs of its inner layers. Weights
are plain where the papers' are normalised (weight norm; spectral norm on HiFi-GAN's first scale).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone.features import stft

PERIODS = (2, 3, 5, 7, 11)
WINDOWS = (1024, 2048, 512, 256, 128)
UNEVEN = (78, 126, 206, 334, 542, 876, 1418, 2296)


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


class MultiPeriod(nn.Module):
    """The wave folded into rows of each period, through five convolutions along the columns, 5 taps and stride 3 (the
    last 1), width x 4 up to 32 x width. HiFi-GAN's has width 32 and a last kernel of 3; X-codec2's, 16 and 2."""

    def __init__(self, width: int = 32, last: int = 3, periods: tuple[int, ...] = PERIODS) -> None:
        super().__init__()
        self.periods = periods
        self.nets = nn.ModuleList(self._net(width, last) for _ in periods)

    @staticmethod
    def _net(width: int, last: int) -> nn.ModuleList:
        widths = (1, width, 4 * width, 16 * width, 32 * width, 32 * width)
        layers = [
            nn.Conv2d(a, b, (5, 1), (stride, 1), padding=(2, 0))
            for a, b, stride in zip(widths, widths[1:], (3, 3, 3, 3, 1), strict=False)
        ]
        return nn.ModuleList([*layers, nn.Conv2d(32 * width, 1, (last, 1), padding=(1, 0))])

    def forward(self, wave: Float[Tensor, "batch samples"]) -> list[Judgement]:
        out = []
        for period, net in zip(self.periods, self.nets, strict=True):
            x = F.pad(wave[:, None], (0, -wave.shape[1] % period), "reflect")
            out.append(_judge(net, x.unflatten(2, (-1, period)).contiguous(), 0.1))  # type: ignore[arg-type]
        return out


class MultiScale(nn.Module):
    """HiFi-GAN's nets on the wave, at half and at quarter rate: 41-tap grouped convs, width x 8 at the end."""

    def __init__(self, width: int = 128, scales: int = 3) -> None:
        super().__init__()
        self.nets = nn.ModuleList(self._net(width) for _ in range(scales))

    @staticmethod
    def _net(width: int) -> nn.ModuleList:
        layers = [nn.Conv1d(1, width, 15, padding=7)]
        inside = width
        for grow, stride, groups in ((1, 2, 4), (2, 2, 16), (4, 4, 16), (8, 4, 16), (8, 1, 16)):
            layers.append(nn.Conv1d(inside, grow * width, 41, stride, padding=20, groups=min(groups, width)))
            inside = grow * width
        layers += [nn.Conv1d(inside, inside, 5, padding=2), nn.Conv1d(inside, 1, 3, padding=1)]
        return nn.ModuleList(layers)

    def forward(self, wave: Float[Tensor, "batch samples"]) -> list[Judgement]:
        x, out = wave[:, None].contiguous(), []
        for i, net in enumerate(self.nets):
            x = F.avg_pool1d(x, 4, 2, padding=2) if i else x
            out.append(_judge(net, x, 0.1))  # type: ignore[arg-type]
        return out


class MultiSTFT(nn.Module):
    """EnCodec's nets, one for each window: real and imaginary part through convolutions of 3 frames and 9 bins, that
    halve the bins three times and see 1, 2, 4 frames apart; two of 3 x 3 at the end. SpeechTokenizer's is the same."""

    def __init__(self, width: int = 32, windows: tuple[int, ...] = WINDOWS) -> None:
        super().__init__()
        self.windows = windows
        self.nets = nn.ModuleList(self._net(width) for _ in windows)

    @staticmethod
    def _net(width: int) -> nn.ModuleList:
        layers = [nn.Conv2d(2, width, (3, 9), padding=(1, 4))]
        layers += [nn.Conv2d(width, width, (3, 9), (1, 2), (d, 4), dilation=(d, 1)) for d in (1, 2, 4)]
        return nn.ModuleList([*layers, nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)])

    def forward(self, wave: Float[Tensor, "batch samples"]) -> list[Judgement]:
        out = []
        for size, net in zip(self.windows, self.nets, strict=True):
            window = torch.hann_window(size, dtype=wave.dtype, device=wave.device)
            padded = F.pad(wave, (0, max(0, size - wave.shape[1])))
            spectrum = torch.stft(padded, size, size // 4, window=window, center=False, return_complex=True)
            spectrum = spectrum / window.square().sum().sqrt()
            x = torch.view_as_real(spectrum).permute(0, 3, 2, 1).contiguous()  # see STFTDiscriminator
            out.append(_judge(net, x))  # type: ignore[arg-type]
        return out


class MultiSpectrogram(nn.Module):
    """X-codec2's nets, one for each window: magnitudes through four convolutions 5 x 5 with stride 2, width x 8, and
    two of 3 x 3. Needs more samples than half of its longest window."""

    def __init__(self, width: int = 32, windows: tuple[int, ...] = UNEVEN) -> None:
        super().__init__()
        self.windows = windows
        self.nets = nn.ModuleList(self._net(width) for _ in windows)

    @staticmethod
    def _net(width: int) -> nn.ModuleList:
        widths = (1, width, 2 * width, 4 * width, 8 * width)
        layers = [nn.Conv2d(a, b, 5, 2, padding=2) for a, b in zip(widths, widths[1:], strict=False)]
        ends = (nn.Conv2d(8 * width, 16 * width, 3, padding=1), nn.Conv2d(16 * width, 1, 3, padding=1))
        return nn.ModuleList([*layers, *ends])

    def forward(self, wave: Float[Tensor, "batch samples"]) -> list[Judgement]:
        out = []
        for size, net in zip(self.windows, self.nets, strict=True):
            square = torch.view_as_real(stft(wave, size, size // 2)).square().sum(-1)
            x = square.clamp(1e-7, 1e3).sqrt().transpose(1, 2)[:, None].contiguous()
            out.append(_judge(net, x))  # type: ignore[arg-type]
        return out


def _judge(layers: nn.ModuleList, x: Tensor, slope: float = 0.2) -> Judgement:
    features = []
    *inner, last = layers
    for layer in inner:
        x = F.leaky_relu(layer(x), slope)
        features.append(x)
    return Judgement(last(x).flatten(1), features)
