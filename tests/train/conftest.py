"""A codec small enough to train in a second, and something to train it on."""

import pytest
import torch

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
