"""Spectral reconstruction losses: multi-scale log-mel, and one that sees phase."""

import torch
from jaxtyping import Float
from torch import Tensor

from senone.features import mel_filters, stft

MEL_WINDOWS = (64, 128, 256, 512, 1024, 2048)


def multiscale_mel(
    wave: Float[Tensor, "batch samples"],
    target: Float[Tensor, "batch samples"],
    rate: int,
    windows: tuple[int, ...] = MEL_WINDOWS,
) -> Float[Tensor, ""]:
    """SoundStream eq. (4)-(5): mean |mel - mel'| plus a mean 2-norm of log-mels, over windows 2^6 .. 2^11.

    64 mel bins, hop a quarter of the window, magnitudes. Means instead of sums, so that the weight does not depend
    on the crop; fewer mel bins at short windows, where 64 would leave filters empty.
    """
    total = wave.new_zeros(())
    for window in windows:
        mels = min(64, window // 8)
        filters = mel_filters(rate, window, mels).to(wave)
        x, y = (filters @ stft(w, window, window // 4).abs() for w in (wave, target))
        log = (x.clamp(min=1e-5).log() - y.clamp(min=1e-5).log()).square().mean(1).clamp(min=1e-12).sqrt()
        total = total + (x - y).abs().mean() + log.mean()
    return total / len(windows)


def log_mel(
    wave: Float[Tensor, "batch samples"], target: Float[Tensor, "batch samples"], rate: int, windows: tuple[int, ...]
) -> Float[Tensor, ""]:
    """Mean absolute difference of log-mels, over windows: X-codec2's loss (DAC's mel bins: 5 at a window of 32, 320 at
    2048), in natural logarithms and as a mean over windows. With one window of 1024 nearly SpeechTokenizer's."""
    terms = []
    for window in windows:
        filters = mel_filters(rate, window, 5 * window // 32).to(wave)
        x, y = ((filters @ stft(w, window, window // 4).abs()).clamp(min=1e-5).log() for w in (wave, target))
        terms.append((x - y).abs().mean())
    return torch.stack(terms).mean()


def complex_stft(
    wave: Float[Tensor, "batch samples"], target: Float[Tensor, "batch samples"], window: int = 512, power: float = 0.7
) -> Float[Tensor, "batch"]:
    """Energy of the error over energy, row by row, of spectra with magnitudes raised to `power`: sees phase.

    A square, not an absolute value, on purpose: under uncertain phase the median of a bin is 0, and an L1 loss rests
    there from the start (docs/log.md). The floor, some 20 dB below speech, keeps silence from counting more than it.
    """
    x, y = (compress(stft(w, window, window // 4), power) for w in (wave, target))
    energy = y.square().sum((1, 2, 3)) + 0.01 * y[0].numel()
    return (x - y).square().sum((1, 2, 3)) / energy


def compress(spectrum: Tensor, power: float) -> Float[Tensor, "*shape 2"]:
    """Real and imaginary part, the magnitude raised to `power`; smooth at zero."""
    parts = torch.view_as_real(spectrum)
    return parts * (parts.square().sum(-1, keepdim=True) + 1e-7) ** ((power - 1) / 2)
