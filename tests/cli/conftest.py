"""The command line inside this process, and a model small enough for it."""

import io
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from senone import cli
from senone.audio import Audio
from senone.models import speechtokenizer
from senone.models.soundstream import Config, SoundStream


class Result(NamedTuple):
    code: int
    out: bytes
    err: str


@pytest.fixture
def senone(monkeypatch, capfdbinary):
    """Call `senone WORDS`; returns status, standard output, standard error."""

    def call(*words: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["senone", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets it
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main()
        captured = capfdbinary.readouterr()
        return Result(done.value.code or 0, captured.out, captured.err.decode())  # type: ignore[arg-type]

    return call


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with two models, a and b, of the same shape."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = Config(
            sample_rate=8000, encoder_filters=2, decoder_filters=2, strides=(4, 5, 8), dim=8, levels=3, size=16
        )
        SoundStream(config).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def semantic(tmp_path_factory) -> Path:
    """A SpeechTokenizer, in small."""
    torch.manual_seed(0)
    config = speechtokenizer.Config(filters=2, strides=(8, 5, 4, 2), dim=8, levels=3, size=16, teacher_width=0)
    return speechtokenizer.SpeechTokenizer(config).save_pretrained(tmp_path_factory.mktemp("semantic"))


@pytest.fixture(scope="session")
def model(models) -> Path:
    return models / "a"


@pytest.fixture(scope="session")
def recording(tmp_path_factory) -> Path:
    """5.01 s of a stereo chirp in noise at 16 kHz."""
    t = torch.arange(round(5.01 * 16000)) / 16000
    wave = 0.3 * torch.sin(2 * torch.pi * (100 + 150 * t) * t) + 0.02 * torch.randn(2, len(t))
    path = tmp_path_factory.mktemp("sound") / "in.wav"
    Audio(wave, 16000).save(path)
    return path
