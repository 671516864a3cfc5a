"""A codec small enough to train in a second, something to train it on, and what a run leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from senone import tree
from senone.audio import Audio

RATE = 8000
TINY = """
model: {sample_rate: 8000, encoder_filters: 2, decoder_filters: 2, strides: [2, 4, 5], dim: 8, levels: 3, size: 16}
crop: 0.256
batch: 1.024
mel_windows: [128, 512]
judged: 0.128
adversarial_from: 3
discriminators: [{kind: stft, width: 2, n_fft: 256}]
optim: {generator: {lr: 1.0e-3, warmup: 4}, discriminator: {warmup: 2}}
log_steps: 1
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Below it: sound/ with three voices, noise/, and tiny.yaml."""
    top = tmp_path_factory.mktemp("train")
    for name in ("sound", "noise"):
        (top / name).mkdir()
    torch.manual_seed(0)
    t = torch.arange(2 * RATE) / RATE
    for pitch in (110, 150, 220):
        voice = sum(torch.sin(2 * torch.pi * pitch * k * t) / k for k in range(1, 9))
        beat = 0.5 + 0.5 * torch.sin(2 * torch.pi * 3 * t)
        Audio((0.2 * voice * beat)[None], RATE).save(top / "sound" / f"{pitch}.wav")
    Audio(0.1 * torch.randn(1, RATE), RATE).save(top / "noise" / "white.wav")
    (top / "tiny.yaml").write_text(TINY)
    return top


@pytest.fixture(scope="session")
def words(folder):
    """The settings of a tiny run."""
    return [f"data={folder / 'sound'}", f"recipe={folder / 'tiny.yaml'}"]


@pytest.fixture
def log() -> Callable[[Path], list[dict]]:
    """The lines of a run's log that are whole; none before there is one."""

    def read(out: Path) -> list[dict]:
        path = out / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    return read


@pytest.fixture
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """Every tensor that a run's checkpoint holds, by its path."""

    def read(out: Path) -> dict[str, torch.Tensor]:
        flat, todo = {}, [("", tree.load(out / "training" / "state.safetensors"))]
        while todo:
            name, value = todo.pop()
            if isinstance(value, dict):
                todo += [(f"{name}/{key}", item) for key, item in value.items()]
            elif isinstance(value, torch.Tensor):
                flat[name] = value
        return flat

    return read
