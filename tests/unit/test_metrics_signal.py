"""Metrics of the signal: against the packages they stand for, on real speech where SENONE_DATA has it."""

import time

import numpy as np
import pytest
import soundfile
import torch

from senone.eval import child, codebooks, signal
from senone.eval.metrics import METRICS, RATE, Item, measure


@pytest.fixture(scope="module")
def clips(data):
    """Three clips of real speech, each with its noisy version."""
    rng, found = np.random.default_rng(0), []
    for path in sorted((data / "librispeech_test_clean" / "audio").glob("*.flac"))[::60]:
        wave, rate = soundfile.read(path, dtype="float32")
        assert rate == RATE
        hiss = rng.standard_normal(len(wave)).astype(np.float32)
        found.append(Item(wave[: 6 * RATE], (wave + 0.02 * hiss)[: 6 * RATE]))
    return found


def value(name, ref, deg):
    score = measure(METRICS.get(name)(), Item(ref, deg))
    if score.status == "na":
        pytest.skip(score.error)
    assert score.status == "ok", score
    return score.value


def noise(seconds=1.0, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("name", ["stoi", "estoi"])
def test_stoi_equals_pystoi(clips, name):
    pystoi = pytest.importorskip("pystoi")
    for item in clips:
        for deg in (item.deg, np.clip(3 * item.ref, -0.2, 0.2), np.roll(item.ref, 300), -item.deg):
            ours = value(name, item.ref, deg)
            theirs = pystoi.stoi(item.ref.astype(float), deg.astype(float), RATE, extended=name == "estoi")
            assert ours == pytest.approx(theirs, abs=1e-9)


def test_stoi_equals_pystoi_at_every_length():
    """The numbers of frames and of samples after resampling, around where one more begins; needs no speech."""
    pystoi = pytest.importorskip("pystoi")
    for extra in (0, 1, 2, 7, 8, 100, 204, 205, 206):
        ref = noise(1 + extra / RATE)
        deg = ref + noise(1 + extra / RATE, 1)
        ours, theirs = value("stoi", ref, deg), pystoi.stoi(ref.astype(float), deg.astype(float), RATE)
        assert ours == pytest.approx(theirs, abs=1e-9), extra


@pytest.mark.parametrize("mode", ["wb", "nb"])
def test_pesq_equals_the_package(clips, mode):
    pesq = pytest.importorskip("pesq")
    rng = np.random.default_rng(1)
    for k in range(20):
        item, first = clips[k % len(clips)], int(rng.integers(3 * RATE))
        ref, deg = (wave[first : first + 2 * RATE] for wave in (item.ref, item.deg))
        assert value(f"pesq_{mode}", ref, deg) == pesq.pesq(RATE, ref, deg, mode)


def test_identity(clips):
    ref = clips[0].ref
    assert value("pesq_wb", ref, ref) == pytest.approx(4.6438885, abs=1e-5)
    assert value("pesq_nb", ref, ref) == pytest.approx(4.5486383, abs=1e-5)
    assert value("stoi", ref, ref) == pytest.approx(1, abs=1e-9)
    assert value("estoi", ref, ref) == pytest.approx(1, abs=1e-9)
    assert value("si_sdr", ref, ref) == 100
    assert [value(name, ref, ref) for name in ("mcd", "mel", "stft")] == [0, 0, 0]


@pytest.mark.parametrize("gain", [0.1, 0.5, 2.0])
def test_gain_changes_nothing(clips, gain):
    ref, deg = clips[0].ref, clips[0].deg
    for name in ("stoi", "estoi", "si_sdr", "pesq_wb", "pesq_nb"):
        assert value(name, ref, gain * deg) == pytest.approx(value(name, ref, deg), abs=1e-3), name


def test_polarity_does_not_matter_to_stoi_and_does_to_the_waveform(clips):
    ref, deg = clips[0].ref, clips[0].deg
    assert value("stoi", ref, -deg) == pytest.approx(value("stoi", ref, deg), abs=1e-9)
    assert value("si_sdr", ref, -ref) == 100  # a scale may be negative
    assert METRICS.get("si_sdr")().column.waveform and not METRICS.get("stoi")().column.waveform


@pytest.mark.parametrize("name", ["stoi", "estoi", "pesq_wb", "pesq_nb", "si_sdr", "mel", "stft", "mcd"])
def test_more_noise_is_worse(clips, name):
    ref, hiss = clips[1].ref, noise(6)[: len(clips[1].ref)]
    level = np.sqrt(np.square(ref).mean() / np.square(hiss).mean())
    values = [value(name, ref, ref + level * 10 ** (-snr / 20) * hiss) for snr in (40, 30, 20, 10, 0)]
    down = METRICS.get(name)().column.better == "higher"
    assert all((a > b) == down and a != b for a, b in zip(values, values[1:], strict=False)), values


def test_a_low_pass_costs_wide_band_alone(clips):
    ref = clips[2].ref
    spectrum = np.fft.rfft(ref)
    spectrum[np.fft.rfftfreq(len(ref), 1 / RATE) > 3500] = 0
    low = np.fft.irfft(spectrum, len(ref)).astype(np.float32)
    assert value("pesq_wb", ref, low) < 3.9 < 4.4 < value("pesq_nb", ref, low)


def test_si_sdr_against_its_definition():
    ref, deg = noise(1, 0) + 0.05, noise(1, 1) + 0.7 * noise(1, 0)
    x, y = ref - ref.mean(), deg - deg.mean()
    scale = np.linalg.lstsq(x[:, None], y, rcond=None)[0][0]
    expected = 20 * np.log10(np.linalg.norm(scale * x) / np.linalg.norm(y - scale * x))
    assert value("si_sdr", ref, deg) == pytest.approx(expected, abs=1e-3)
    orthogonal = np.tile(np.float32([1, 1, -1, -1]), 4000), np.tile(np.float32([1, -1, -1, 1]), 4000)
    assert value("si_sdr", *orthogonal) == -100
    still = np.full(RATE, 0.5, np.float32)
    for pair in ((still, ref), (ref, still)):
        assert measure(METRICS.get("si_sdr")(), Item(*pair)).status == "no_speech"


@pytest.mark.parametrize("mels", [False, True])
def test_spectral_distances_against_their_definition(mels):
    audio_utils = pytest.importorskip("transformers.audio_utils")
    ref, deg = noise(1, 0), noise(1, 1)
    expected = 0.0
    for size, bands in ((2048, 150), (512, 80)):
        both = []
        for wave in (ref, deg):
            padded = np.pad(wave.astype(np.float64), size // 2, mode="reflect")
            window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
            hops = range(0, len(padded) - size + 1, size // 4)
            spectrum = np.abs([np.fft.rfft(window * padded[i : i + size]) for i in hops])
            if mels:
                bank = audio_utils.mel_filter_bank(size // 2 + 1, bands, 0, RATE / 2, RATE, "slaney", "slaney")
                spectrum = spectrum @ bank
            both.append(spectrum)
        logs = [np.log10(np.maximum(x, 1e-5) ** 2) for x in both]
        expected += np.abs(both[0] - both[1]).mean() + np.abs(logs[0] - logs[1]).mean()
    assert value("mel" if mels else "stft", ref, deg) == pytest.approx(expected, rel=1e-4)


def test_mcd_is_the_distance_of_smoothed_spectra_in_decibels():
    """Of two waves whose mel spectra differ by one cosine over the mels, it is that cosine's root mean square."""
    k, height = 3, 0.2
    m = (torch.arange(80) + 0.5) * torch.pi / 80
    apart = height * torch.cos(k * m)
    expected = 20 / np.log(10) * float(apart.square().mean().sqrt())
    spectra = iter([torch.full((1, 80, 9), 0.5), 0.5 * torch.exp(-apart)[None, :, None].expand(1, 80, 9)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "_magnitudes", lambda *arguments: next(spectra))
        assert value("mcd", noise(), noise()) == pytest.approx(expected, rel=1e-5)


def test_visqol(clips):
    """Also a check that the deep lattice is in use: the polynomial gives a wave with itself 5."""
    ref = clips[0].ref[: 3 * RATE]
    same, noisy = (value("visqol", ref, deg) for deg in (ref, clips[0].deg[: 3 * RATE]))
    assert 4.2 < same < 4.7 and noisy < same - 1


@pytest.mark.parametrize(
    ("name", "shortest"), [("stoi", 0.35), ("estoi", 0.35), ("pesq_wb", 0.2), ("pesq_nb", 0.2), ("visqol", 0.3)]
)
def test_too_short_and_silent(name, shortest):
    metric = METRICS.get(name)()
    for samples in (1, round(shortest * RATE)):
        score = measure(metric, Item(noise()[:samples], noise(1, 1)[:samples]))
        assert score.value is None and score.status in ("too_short", "na"), score
    for pair in ((noise(), 0 * noise()), (0 * noise(), noise())):
        score = measure(metric, Item(*pair))
        assert score.value is None and score.status in ("no_speech", "na") and "is" in score.error


@pytest.mark.parametrize("name", ["mel", "stft", "mcd"])
def test_spectra_need_half_a_window(name):
    assert measure(METRICS.get(name)(), Item(noise()[:500], noise()[:500])).status == "too_short"
    assert measure(METRICS.get(name)(), Item(noise()[:1100], noise()[:1100])).status == "ok"


def test_pesq_of_what_crashes_it():
    """Sixty bursts with pauses overflow the ITU's tables: cut at 45 s, it has a value, and no crash."""
    pytest.importorskip("pesq")
    burst = np.concatenate([noise(0.6), np.zeros(round(0.6 * RATE), np.float32)])
    ref = np.tile(burst, 60)
    assert 1 <= value("pesq_wb", ref, ref + noise(72, 1)[: len(ref)] / 10) <= 4.65
    with pytest.raises(child.Unmeasurable) as caught:
        child.run(child.pesq, ref, ref, seconds=300, mode="wb")
    assert caught.value.status == "crashed"


def test_speed(clips):
    """STOI, both PESQ and the statistics of the codes of 10 s in under 0.6 s of one core."""
    pytest.importorskip("pesq")
    ref, deg = (np.tile(x, 2)[: 10 * RATE] for x in (clips[0].ref, clips[0].deg))
    metrics = [METRICS.get(name)() for name in ("stoi", "pesq_wb", "pesq_nb")]
    codes = np.random.default_rng(0).integers(0, 1024, (8, 500))

    def once():
        start = time.perf_counter()
        assert all(measure(metric, Item(ref, deg)).status == "ok" for metric in metrics)
        [codebooks.statistics(counts) for counts in codebooks.count([codes], [1024] * 8)]
        return time.perf_counter() - start

    once()  # starts the process of PESQ
    assert min(once() for _ in range(5)) < 0.6
