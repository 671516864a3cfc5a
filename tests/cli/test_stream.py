"""`senone stream`: sound in, sound out, as it comes; through a window where a model would hear everything."""

import re

import pytest
import torch

import senone as library
from senone.audio import Audio
from senone.tokenizer import Context


@pytest.mark.parametrize("words", [(), ("--levels", "2")])
def test_it_says_what_resynth_says(senone, model, recording, tmp_path, words):
    assert senone("resynth", recording, tmp_path / "x.wav", "-m", model, *words).code == 0
    done = senone("stream", recording, tmp_path / "y.wav", "-m", model, *words)
    assert done.code == 0 and re.fullmatch(r"senone: sound comes 0.0\d+ s late, computing time aside\n", done.err)
    one, other = (Audio.read(tmp_path / name).wave for name in ("x.wav", "y.wav"))
    assert one.shape == other.shape and (one - other).abs().max() < 1.5 / 2**15
    code, wave, _ = senone("stream", "-", "-", "-m", model, *words, stdin=recording.read_bytes())
    assert code == 0 and wave[44:] == (tmp_path / "y.wav").read_bytes()[44:]


def test_through_a_window_it_says_how_near_it_comes(senone, semantic, tmp_path):
    torch.manual_seed(1)
    sound = Audio(0.3 * torch.randn(1, 5 * 16000 + 7), 16000)
    sound.save(tmp_path / "in.wav")
    exact, near = library.load(semantic), library.load(semantic)
    near.block, near.context = 0.04, Context(0.02, 0.02)  # two frames, and one on both sides
    a, b = (model.encode(Audio.read(tmp_path / "in.wav")) for model in (near, exact))
    share = float((a.data == b.data).double().mean())
    assert 0.3 < share < 1
    x, y = near.decode(a)[0].wave[0].double(), exact.decode(b)[0].wave[0].double()
    part = y * (x @ y) / (y @ y)
    ratio = float(10 * ((part @ part) / (x - part).square().sum()).log10())
    done = senone("stream", tmp_path / "in.wav", tmp_path / "out.wav", "-m", semantic, "--window", "0.04")
    assert done.code == 0 and "approximate: windows of 0.04 s" in done.err
    assert f"{share:.1%} of the codes are those of `encode`, and SI-SDR to its sound is {ratio:.1f} dB" in done.err
    assert torch.allclose(Audio.read(tmp_path / "out.wav").wave[0].double(), x.clamp(-1, 1), atol=1e-4)
    whole = senone("stream", tmp_path / "in.wav", tmp_path / "all.wav", "-m", semantic)
    assert whole.code == 0 and "approximate" not in whole.err
    assert torch.allclose(Audio.read(tmp_path / "all.wav").wave[0].double(), y.clamp(-1, 1), atol=1e-4)


@pytest.mark.parametrize("window", ["0", "31", "nan"])
def test_windows_that_cannot_be(senone, semantic, recording, tmp_path, window):
    done = senone("stream", recording, tmp_path / "x.wav", "-m", semantic, "--window", window)
    assert done.code == 2 and "--window must be from one frame to 30 s" in done.err
    assert not (tmp_path / "x.wav").exists()


def test_a_model_that_streams_takes_no_window(senone, model, recording, tmp_path):
    done = senone("stream", recording, tmp_path / "x.wav", "-m", model, "--window", "1")
    assert done.code == 2 and "leave --window out" in done.err
