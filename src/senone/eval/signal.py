"""Metrics of the signal itself: intelligibility, perceived quality, distortion. No weights, no labels.

STOI and ESTOI are our own, and equal `pystoi` to 1e-6; PESQ and ViSQOL run their packages in a process of their own.
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view

from senone import features
from senone.eval import child
from senone.eval.metrics import RATE, Column, Item, Metric, Plain, Unmeasurable

Wave = Float[np.ndarray, "samples"]
# STOI (Taal et al. 2011): rate, frame, spectrum, frames of one segment, dB below the loudest that still count
LOW, FRAME, FFT, SEGMENT, RANGE = 10000, 256, 512, 30, 40.0
CLIP = 1 + 10 ** (15 / 20)  # by how much a distorted band may exceed the clean one
EPS = float(np.finfo(float).eps)
LONGEST = 45  # seconds that PESQ is given: its tables hold 50 utterances, and overflow
CAP = 100.0  # dB: SI-SDR of a wave with itself is infinite, and JSON has no infinity
SCALES = ((2048, 150), (512, 80))  # windows and mels of the Descript Audio Codec's two distances
CEPSTRA = 13


def stoi() -> Metric:
    """Short-time objective intelligibility, 0 to 1 (Taal, Hendriks, Heusdens and Jensen 2011)."""
    return Plain(Column("stoi", "STOI", "higher", licence="MIT", source="senone, equal to pystoi 0.4.1"), _stoi)


def estoi() -> Metric:
    """Extended STOI, for maskers that fluctuate (Jensen and Taal 2016)."""
    return Plain(Column("estoi", "ESTOI", "higher", licence="MIT", source="senone, equal to pystoi 0.4.1"), _estoi)


def pesq_wb() -> Metric:
    """Perceived quality, wide-band (ITU-T P.862.2), 1.04 to 4.64: the first 45 s."""
    return _pesq("wb")


def pesq_nb() -> Metric:
    """Perceived quality, narrow-band (ITU-T P.862.1), 1.02 to 4.55, at 16 kHz as in Table 1: the first 45 s."""
    return _pesq("nb")


def _pesq(mode: str) -> Metric:
    licence = "MIT; the ITU's reference code in it forbids commercial use"
    column = Column(f"pesq_{mode}", f"PESQ-{mode.upper()}", "higher", licence=licence, source="pesq on PyPI")

    def score(item: Item) -> float:
        _heard(item)
        cut = slice(LONGEST * RATE)
        seconds = 60 + 20 * len(item.ref) / RATE
        return child.run(child.pesq, item.ref[cut], item.deg[cut], seconds=seconds, mode=mode)

    return Plain(column, score, packages=("pesq",), facts=f"1 first {LONGEST} s")


def visqol() -> Metric:
    """ViSQOL v3 in speech mode, 1 to 5 (Chinen et al. 2020); a wave with itself has 4.4 to 4.6."""
    column = Column("visqol", "ViSQOL", "higher", heavy=True, licence="Apache-2.0", source="visqol-python on PyPI")

    def score(item: Item) -> float:
        _heard(item)
        seconds = 300 + 20 * len(item.ref) / RATE  # the first call compiles
        return child.run(child.visqol, item.ref, item.deg, seconds=seconds)

    return Plain(column, score, packages=("visqol-python", "ai-edge-litert"), facts="1 speech lattice")


def si_sdr() -> Metric:
    """Scale-invariant signal-to-distortion ratio in dB, means removed, within 100 dB (Le Roux et al. 2019)."""
    column = Column("si_sdr", "SI-SDR dB", "higher", digits=2, waveform=True, licence="MIT", source="senone")
    return Plain(column, _si_sdr)


def mel() -> Metric:
    """Distance of mel spectrograms, as the Descript Audio Codec measures it (Kumar et al. 2023), at 16 kHz."""
    column = Column("mel", "mel distance", "lower", licence="MIT", source="senone, after descript-audio-codec")
    return Plain(column, lambda item: _distance(item, mels=True))


def stft() -> Metric:
    """Distance of magnitude spectrograms, as the Descript Audio Codec measures it (Kumar et al. 2023), at 16 kHz."""
    column = Column("stft", "STFT distance", "lower", licence="MIT", source="senone, after descript-audio-codec")
    return Plain(column, lambda item: _distance(item, mels=False))


def mcd() -> Metric:
    """Mel-cepstral distortion in dB (Kubichek 1993), frame by frame without warping: how far the envelopes that the
    cepstra draw are apart, root mean square over mels.

    Recipe, without which no two MCDs compare: 80 Slaney mels of 64 ms every 16 ms, natural logarithm of the magnitude
    above 1e-5, cepstra 1 to 13.
    """
    column = Column("mcd", "MCD dB", "lower", digits=2, licence="MIT", source="senone")
    return Plain(column, _mcd, facts=f"1 {CEPSTRA} of 80 mels")


def _heard(item: Item) -> None:
    for name, wave in (("original", item.ref), ("decoded wave", item.deg)):
        if not wave.any():
            raise Unmeasurable("no_speech", f"the {name} is silent")


def _stoi(item: Item) -> float:
    ref, deg = _segments(item)
    deg = deg * (_norm(ref) / (_norm(deg) + EPS))  # as loud as the original in each band of each segment
    deg = np.minimum(deg, CLIP * ref)
    ref, deg = (x - x.mean(2, keepdims=True) for x in (ref, deg))
    return float((ref / (_norm(ref) + EPS) * (deg / (_norm(deg) + EPS))).sum() / (ref.shape[0] * ref.shape[1]))


def _estoi(item: Item) -> float:
    ref, deg = _segments(item)
    for axis in (2, 1):  # each band over time, then each frame over bands
        ref, deg = (x - x.mean(axis, keepdims=True) for x in (ref, deg))
        ref, deg = (x / (_norm(x, axis) + EPS) for x in (ref, deg))
    return float((ref * deg).sum() / (SEGMENT * len(ref)))


def _norm(x: np.ndarray, axis: int = 2) -> np.ndarray:
    return np.sqrt(np.square(x).sum(axis, keepdims=True))


def _segments(item: Item) -> list[Float[np.ndarray, "segment band frame"]]:
    """Third-octave magnitudes of both waves at 10 kHz, frames in which the original pauses left out, in segments that
    start at every frame. Raises Unmeasurable where not even one fills."""
    _heard(item)
    window = np.hanning(FRAME + 2)[1:-1]
    ref, deg = (window * _frames(_to_low(wave)) for wave in (item.ref, item.deg))
    if not len(ref):
        raise Unmeasurable("too_short", "STOI needs at least 0.4 s of speech")
    level = 20 * np.log10(np.sqrt(np.square(ref).sum(1)) + EPS)
    loud = level > level.max() - RANGE
    bands = []
    for x in (ref, deg):
        spectrum = np.fft.rfft(window * _frames(_overlapped(x[loud])), FFT)
        bands.append(np.sqrt(np.square(np.abs(spectrum)) @ _third_octaves()))
    if len(bands[0]) < SEGMENT:
        raise Unmeasurable("too_short", f"STOI needs {SEGMENT} frames of speech, and this has {len(bands[0])}")
    return [sliding_window_view(x, SEGMENT, axis=0) for x in bands]


def _frames(wave: Wave) -> Float[np.ndarray, "frame size"]:
    """Half overlapping; the last one is left out, as in the authors' code."""
    views = sliding_window_view(wave, FRAME)[:: FRAME // 2] if len(wave) > FRAME else np.zeros((0, FRAME))
    return views[: -(-(len(wave) - FRAME) // (FRAME // 2))] if len(views) else views


def _overlapped(frames: Float[np.ndarray, "frame size"]) -> Wave:
    out = np.zeros((len(frames) + 1, FRAME // 2))
    out[:-1] += frames[:, : FRAME // 2]
    out[1:] += frames[:, FRAME // 2 :]
    return out.ravel()


def _to_low(wave: Wave) -> Wave:
    """16 to 10 kHz by the low pass that Octave's `resample` takes, five samples out of every eight."""
    taps, before, after = _low_pass()
    padded = np.pad(wave.astype(np.float64), (before, after + 8))
    views = sliding_window_view(padded, len(taps))[::8]
    return (views @ taps).ravel()[: -(-5 * len(wave) // 8)]


@cache
def _low_pass() -> tuple[Float[np.ndarray, "tap 5"], int, int]:
    """What each of five output samples takes of the inputs around it, and how many of these lie before and after."""
    half = int(np.ceil((60 - 8) / (28.714 / 160)))  # 60 dB of rejection, from 1/16 of the rate on within a tenth of it
    t = np.arange(-half, half + 1)
    kernel = np.kaiser(2 * half + 1, 0.1102 * (60 - 8.7)) * np.sinc(t / 8)
    kernel *= 5 / kernel.sum()
    inputs = np.arange(-(half // 5), (half + 32) // 5 + 1)
    at = 8 * np.arange(5) - 5 * inputs[:, None] + half
    taps = np.where((at >= 0) & (at <= 2 * half), kernel[np.clip(at, 0, 2 * half)], 0.0)
    return taps, -int(inputs[0]), int(inputs[-1])


@cache
def _third_octaves() -> Float[np.ndarray, "bin 15"]:
    """Which bins make up each band: 15 from 150 Hz on, their borders on the nearest bins."""
    hertz = np.arange(FFT // 2 + 1) * LOW / FFT
    edges = 150 * 2 ** ((2 * np.arange(16) - 1) / 6)
    bins = np.abs(hertz[:, None] - edges).argmin(0)
    inside = np.arange(len(hertz))[:, None]
    return ((inside >= bins[:-1]) & (inside < bins[1:])).astype(float)


def _si_sdr(item: Item) -> float:
    ref, deg = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (item.ref, item.deg))
    _heard(Item(ref, deg))
    target = ref * (ref @ deg / (ref @ ref))
    signal, noise = target @ target, np.square(deg - target).sum()
    with np.errstate(divide="ignore"):
        return float(np.clip(10 * (np.log10(signal) - np.log10(noise)), -CAP, CAP))


def _distance(item: Item, mels: bool) -> float:
    """Mean differences of magnitudes and of the logarithms of their squares, summed over SCALES."""
    total = 0.0
    for size, bands in SCALES:
        ref, deg = (_magnitudes(wave, size, bands if mels else 0) for wave in (item.ref, item.deg))
        logs = 2 * (ref.clamp(min=1e-5).log10() - deg.clamp(min=1e-5).log10())
        total += float((ref - deg).abs().mean() + logs.abs().mean())
    return total


def _mcd(item: Item) -> float:
    ref, deg = (_magnitudes(wave, 1024, 80).clamp(min=1e-5).log() for wave in (item.ref, item.deg))
    m = torch.arange(80, dtype=torch.float64) + 0.5
    basis = torch.cos(torch.pi / 80 * torch.arange(1, CEPSTRA + 1, dtype=torch.float64)[:, None] * m) / 40
    apart = basis @ (ref - deg).double()[0]
    return float(10 / np.log(10) * (2 * apart.square().sum(0)).sqrt().mean())


def _magnitudes(wave: Wave, size: int, mels: int) -> torch.Tensor:
    """(1, bin or mel, frame), a quarter of a window apart. Raises Unmeasurable below half a window."""
    if len(wave) <= size // 2:
        raise Unmeasurable("too_short", f"a spectrum needs more than {size // 2} samples, and this has {len(wave)}")
    spectrum = features.stft(torch.from_numpy(wave)[None], size, size // 4).abs()
    return features.mel_filters(RATE, size, mels) @ spectrum if mels else spectrum
