"""The arithmetic behind the tables of benchmarks/."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from senone.audio import Audio
from senone.data.manifest import read
from senone.eval import corpus


@pytest.fixture(autouse=True)
def _on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.fixture
def folders(tmp_path) -> Path:
    for name in ("speech", "noise"):
        (tmp_path / name).mkdir()
    soundfile.write(tmp_path / "speech" / "a.flac", noise(48000, 1) * np.hanning(48000), 16000)
    soundfile.write(tmp_path / "noise" / "n.flac", noise(9000), 16000)
    (tmp_path / "noise" / "manifest.tsv").write_text("path\tspeaker\tseconds\ttext\tsplit\nn.flac\train\t1\t\tdev\n")
    return tmp_path


def test_mixtures_have_the_ratio_asked_for(folders):
    from denoise import mixtures

    utterances = corpus.read(folders / "speech").utterances
    ((_, clean, noisy),) = mixtures(utterances, folders / "noise", "dev", 5.0)
    ratio = np.square(clean).sum() / np.square(noisy - clean).sum()
    assert 10 * np.log10(ratio) == pytest.approx(5, abs=1e-3) and np.abs(noisy).max() < 1


def test_the_mixture_has_the_si_sdr_of_its_ratio(folders, monkeypatch, capsys):
    import denoise

    words = [
        "denoise",
        "spectral-mini@1",
        "--data",
        folders / "speech",
        "--noise",
        folders / "noise",
        "--metrics",
        "si_sdr",
    ]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    with pytest.raises(SystemExit, match="takes no condition 'denoise'"):
        denoise.main()
    monkeypatch.setattr(denoise, "systems", lambda names: {"mixture": (lambda x: x, True), "none": (lambda x: x, True)})
    denoise.main()
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[2].split("|")[2].split()[0]) == pytest.approx(5, abs=0.2)
    assert lines[3].split("|")[3].split()[0] == "+0.00"


def test_the_ladder_says_what_is_out_of_order():
    import ladder

    means = {
        name: dict(zip(("pesq_wb", "pesq_nb", "stoi"), scores, strict=True)) for name, scores in ladder.BEFORE.items()
    }
    assert ladder.broken(means, ["pesq_wb", "stoi"]) == []
    means["opus:12k"]["stoi"] = 0.9
    means["codec2:3200"]["pesq_wb"] = 1.8
    means["pcm:8k"]["pesq_nb"] = None
    said = ladder.broken(means, ["pesq_wb", "stoi"])
    assert [sentence.split()[0] for sentence in said] == ["stoi:", "pesq_wb:", "8"]
    assert ladder.broken(means, ["pesq_wb"])[0].startswith("pesq_wb")


def test_a_decoder_as_wide_as_before_is_the_one_before_and_a_narrower_one_is_near():
    import torch
    from narrow import narrow

    from senone.models.soundstream import Config, SoundStream

    torch.manual_seed(0)
    sizes = {"encoder_filters": 2, "decoder_filters": 4, "strides": (2, 4), "dim": 8, "levels": 2, "size": 8}
    model = SoundStream(Config(sample_rate=16000, **sizes)).eval()
    z = [torch.randn(8, 400) for _ in range(4)]
    with torch.no_grad():
        wave = model.synthesise(torch.stack(z))[0]
        found = [narrow(model, *shape, z).synthesise(torch.stack(z))[0] for shape in ((4, 0), (3, 0), (4, 2))]
    late = torch.nn.functional.pad(wave, (2 * model.hop, 0))[:, :, : wave.shape[2]]
    errors = [
        float((got - want).square().sum() / want.square().sum())
        for got, want in zip(found, (wave, wave, late), strict=True)
    ]
    assert errors[0] < 1e-4 and errors[0] < errors[1] < 0.5 and errors[2] < 0.3


def test_another_voice_is_the_same_sound_faster_or_slower_through_an_equaliser(folders, monkeypatch):
    from voices import DECIBELS, SPEEDS, main, varied

    tone = Audio(torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)[None] / 2, 16000)
    others = [varied(tone, np.random.default_rng(seed)) for seed in range(8)]
    for other in others:
        speed = 1 / other.seconds
        peak = torch.fft.rfft(other.wave[0]).abs().argmax() / other.seconds
        assert SPEEDS[0] - 0.01 < speed < SPEEDS[1] + 0.01
        assert abs(float(peak) - 1000 * speed) < 2 and abs(float(other.wave.abs().max()) - 0.5) < 1e-3
    assert len({other.wave.shape for other in others}) == 8
    two = Audio(tone.wave + torch.sin(2 * torch.pi * 4000 * torch.arange(16000) / 16000) / 2, 16000)
    spectra = [torch.fft.rfft(varied(two, np.random.default_rng(seed)).wave[0]).abs().topk(2)[0] for seed in range(8)]
    ratios = [20 * float((a / b).log10()) for a, b in spectra]
    assert max(ratios) > 3 and max(ratios) < 2 * DECIBELS + 1  # the tones were equally loud

    monkeypatch.setattr("sys.argv", ["voices.py", str(folders / "speech"), str(folders / "more"), "--copies", "2"])
    main()
    assert [cut.speaker for cut in read(folders / "more")] == ["0-0", "0-1"]
    monkeypatch.setattr("sys.argv", ["voices.py", str(folders / "nothing"), str(folders / "more")])
    with pytest.raises(SystemExit, match="nothing"):
        main()
