"""senone kmeans and senone units: from recordings to a tokenizer, from that to labels."""

import json

import pytest
import torch

from senone import hub
from senone.audio import Audio
from senone.data.labels import Labels, Provenance
from senone.models.units import Units


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three recordings, one of them at another rate, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for i, rate in enumerate((16000, 16000, 22050)):
        t = torch.arange(round((1.5 + i / 3) * rate)) / rate
        Audio(0.3 * torch.sin(900 * (1 + i) * t * (1 + t))[None] + 0.02 * torch.randn(1, len(t)), rate).save(
            folder / f"{i}.wav"
        )
    return folder


@pytest.fixture
def model(senone, clips, tmp_path):
    code, out, err = senone("kmeans", clips, "--encoder", "mfcc", "--clusters", 12, "-o", tmp_path / "units")
    assert code == 0 and not out and f"12 units in {tmp_path / 'units'}: inertia" in err
    return tmp_path / "units"


def test_kmeans_makes_a_tokenizer(senone, model, clips, tmp_path):
    units = hub.load(model)
    assert (
        isinstance(units, Units) and units.spec.sizes == (12,) and units.config.encoder == {"model_type": "senone_mfcc"}
    )
    again = ("kmeans", clips, "-e", "mfcc", "--clusters", 12, "--hours", 1, "-o", tmp_path / "again")
    assert senone(*again).code == 0 and hub.load(tmp_path / "again").spec == units.spec
    assert senone(*again, "--seed", 1).code == 0 and hub.load(tmp_path / "again").spec != units.spec
    assert senone(*again, "--rounds", 1).code == 0 and hub.load(tmp_path / "again").spec.sizes == (12,)
    assert hub.load(tmp_path / "again").config.encoder["model_type"] == "senone_discriminant"
    code, out, _ = senone("info", model)
    facts = dict(line.split(maxsplit=1) for line in out.decode().splitlines())
    assert code == 0 and facts["latency"].startswith("35010 ms") and facts["latency"].endswith("; no decoder")
    # a tokenizer like any other
    assert senone("encode", clips / "0.wav", "-o", tmp_path / "x.sno", "-m", model).code == 0
    code, out, _ = senone("info", tmp_path / "x.sno")
    assert code == 0 and b"24000 samples, 1.50 s" in out


def test_units_writes_labels(senone, model, clips, tmp_path):
    path = tmp_path / "labels.safetensors"
    code, out, err = senone("units", clips, "-m", model, "-o", path)
    assert (code, out) == (0, b"") and f"labels of 3 recordings in {path}" in err
    labels, units = Labels.load(path), hub.load(model)
    labels.accept(Provenance.of(units))
    for name in ("0.wav", "1.wav", "2.wav"):
        codes = units.encode(Audio.read(clips / name)).data[0, 0].tolist()
        assert labels[clips / name].tolist() == codes
        assert senone("units", clips / name, "-m", model, "-o", "-").out.decode() == " ".join(map(str, codes)) + "\n"
    code, out, _ = senone("units", "-", "-m", model, "-o", "-", stdin=(clips / "2.wav").read_bytes())
    assert code == 0 and out.decode().split() == [str(unit) for unit in labels[clips / "2.wav"]]


def test_units_goes_on_and_says_what_it_leaves_out(senone, model, clips, tmp_path, monkeypatch):
    from senone.data import units

    (tmp_path / "bad.wav").write_text("no sound")
    names = [clips / "0.wav", tmp_path / "bad.wav", clips / "1.wav", clips / "2.wav"]
    words = ("units", *names, "-m", model, "-o", tmp_path / "x")
    done, label = [], units.label

    def stopped(cut, model):
        if len(done) == 2:
            raise OSError("power cut")
        done.append(cut.path)
        return label(cut, model)

    monkeypatch.setattr(units, "label", stopped)
    code, _, err = senone(*words)
    assert code == 2 and "power cut" in err and not (tmp_path / "x").exists()
    done, again = [], []
    monkeypatch.setattr(units, "label", lambda cut, model: (again.append(cut.path), label(cut, model))[1])
    code, _, err = senone(*words)
    assert code == 2 and "bad.wav is not audio that can be read" in err and "it is left out" in err
    assert again == [str(name) for name in names[1:]] and "labels of 3 recordings" in err
    assert len(Labels.load(tmp_path / "x")) == 3 and not list(tmp_path.glob(".x*"))


def test_what_a_user_can_get_wrong(senone, model, clips, tmp_path):
    def refused(*words, says):
        code, out, err = senone(*words)
        assert code == 2 and not out and err.count("\n") == 1 and says in err, err

    kmeans = ("kmeans", clips, "-o", tmp_path / "no")
    refused(*kmeans, "-e", "mfc", says="unknown model 'mfc'")
    refused(*kmeans, "-e", "mfcc", "--layer", 3, says="MFCC have no layers, so no layer 3")
    refused(*kmeans, "-e", "mfcc", "--clusters", 5000, says="frames are too few for 5000 clusters")
    refused(*kmeans, "-e", "mfcc", "--hours", 0, says="hours must be above 0")
    refused(*kmeans, "-e", "spectral-mini", says="Spectral is no encoder")
    refused("kmeans", tmp_path / "gone", "-e", "mfcc", "-o", tmp_path / "no", says="gone")
    refused("units", clips / "0.wav", "-m", "spectral-mini", "-o", "-", says="not from a Spectral")
    refused("units", tmp_path / "gone.wav", "-m", model, "-o", "-", says="gone.wav")
    refused("units", clips, "-m", model, "-o", tmp_path, says="it is a folder")
    refused("units", clips, "-m", model, "-o", tmp_path / "no" / "x", says="No such file")
    (tmp_path / "x").write_text("no sound")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"clusters": 13}))
    refused("units", clips, "-m", model, "-o", "-", says="the config says (13, 39)")
    assert not (tmp_path / "no").exists()


def test_both_verbs_have_examples(senone):
    for verb in ("kmeans", "units"):
        code, out, _ = senone(verb, "--help")
        assert code == 0 and f"senone {verb} " in out.decode().split("Examples:")[1]


def test_a_missing_file_is_named(senone, tmp_path):
    clip = tmp_path / "clip.wav"
    Audio(torch.randn(1, 16000), 16000).save(clip)
    assert senone("kmeans", tmp_path, "-e", "mfcc", "--clusters", 4, "-o", tmp_path / "u")[0] == 0
    code, _, err = senone("units", tmp_path / "nowhere.wav", "-m", tmp_path / "u", "-o", tmp_path / "x")
    assert code == 2 and "nowhere.wav: No such file" in err and "Traceback" not in err
