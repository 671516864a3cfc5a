"""Kaldi's own code (kaldi-native-fbank) is the oracle of our filter bank and MFCC."""

import kaldi_native_fbank as knf
import numpy as np
import pytest
import torch

from senone.features import FeatureError, deltas, kaldi_fbank, kaldi_frames, mfcc


def speech(samples: int = 16000, batch: int = 1) -> torch.Tensor:
    """Something with loud, quiet and digitally silent stretches, in [-1, 1]: (batch, samples)."""
    t = torch.arange(samples) / 16000
    wave = 0.3 * torch.sin(2 * torch.pi * (200 + 900 * t) * t) + 0.02 * torch.randn(batch, samples) + 0.01
    wave[:, samples // 3 : samples // 2] *= 1e-3
    wave[:, samples // 2 : samples // 2 + samples // 8] = 0
    return wave


def kaldi(wave: torch.Tensor, options, compute) -> torch.Tensor:
    """Frames of the oracle, dither off, for one row."""
    options.frame_opts.dither = 0
    online = compute(options)
    online.accept_waveform(16000, wave.tolist())
    online.input_finished()
    return torch.from_numpy(np.stack([online.get_frame(i) for i in range(online.num_frames_ready)]))


def kaldi_mel(wave: torch.Tensor, mels: int) -> torch.Tensor:
    options = knf.FbankOptions()
    options.mel_opts.num_bins = mels
    return kaldi(wave, options, knf.OnlineFbank)


def kaldi_mfcc(wave: torch.Tensor) -> torch.Tensor:
    options = knf.MfccOptions()
    options.use_energy = False
    return kaldi(wave, options, knf.OnlineMfcc)


@pytest.mark.parametrize("mels", [23, 80])
@pytest.mark.parametrize("scale", [1, 2**15])
def test_the_filter_bank_is_kaldis(mels: int, scale: int):
    wave = speech() * scale
    expected = kaldi_mel(wave[0], mels)
    assert (expected < -15).any() or scale > 1  # the floor is met
    torch.testing.assert_close(kaldi_fbank(wave, mels=mels)[0], expected, rtol=0, atol=3e-3)


def test_mfcc_are_kaldis():
    wave = speech()
    expected = kaldi_mfcc(wave[0])[None]
    first = deltas(expected)
    expected = torch.cat([expected, first, deltas(first)], 2)
    torch.testing.assert_close(mfcc(wave), expected, rtol=0, atol=1e-3)


def test_mfcc_of_real_speech_are_kaldis(data):
    from senone.audio import Audio

    path = next(iter(sorted(data.rglob("*.flac"))))
    wave = torch.as_tensor(Audio.read(path, seconds=5).resample(16000).mono().wave).float().view(1, -1)
    torch.testing.assert_close(mfcc(wave)[0, :, :13], kaldi_mfcc(wave[0]), rtol=0, atol=1e-3)


def test_precision_follows_the_wave():
    wave = speech().double()
    exact = mfcc(wave)
    assert exact.dtype == torch.float64 and mfcc(wave.float()).dtype == torch.float32
    assert (mfcc(wave.float()) - exact).abs().max() < 1e-3


@pytest.mark.parametrize("samples", [400, 559, 560, 719, 720, 16000])
def test_frames_are_those_that_fit(samples: int):
    assert kaldi_fbank(speech(samples)).shape[1] == kaldi_frames(samples) == 1 + (samples - 400) // 160
    assert kaldi_frames(torch.tensor([399, samples])).tolist() == [0, kaldi_frames(samples)]


def test_under_one_frame_is_refused():
    with pytest.raises(FeatureError, match="399 samples"):
        mfcc(torch.zeros(2, 399))


def test_deltas_are_the_formula():
    x = torch.randn(3, 17, 5, dtype=torch.float64)
    row = lambda t: x[:, min(max(t, 0), 16)]  # noqa: E731
    slopes = [(-2 * row(t - 2) - row(t - 1) + row(t + 1) + 2 * row(t + 2)) / 10 for t in range(17)]
    torch.testing.assert_close(deltas(x), torch.stack(slopes, 1), rtol=0, atol=1e-15)
    ramp = torch.arange(50.0)[None, :, None]
    assert (deltas(ramp)[:, 2:-2] == 1).all() and not deltas(torch.ones(1, 9, 2)).any()


def test_a_padded_batch_equals_each_alone():
    lengths = torch.tensor([9000, 2000, 400])
    wave = speech(9000, 3)
    together = mfcc(wave, lengths=lengths)
    for row, samples, features in zip(wave, lengths.tolist(), together, strict=True):
        alone = mfcc(row[None, :samples])[0]
        torch.testing.assert_close(features[: len(alone)], alone, rtol=0, atol=1e-5)
        assert (features[len(alone) :] == features[len(alone) - 1]).all()


def test_blocks_of_frames_leave_no_trace():
    wave = speech(16000 * 25)  # 2,498 frames: three blocks
    torch.testing.assert_close(kaldi_fbank(wave)[:, 1000:1100], kaldi_fbank(wave[:, 160000:176240]), rtol=0, atol=1e-4)
