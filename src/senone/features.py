"""Signal features in plain torch: frames, windows, mel filters."""

from functools import lru_cache

import torch
from jaxtyping import Complex, Float
from torch import Tensor


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
def mel_filters(rate: int, n_fft: int, mels: int) -> Float[Tensor, "mel bin"]:
    """Triangular filters on the Slaney mel scale, each of unit area (librosa's default)."""
    points = _mel_to_hz(torch.linspace(0, float(_hz_to_mel(torch.tensor(rate / 2.0))), mels + 2, dtype=torch.float64))
    bins = torch.linspace(0, rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    lower, centre, upper = points[:-2, None], points[1:-1, None], points[2:, None]
    rise, fall = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    return (torch.minimum(rise, fall).clamp(min=0) * 2 / (upper - lower)).float()


def _hz_to_mel(hz: Tensor) -> Tensor:
    logstep = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27
    return torch.where(hz < 1000, hz * 3 / 200, 15 + torch.log(hz.clamp(min=1e-9).double() / 1000) / logstep)


def _mel_to_hz(mel: Tensor) -> Tensor:
    logstep = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * logstep))
