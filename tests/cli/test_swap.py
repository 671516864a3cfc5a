"""`senone swap`: the words of one recording in the voice of another."""

import pytest
import torch

import senone as library
from senone.audio import Audio
from senone.codes import swap


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


@pytest.mark.parametrize("level", [-1, 0, 1, 4])
def test_a_level_out_of_range_is_one_sentence(senone, model, recording, voice, tmp_path, level):
    code, out, err = senone("swap", recording, voice, "-o", tmp_path / "x.wav", "-m", model, "--from-level", level)
    assert (code, out) == (2, b"") and err == f"senone: --from-level must be 2 to 3, got {level}\n"
    assert not (tmp_path / "x.wav").exists()


def test_a_missing_reference_is_one_sentence(senone, model, recording, tmp_path):
    code, _, err = senone("swap", recording, "no.wav", "-o", tmp_path / "x.wav", "-m", model)
    assert code == 2 and "no.wav" in err and err.count("\n") == 1 and not (tmp_path / "x.wav").exists()
