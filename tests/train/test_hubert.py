"""Pre-training HuBERT on beeps with the units of their MFCC: it learns, resumes to the bit, and is guarded."""

import os
import socket
import subprocess
import sys
from dataclasses import field, make_dataclass, replace

import numpy as np
import pytest
import torch

import senone
from senone import config as configs
from senone import tree
from senone.audio import Audio
from senone.data.labels import LabelsError, Provenance, Writer
from senone.data.manifest import read
from senone.models.hubert import Config, base, large
from senone.train import RECIPES, TrainError, fit, recipe_for, run
from senone.train.hubert import HubertRecipe, prepare
from senone.train.teacher import resampled

KIND = make_dataclass("R", [("model", Config, field(default_factory=Config))], bases=(HubertRecipe,), frozen=True)
SIZES = "{channels: [8, 8, 8, 8, 8, 8, 8], width: 16, layers: 2, heads: 2, hidden: 32, pos_kernel: 8, pos_groups: 2}"
CALM = ["dropout", "attention_dropout", "input_dropout", "layer_drop"]
SCRIPT = "import sys; from senone.train import parallel; sys.path.insert(0, sys.argv[1]); import test_hubert as t;"
SCRIPT += "parallel.start(); t.train(sys.argv[2], sys.argv[3], sys.argv[4:]); parallel.stop()"
PITCHES = [200, 500, 1100, 2500]


@pytest.fixture(scope="module")
def beeps(tmp_path_factory):
    """Four recordings of tones, 0.2 s each, and two files of labels: at 50 Hz which tone, at 100 Hz the same twice."""
    folder = tmp_path_factory.mktemp("beeps")
    rng = np.random.default_rng(0)
    tones = [rng.integers(4, size=10 + 2 * i) for i in range(4)]
    for i, notes in enumerate(tones):
        pitches = np.repeat(np.array(PITCHES)[notes], 3200)
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitches) / 16000) + 0.01 * rng.standard_normal(len(pitches))
        Audio(torch.from_numpy(wave).float()[None], 16000).save(folder / f"{i}.wav")
    for name, rate, times in (("fifty", "50/1", 10), ("hundred", "100/1", 20)):
        with Writer(folder / name, Provenance("beeps", None, 4, "tones", rate, "pitch")) as writer:
            for cut, notes in zip(read(folder), tones, strict=True):
                writer.write(cut, np.repeat(notes, times).astype(np.int16))
    return folder


def recipe_of(beeps, settings=()):
    recipe = configs.override(KIND(), [f"data={beeps}", f"model={SIZES}", f"labels={beeps / 'fifty'}"])
    small = ["model.dim=8", "batch=6", "crop=1.5", "log_steps=1", "mask_length=4", "mask_p=0.12", "ema=0", "steps=8"]
    calm = [f"model.{name}=0" for name in CALM]
    return configs.override(
        recipe, [*small, *calm, "optim.encoder.warmup=4", "optim.encoder.lr=5e-3", "weights.penalty=1", *settings]
    )


def train(beeps, out, settings=(), until=None):
    """A run, which ends after batch `until` as if it had been stopped."""
    from pathlib import Path

    recipe = recipe_of(Path(beeps), settings)
    torch.manual_seed(recipe.seed)
    task, data = prepare(recipe)
    if until:
        stream = data.stream
        data.stream = lambda step: (batch for batch, _ in zip(stream(step), range(until), strict=False))
    return fit(task, data, recipe, out)


def players(out):
    return tree.load(out / "training" / "state.safetensors")["players"]["encoder"]


def test_it_learns_and_loads(beeps, tmp_path, log):
    model = senone.load(train(beeps, tmp_path, ["steps=60", "weights.unmasked=0.5"]))
    rows = log(tmp_path)
    assert rows[0]["bits"] > 2 and np.mean([row["bits"] for row in rows[-10:]]) < 1.7
    assert np.mean([row["accuracy"] for row in rows[-10:]]) > 0.4
    for row in rows:
        assert row["masked"] == pytest.approx(row["bits"] * np.log(2), rel=1e-5)
        assert 0 < row["unmasked"] < 5 and 1 <= row["perplexity"] <= 4.001
    assert model.config.classes == (4,) and model.features(torch.randn(1, 4000), layer=1).shape == (1, 12, 16)


