"""`senone swap`: the words of one recording in the voice of another."""

import pytest
import torch

import senone as library
from senone import hub
from senone.audio import Audio
from senone.cli.codec import _regrouped
from senone.codes import Codes, CodeSpec, swap


@pytest.fixture
def voice(tmp_path):
    Audio(0.2 * torch.randn(1, 8000), 8000).save(tmp_path / "voice.wav")
    return tmp_path / "voice.wav"


@pytest.mark.parametrize("words, level", [((), 2), (("--from-level", 3), 3)])
def test_levels_come_from_both(senone, model, recording, voice, tmp_path, words, level):
    assert senone("swap", recording, voice, "-o", tmp_path / "x.wav", "-m", model, *words) == (0, b"", "")
    tokenizer = library.load(model)
    both = swap(tokenizer.encode(Audio.read(recording)), tokenizer.encode(Audio.read(voice)), level)
    said = Audio.read(tmp_path / "x.wav")
    assert said.wave.shape == (1, 40080) and said.rate == 8000
    torch.testing.assert_close(said.wave, tokenizer.decode(both)[0].wave.clamp(-1, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("other", ["one.wav", "silent.flac", "stereo.mp3"])
def test_any_recording_will_do_for_words_and_for_a_voice(senone, semantic, recording, tmp_path, other):
    """One sample; silence; two channels at 44.1 kHz, compressed: the result is as long as the words."""
    Audio(torch.full((1, 1), 0.5), 16000).save(tmp_path / "one.wav")
    Audio(torch.zeros(1, 16000), 16000).save(tmp_path / "silent.flac")
    Audio(0.1 * torch.randn(2, 44100), 44100).save(tmp_path / "stereo.mp3")
    samples = {"one.wav": 1, "silent.flac": 16000, "stereo.mp3": 16000}[other]
    for source, reference, length in ((other, recording, samples), (recording, tmp_path / other, 80160)):
        words = tmp_path / source, tmp_path / reference, "-o", tmp_path / "x.wav", "-m", semantic
        assert senone("swap", *words) == (0, b"", "")
        said = Audio.read(tmp_path / "x.wav")
        assert said.wave.shape == (1, length) and said.rate == 16000


@pytest.mark.parametrize("level", [-1, 0, 1, 4])
def test_a_level_out_of_range_is_one_sentence(senone, model, recording, voice, tmp_path, level):
    code, out, err = senone("swap", recording, voice, "-o", tmp_path / "x.wav", "-m", model, "--from-level", level)
    assert (code, out) == (2, b"") and err == f"senone: --from-level must be 2 to 3, got {level}\n"
    assert not (tmp_path / "x.wav").exists()


def test_a_missing_reference_is_one_sentence(senone, model, recording, tmp_path):
    code, _, err = senone("swap", recording, "no.wav", "-o", tmp_path / "x.wav", "-m", model)
    assert code == 2 and "no.wav" in err and err.count("\n") == 1 and not (tmp_path / "x.wav").exists()


def test_both_from_standard_input_is_one_sentence(senone, model, tmp_path):
    code, _, err = senone("swap", "-", "-", "-o", tmp_path / "x.wav", "-m", model, stdin=b"RIFF")
    assert code == 2 and err == "senone: source and reference cannot both be standard input\n"


def test_without_a_model_it_is_the_bundled_speechtokenizer(senone, model, recording, voice, tmp_path, monkeypatch):
    bundled = tmp_path / "weights"
    bundled.mkdir()
    (bundled / "speechtokenizer-mini").symlink_to(model)
    monkeypatch.setattr(hub, "BUNDLED", bundled)
    for name, words in {"a.wav": (), "b.wav": ("-m", model)}.items():
        assert senone("swap", recording, voice, "-o", tmp_path / name, *words) == (0, b"", "")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_one_long_piece_is_cut_in_linear_time(monkeypatch):
    """All codes of a recording come in one piece here: cutting a second off must not check the rest of it again."""
    codes = Codes(torch.arange(1000).view(1, 1, -1) % 7, torch.tensor([9995]), CodeSpec(500, 10, (7,), "x"))
    checked, check = [], Codes.__post_init__
    monkeypatch.setattr(Codes, "__post_init__", lambda self: (checked.append(self.data.shape[2]), check(self))[1])
    parts = list(_regrouped([codes], 30))
    assert sum(checked) <= 2 * 1000
    assert [part.data.shape[2] for part in parts] == [30] * 33 + [10] and int(parts[-1].samples) == 95
    assert torch.equal(torch.cat([part.data for part in parts], 2), codes.data)
