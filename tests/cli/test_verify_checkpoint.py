"""senone verify-checkpoint: 0 where features are the reference's, 1 where not, 2 where there is no telling."""

from pathlib import Path

import numpy as np
import pytest
import torch

from senone.audio import Audio
from senone.interop import huggingface
from senone.models.hubert import Config, Hubert

SIZES = Config(channels=(16,) * 7, width=32, layers=2, heads=4, hidden=48, pos_kernel=16, pos_groups=4)


@pytest.fixture
def official(tmp_path) -> Path:
    """A tiny random model in place of an official one: its directory, and the features that it computes."""
    model = Hubert(SIZES).eval()
    huggingface.save(model, tmp_path / "hubert")
    (tmp_path / "reference").mkdir()
    Audio(0.1 * torch.randn(1, 8000), 16000).save(tmp_path / "reference" / "1.flac")
    features = model.features(Audio.read(tmp_path / "reference" / "1.flac").wave, layer=2)[0].numpy()
    np.save(tmp_path / "reference" / "sample.tiny.L2.npy", features)
    (tmp_path / "reference" / "sample.tiny.L2.km6.km").write_text(" ".join(str(i // 4) for i in range(len(features))))
    return tmp_path


def test_verify_checkpoint(senone, official):
    code, out, err = senone("verify-checkpoint", official / "hubert", "--fixture", official / "reference")
    assert code == 0 and not err
    lines = out.decode().splitlines()
    assert lines[0].endswith("parameters, 2 layers, 4 heads") and lines[-1] == "ok"
    assert "layer 2 with sample.tiny.L2.npy: 24 of 24 frames" in lines[1]
    assert "at most 0.00e+00" in lines[2] and "24 frames get the stated unit" not in lines[2]
    torch.manual_seed(1)
    huggingface.save(Hubert(SIZES), official / "other")
    code, out, _ = senone("verify-checkpoint", official / "other", "--fixture", official / "reference")
    assert code == 1 and out.decode().splitlines()[-1].startswith("BROKEN: the relative difference")


def test_no_telling(senone, official, model):
    for path, fixture, says in (
        ("nothing", "reference", "nothing"),
        ("hubert", "nowhere", "nowhere holds no .flac"),
        (model, "reference", "is a SoundStream; HuBERT's features are what can be verified"),
    ):
        code, out, err = senone("verify-checkpoint", official / path, "--fixture", official / fixture)
        assert code == 2 and not out and says in err and err.count("\n") == 1
    (official / "x.pt").write_bytes(b"PK")
    code, _, err = senone("verify-checkpoint", official / "x.pt", "--fixture", official / "reference")
    assert code == 2 and "x.pt is cut short" in err