def test_a_stopped_run_goes_on_to_the_bit(beeps, tmp_path, log):
    """With dropout and LayerDrop, whose draws are functions of the step as all others are."""
    more = [*(f"model.{name}=0.2" for name in CALM), "save_minutes=0"]
    train(beeps, tmp_path / "whole", more)
    train(beeps, tmp_path / "stopped", more, until=5)
    assert len(log(tmp_path / "stopped")) == 5
    train(beeps, tmp_path / "stopped", more)
    whole, resumed = players(tmp_path / "whole"), players(tmp_path / "stopped")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_equal_one(beeps, tmp_path, log):
    """Crops, masks and the division by masked frames do not depend on who computes which row."""
    train(beeps, tmp_path / "one", ["weights.unmasked=1"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", SCRIPT, os.path.dirname(__file__), beeps, tmp_path / "two", "weights.unmasked=1"]
    ranks = [subprocess.Popen(call, env=group | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert [process.wait(300) for process in ranks] == [0, 0]
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert a["masked"] == pytest.approx(b["masked"], rel=1e-4)
        assert a["norm/encoder"] == pytest.approx(b["norm/encoder"], rel=1e-4)


def test_several_sets_of_labels_and_other_clocks(beeps):
    """A frame takes the label under its middle, whatever the rate of the labels: both files say the same."""
    task, data = prepare(recipe_of(beeps, [f"labels={beeps / 'fifty'},{beeps / 'hundred'}"]))
    assert task.model.config.classes == (4, 4)
    batch = data.batch(1)
    assert batch["labels"].shape[:2] == (len(batch["wave"]), 2)
    assert torch.equal(batch["labels"][:, 0], batch["labels"][:, 1])
    assert agree(batch["wave"], batch["labels"][:, 0]) > 0.9


def test_a_crop_at_another_speed_keeps_its_labels(beeps):
    _, data = prepare(recipe_of(beeps, ["speed=0.2"]))
    batches = [data.batch(step) for step in range(8)]
    assert len({batch["wave"].shape[1] / batch["samples"] for batch in batches}) > 4
    heard = [(resampled(batch["wave"], batch["samples"]), batch["labels"][:, 0]) for batch in batches]
    assert min(agree(wave, labels) for wave, labels in heard) > 0.85
    assert max(agree(wave.flip(1), labels) for wave, labels in heard) < 0.6  # it would show


def agree(wave, labels):
    """How many frames have the pitch that their label says, by zero crossings."""
    pieces = wave.unfold(1, 400, 320)
    crossings = (pieces[:, :, 1:] * pieces[:, :, :-1] < 0).sum(2)
    pitch = (crossings[:, :, None].clamp(min=1).log() - (torch.tensor(PITCHES) / 20).log()).abs().argmin(2)
    return float((pitch == labels).float().mean())


def test_labels_that_do_not_fit_are_refused(beeps, tmp_path):
    with pytest.raises(TrainError, match="no labels: say labels=FILE"):
        prepare(recipe_of(beeps, ["labels=''"]))
    with pytest.raises(LabelsError, match="nowhere does not exist"):
        prepare(recipe_of(beeps, [f"labels={tmp_path / 'nowhere'}"]))
    with Writer(tmp_path / "same", Provenance("beeps", None, 4, "tones", "50/1", "pitch")) as writer:
        for cut in read(beeps):
            writer.write(cut, np.full(round(cut.seconds * 50), 3, np.int16))
    with pytest.raises(LabelsError, match="is constant: all labels are 3"):
        prepare(recipe_of(beeps, [f"labels={tmp_path / 'same'}"]))
    with pytest.raises(TrainError, match="unknown loss 'maskd' in weights"):
        prepare(recipe_of(beeps, ["weights.maskd=1"]))


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"accuracy": 0.99}, "accuracy is 0.990: labels are constant"),
        ({"perplexity": 1.5}, "collapse: predictions have a perplexity of 1.50"),
        ({"bits": 3.5}, "3.5 bits, where chance needs 2.0"),
    ],
)
def test_guards_stop_with_a_diagnosis(beeps, seen, said):
    task, _ = prepare(recipe_of(beeps))
    good = {"bits": 1.5, "accuracy": 0.5, "perplexity": 3.0}
    task._guard(good)
    with pytest.raises(TrainError, match=said):
        task._guard(good | seen)


def test_the_mini_net_starts_as_a_filter_bank():
    """Its first layer passes bands that rise on a mel scale; cosine and sine of a band, summed, tell its loudness."""
    from senone.models.hubert import Hubert

    model = Hubert(recipe_for("hubert", Hubert, ["recipe=mini"]).model)
    assert 5e6 < sum(value.numel() for value in model.parameters()) < 10e6 and model.hop == 320
    first = model.feature_extractor.conv_layers[0].conv.weight[:, 0]
    peaks = torch.fft.rfft(first, 4096).abs().argmax(1) * 16000 / 4096
    assert (peaks[2::2] >= peaks[:-2:2]).all() and peaks[0] < 150 and 7000 < peaks[-2] < 7900
    assert torch.allclose(first.norm(dim=1), torch.ones(len(first)), atol=1e-5)
    time, loud = torch.arange(16000) / 16000, []
    for hertz in (300.0, 2000.0):
        tone = torch.sin(2 * torch.pi * hertz * time)[None, None]
        y = torch.nn.functional.conv1d(tone, first[:, None], stride=10).square().mean(2)[0].view(-1, 2).sum(1)
        loud.append(float(peaks[2 * int(y.argmax())]))
    assert loud[0] == pytest.approx(300, rel=0.2) and loud[1] == pytest.approx(2000, rel=0.2)


@pytest.mark.parametrize(("name", "preset"), [("base", base), ("large", large)])
def test_recipes_are_the_papers(name, preset):
    from senone.models.hubert import Hubert

    recipe = recipe_for("hubert", Hubert, [f"recipe={name}"])
    with torch.device("meta"):
        assert replace(recipe.model, classes=()) == preset().config
    hours, updates, rate, clip = {"base": (0.78, 250_000, 5e-4, 10), "large": (2.0, 400_000, 1.5e-3, 1)}[name]
    encoder = recipe.optim["encoder"]
    assert recipe.batch / 3600 == pytest.approx(hours, abs=0.01) and recipe.steps == updates
    assert (encoder.lr, encoder.warmup, encoder.clip, encoder.schedule) == (rate, 32000, clip, "linear")
    assert (recipe.mask_p, recipe.mask_length, recipe.crop) == (0.08, 10, 15.625)
    assert recipe.weights == {"masked": 1, "unmasked": 0, "penalty": 10}
    assert RECIPES.joinpath(f"hubert-{name}.yaml").exists()


def test_the_command_line_trains_it(beeps, tmp_path):
    """By the same `run` as every system."""
    sizes = [f"model={SIZES}", "model.dim=8", "batch=3", "crop=1.5", "steps=2", "mask_length=4"]
    assert run("hubert", [f"data={beeps}", f"labels={beeps / 'fifty'}", *sizes], tmp_path) == tmp_path / "model"
    assert senone.load(tmp_path / "model").config.classes == (4,)
