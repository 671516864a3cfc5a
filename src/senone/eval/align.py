"""How late a decoded wave is, and putting it back in time.

STOI and SI-SDR compare sample by sample: MP3's 1,105 samples take STOI from 0.96 to 0.18, with nothing wrong to hear.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float32

Wave = Float32[np.ndarray, "samples"]
Alignment = Literal["none", "known", "estimate"]
ALIGNMENTS: tuple[Alignment, ...] = ("none", "known", "estimate")
FARTHEST = 4000  # samples to look at on either side: a quarter of a second at 16 kHz
ENVELOPE = 64  # samples over which an envelope is smoothed


def delay(ref: Wave, deg: Wave, waveform: bool = True) -> int | None:
    """Samples by which `deg` runs behind `ref` (negative: ahead), up to FARTHEST; None if one of them is silent.

    The lag at which they correlate best: as waves, or, for codecs that keep no phase (`waveform` False), as envelopes,
    which is good to a few milliseconds.
    """
    if not (len(ref) and len(deg) and np.ptp(ref) and np.ptp(deg)):
        return None
    x, y = (wave.astype(np.float64) if waveform else _envelope(wave) for wave in (ref, deg))
    x, y = x - x.mean(), y - y.mean()
    size = 1 << (len(x) + len(y) - 1).bit_length()
    spectrum = np.fft.rfft(x, size).conj() * np.fft.rfft(y, size)
    if waveform:  # half whitened: else the peaks a pitch period away are nearly as high
        spectrum /= np.sqrt(np.abs(spectrum) + 1e-9 * np.abs(spectrum).max())
    products = np.fft.irfft(spectrum, size)
    lags = np.arange(-min(FARTHEST, len(x) - 1), min(FARTHEST, len(y) - 1) + 1)
    return int(lags[products[lags].argmax()])


def aligned(ref: Wave, deg: Wave, late: int) -> tuple[Wave, Wave]:
    """Both, with `late` samples taken off the one that has to wait, cut to the shorter."""
    ref, deg = ref[max(0, -late) :], deg[max(0, late) :]
    common = min(len(ref), len(deg))
    return ref[:common], deg[:common]


def _envelope(wave: Wave) -> np.ndarray:
    sums = np.concatenate([[0.0], np.abs(wave.astype(np.float64)).cumsum()])
    padded = np.pad(sums, ENVELOPE // 2, mode="edge")
    return padded[ENVELOPE:] - padded[:-ENVELOPE]
