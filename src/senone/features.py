"""Signal features in plain torch: frames, windows, mel filters, Kaldi's filter bank and MFCC."""

from functools import lru_cache
from math import pi
from typing import TypeVar

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from senone.errors import SenoneError

Count = TypeVar("Count", int, Tensor)


class FeatureError(SenoneError):
    """Audio that is shorter than one frame."""


def sine_window(size: int, like: Tensor) -> Float[Tensor, "size"]:
    """sin(pi (n + 1/2) / size): with itself as synthesis window and half overlap it reconstructs perfectly."""
    n = torch.arange(size, device=like.device, dtype=torch.float64)
    return torch.sin(torch.pi * (n + 0.5) / size).to(like.dtype)


def frames(wave: Float[Tensor, "*batch samples"], size: int, hop: int) -> Float[Tensor, "*batch frame size"]:
    """Overlapping views of `size` samples, `hop` apart; no padding."""
    return wave.unfold(-1, size, hop)


def overlap_add(pieces: Float[Tensor, "batch frame size"], hop: int) -> Float[Tensor, "batch samples"]:
    """Sum of pieces laid `hop` apart: (frame - 1) * hop + size samples."""
    size = pieces.shape[2]
    total = (pieces.shape[1] - 1) * hop + size
    out = torch.nn.functional.fold(pieces.transpose(1, 2), (1, total), (1, size), stride=(1, hop))
    return out[:, 0, 0]


def stft(wave: Float[Tensor, "batch samples"], n_fft: int, hop: int) -> Complex[Tensor, "batch bin frame"]:
    """Short-time Fourier transform: Hann window of n_fft samples, centred frames, reflected ends."""
    window = torch.hann_window(n_fft, dtype=wave.dtype, device=wave.device)
    return torch.stft(wave, n_fft, hop, window=window, return_complex=True)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # whoever asks first, this serves all
def mel_filters(rate: int, n_fft: int, mels: int) -> Float[Tensor, "mel bin"]:
    """Triangular filters on the Slaney mel scale, each of unit area (librosa's default)."""
    points = _mel_to_hz(torch.linspace(0, float(_hz_to_mel(torch.tensor(rate / 2.0))), mels + 2, dtype=torch.float64))
    highest = n_fft // 2 * rate / n_fft  # half the rate, or less if n_fft is odd
    bins = torch.linspace(0, highest, n_fft // 2 + 1, dtype=torch.float64)
    lower, centre, upper = points[:-2, None], points[1:-1, None], points[2:, None]
    rise, fall = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    return (torch.minimum(rise, fall).clamp(min=0) * 2 / (upper - lower)).float()


def _hz_to_mel(hz: Tensor) -> Tensor:
    logstep = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27
    return torch.where(hz < 1000, hz * 3 / 200, 15 + torch.log(hz.clamp(min=1e-9).double() / 1000) / logstep)


def _mel_to_hz(mel: Tensor) -> Tensor:
    logstep = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * logstep))


def kaldi_frames(samples: Count, rate: int = 16000) -> Count:
    """How many frames of 25 ms, 10 ms apart, fit into `samples` (Kaldi's snip_edges)."""
    size, hop = rate // 40, rate // 100
    frames = 1 + (samples - size) // hop
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(frames, 0)


