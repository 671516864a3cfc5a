import errno
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from senone.audio import Audio, AudioError, Writer, blocks, duration


def tone(rate: int, seconds: float, channels: int = 1) -> Audio:
    t = torch.arange(round(rate * seconds)) / rate
    return Audio(torch.stack([0.5 * torch.sin(2 * torch.pi * 220 * (c + 1) * t) for c in range(channels)]), rate)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "opus"])
def test_formats_round_trip(tmp_path, suffix):
    audio = tone(48000, 0.5, 2)
    audio.save(tmp_path / f"x.{suffix}")
    back = Audio.read(tmp_path / f"x.{suffix}")
    assert back.rate == 48000 and back.wave.shape == audio.wave.shape
    assert (back.wave - audio.wave)[:, 2000:-2000].abs().max() < (1e-4 if suffix in ("wav", "flac") else 0.1)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("seconds", [0.013, 0.4])
def test_blocks_equal_the_whole(tmp_path, rate, seconds):
    tone(rate, 1.5, 2).save(tmp_path / "x.flac")
    whole = Audio.read(tmp_path / "x.flac").mono().resample(16000)
    pieces = list(blocks(tmp_path / "x.flac", 16000, seconds))
    assert torch.equal(torch.cat(pieces, 1), whole.wave) or (torch.cat(pieces, 1) - whole.wave).abs().max() < 1e-5
    assert whole.wave.shape[1] == 24000
    assert all(piece.shape == (1, round(seconds * 16000)) for piece in pieces[:-1])


def test_partial_read_equals_a_slice(tmp_path):
    audio = tone(16000, 2)
    audio.save(tmp_path / "x.wav")
    part = Audio.read(tmp_path / "x.wav", start=0.5, seconds=0.25)
    assert torch.equal(part.wave, Audio.read(tmp_path / "x.wav").wave[:, 8000:12000])
    with pytest.raises(AudioError, match="has no sample at 3.0 s"):
        Audio.read(tmp_path / "x.wav", start=3.0)


def test_bad_inputs_are_named(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is not sound, whatever its name says")
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16000)
    for name, bad in (("nan", np.nan), ("inf", np.inf)):
        soundfile.write(tmp_path / f"{name}.wav", np.array([0, bad], np.float32), 16000, subtype="FLOAT")
    for name, words in {
        "missing.wav": "No such file",
        "empty.wav": "is empty",
        "text.wav": "is not audio",
        "none.wav": "holds no samples",
        "nan.wav": "NaN or infinite",
        "inf.wav": "NaN or infinite",
        ".": "cannot read",
    }.items():
        for read in (Audio.read, lambda path: list(blocks(path, 16000))):
            with pytest.raises(AudioError, match=words) as error:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(error.value)


def test_writer_leaves_nothing_behind(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "x.wav", 16000) as writer:
        writer.write(torch.zeros(1, 10))
        raise KeyboardInterrupt
    with pytest.raises(AudioError, match="No such file"):
        tone(16000, 0.1).save(tmp_path / "no" / "x.wav")
    with pytest.raises(AudioError, match="unknown audio suffix '.xyz'"):
        tone(16000, 0.1).save(tmp_path / "x.xyz")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    with pytest.raises(AudioError, match="x.wav: No space left"):
        tone(16000, 0.1).save(tmp_path / "x.wav")
    assert list(tmp_path.iterdir()) == []


def test_values_are_checked():
    with pytest.raises(AudioError, match="float32 of shape"):
        Audio(torch.zeros(3), 16000)
    assert Audio(torch.tensor([[0.1, -0.2]]), 8000).normalise(0).wave.abs().max() == 1


def test_files_and_pipes_hold_the_same_rounded_samples(tmp_path, monkeypatch):
    audio = Audio(torch.cat([torch.rand(1, 999) * 2 - 1, torch.tensor([[1.0, -1.0, 2.0]])], 1), 16000)
    audio.save(tmp_path / "x.wav")
    audio.save(tmp_path / "x.flac")
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=pipe))
    audio.save("-")
    wave = Audio.read(tmp_path / "x.wav").wave
    assert torch.equal(wave, Audio.read(tmp_path / "x.flac").wave)
    assert pipe.getvalue()[44:] == (wave[0].numpy() * 32768).astype("<i2").tobytes()
    assert (wave - audio.wave.clamp(-1, 32767 / 32768)).abs().max() <= 0.5 / 32768


def test_standard_input_is_read_like_a_file_even_if_it_does_not_fit_into_memory(tmp_path, monkeypatch):
    audio = tone(16000, 2)
    audio.save(tmp_path / "x.wav")
    for most in (1 << 10, 1 << 20):
        monkeypatch.setattr("senone.audio.SPOOL", most)
        for start in (0.0, 1.5):
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO((tmp_path / "x.wav").read_bytes())))
            assert torch.equal(Audio.read("-", start=start).wave, Audio.read(tmp_path / "x.wav", start=start).wave)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    with pytest.raises(AudioError, match="standard input is empty"):
        list(blocks("-", 16000))


def test_duration_is_read_from_the_header(tmp_path):
    tone(16000, 1.25).save(tmp_path / "x.wav")
    (tmp_path / "text.wav").write_text("no sound")
    assert duration(tmp_path / "x.wav") == 1.25
    assert duration("-") is duration(tmp_path / "text.wav") is duration(tmp_path / "none.wav") is None