def kaldi_fbank(
    wave: Float[Tensor, "batch samples"], rate: int = 16000, mels: int = 80
) -> Float[Tensor, "batch frame {mels}"]:
    """Kaldi's log mel filter bank without dither: 25 ms frames, 10 ms apart, no padding, in the precision of `wave`.

    Per frame: mean removed, pre-emphasis 0.97, Povey window, power spectrum, triangles in mel space from 20 Hz up to
    half the rate, logarithm with a floor of 1.19e-7. That floor makes the scale of `wave` matter.
    Raises FeatureError below 25 ms.
    """
    size, hop = rate // 40, rate // 100
    if wave.shape[-1] < size:
        raise FeatureError(f"audio of {wave.shape[-1]} samples is shorter than one frame of {size}")
    n_fft = 1 << (size - 1).bit_length()
    window, filters = _povey_window(size).to(wave), _kaldi_filters(rate, n_fft, mels).to(wave)

    def log_mel(piece: Tensor) -> Tensor:
        piece = piece - piece.mean(-1, keepdim=True)
        piece = (piece - 0.97 * torch.cat([piece[..., :1], piece[..., :-1]], -1)) * window
        power = torch.view_as_real(torch.fft.rfft(piece, n_fft)).square().sum(-1)
        return (power @ filters).clamp(min=torch.finfo(torch.float32).eps).log()

    # a block of frames at a time: it stays in the cache, and an hour stays in memory
    return torch.cat([log_mel(piece) for piece in frames(wave, size, hop).split(1024, 1)], 1)


def mfcc(
    wave: Float[Tensor, "batch samples"], rate: int = 16000, lengths: Int[Tensor, "batch"] | None = None
) -> Float[Tensor, "batch frame 39"]:
    """HuBERT's first teacher: 13 Kaldi MFCC (23 mels, lifter 22, C0 kept), their deltas and delta-deltas.

    wave: in [-1, 1], as in fairseq; int16 scale gives other values in quiet frames.
    lengths: samples of each row, where some are padded: frames past a row's end repeat its last.
    """
    last = None if lengths is None else kaldi_frames(lengths, rate) - 1
    base = _hold(kaldi_fbank(wave, rate, 23) @ _lifted_dct(23, 13).to(wave), last)
    first = _hold(deltas(base), last)
    return torch.cat([base, first, _hold(deltas(first), last)], 2)


def deltas(x: Float[Tensor, "batch frame dim"]) -> Float[Tensor, "batch frame dim"]:
    """Slope over five frames: (-2 x[t-2] - x[t-1] + x[t+1] + 2 x[t+2]) / 10, the ends repeated."""
    n, x = x.shape[1], torch.cat([x[:, :1], x[:, :1], x, x[:, -1:], x[:, -1:]], 1)
    return (2 * (x[:, 4:] - x[:, :n]) + (x[:, 3 : n + 3] - x[:, 1 : n + 1])) / 10


def _hold(x: Tensor, last: Tensor | None) -> Tensor:
    """Every frame past `last` replaced by that frame."""
    if last is None:
        return x
    index = torch.minimum(torch.arange(x.shape[1], device=x.device), last.to(x.device)[:, None].clamp(min=0))
    return x.gather(1, index[..., None].expand_as(x))


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _povey_window(size: int) -> Tensor:
    return torch.hann_window(size, periodic=False, dtype=torch.float64) ** 0.85


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _kaldi_filters(rate: int, n_fft: int, mels: int) -> Float[Tensor, "bin mel"]:
    """Triangles that are straight in mel = 1127 ln(1 + Hz / 700), of height one."""
    low, high = (1127 * torch.log1p(torch.tensor(hz / 700, dtype=torch.float64)) for hz in (20, rate / 2))
    points = low + (high - low) * torch.arange(mels + 2, dtype=torch.float64) / (mels + 1)
    bins = 1127 * torch.log1p(torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None] * rate / n_fft / 700)
    lower, centre, upper = points[:-2], points[1:-1], points[2:]
    return torch.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)).clamp(min=0)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _lifted_dct(mels: int, size: int) -> Float[Tensor, "mel {size}"]:
    """Orthonormal DCT-II, row k weighted by Kaldi's lifter 1 + 11 sin(pi k / 22)."""
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(pi / mels * (torch.arange(mels, dtype=torch.float64)[:, None] + 0.5) * k) * (2 / mels) ** 0.5
    basis[:, 0] *= 0.5**0.5
    return basis * (1 + 11 * torch.sin(pi * k / 22))
