"""Pre-training wav2vec 2.0 on beeps: it learns, goes on exactly where it stopped, and says so when it collapses."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import field, make_dataclass

import numpy as np
import pytest
import torch

import senone
from senone import config as configs
from senone.audio import Audio
from senone.models.wav2vec2 import Config, Wav2Vec2, base, large_ls960, large_lv60
from senone.quantize.gumbel import temperature
from senone.train import RECIPES, TrainError, fit
from senone.train.wav2vec2 import Wav2Vec2Recipe, prepare

KIND = make_dataclass("R", [("model", Config, field(default_factory=Config))], bases=(Wav2Vec2Recipe,), frozen=True)
SIZES = "{channels: [8, 8, 8, 8, 8, 8, 8], width: 16, layers: 2, heads: 2, hidden: 32, pos_kernel: 8, pos_groups: 2}"
CALM = ["dropout", "attention_dropout", "input_dropout", "feature_dropout", "layer_drop"]
SCRIPT = "import sys; from senone.train import parallel; sys.path.insert(0, sys.argv[1]); import test_wav2vec2 as t;"
SCRIPT += "parallel.start(); t.train(sys.argv[2], sys.argv[3], sys.argv[4:]); parallel.stop()"


@pytest.fixture(scope="module")
def beeps(tmp_path_factory):
    """Four recordings of 2 to 3 s: tones of a tenth of a second, of four pitches, in random order."""
    folder = tmp_path_factory.mktemp("beeps")
    rng = np.random.default_rng(0)
    for i in range(4):
        pitches = np.repeat(rng.choice([200, 500, 1100, 2500], 20 + 3 * i), 1600)
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitches) / 16000) + 0.01 * rng.standard_normal(len(pitches))
        Audio(torch.from_numpy(wave).float()[None], 16000).save(folder / f"{i}.wav")
    return folder


def recipe_of(beeps, settings=()):
    recipe = configs.override(KIND(), [f"data={beeps}", f"model={SIZES}"])
    small = ["model.entries=8", "model.code_dim=8", "model.dim=8", "negatives=10", "batch=6", "crop=1.5", "log_steps=1"]
    calm = [f"model.{name}=0" for name in CALM]
    rates = ["optim.encoder.warmup=4", "optim.encoder.lr=3e-3", "mask_length=4", "mask_p=0.12", "ema=0"]
    return configs.override(recipe, [*small, *calm, *rates, "steps=8", *settings])


def train(beeps, out, settings=(), until=None):
    """A run, which ends after batch `until` as if it had been stopped."""
    recipe = recipe_of(beeps, settings)
    torch.manual_seed(recipe.seed)
    task, data = prepare(recipe)
    if until:
        stream = data.stream
        data.stream = lambda step: (batch for batch, _ in zip(stream(step), range(until), strict=False))
    return fit(task, data, recipe, out)


def test_it_learns_and_loads(beeps, tmp_path, log):
    model = senone.load(train(beeps, tmp_path, ["steps=40"]))
    rows = log(tmp_path)
    chance = np.log2(11)
    assert np.mean([row["bits"] for row in rows[:4]]) > chance
    assert np.mean([row["bits"] for row in rows[-10:]]) < 0.9 * chance
    assert np.mean([row["accuracy"] for row in rows[-10:]]) > 0.3
    for row in rows:
        assert 2 <= row["code_perplexity"] <= 16 and 2 <= row["prob_perplexity"] <= 16 and 0 <= row["same"] < 1
        assert row["contrastive"] == pytest.approx(row["bits"] * np.log(2), rel=1e-5)
        assert row["diversity"] == pytest.approx(1 - row["prob_perplexity"] / 16, rel=1e-5)
    assert model.config.entries == 8 and model.features(torch.randn(1, 4000)).shape == (1, 12, 16)


def test_a_stopped_run_goes_on_to_the_bit_and_so_does_the_temperature(beeps, tmp_path, weights, log):
    """With dropout and LayerDrop, whose draws are functions of the step as all others are."""
    noisy = [f"model.{name}=0.2" for name in CALM]
    more = [*noisy, "save_minutes=0", "temperature=[2.0, 0.5, 0.8]"]
    train(beeps, tmp_path / "whole", more)
    train(beeps, tmp_path / "stopped", more, until=5)
    assert len(log(tmp_path / "stopped")) == 5
    train(beeps, tmp_path / "stopped", more)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    said = [row["temperature"] for row in log(tmp_path / "stopped")]
    assert said == [temperature(step, 2.0, 0.5, 0.8) for step in range(8)] and said[6] > 0.5 == said[7]


def test_two_processes_equal_one(beeps, tmp_path, weights, log):
    """Masks, noise, distractors and the diversity of the whole batch do not depend on who computes which row."""
    train(beeps, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", SCRIPT, os.path.dirname(__file__), beeps, tmp_path / "two"]
    ranks = [subprocess.Popen(call, env=group | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert [process.wait(300) for process in ranks] == [0, 0]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    mean = [name for name in one if name.endswith("/exp_avg") and "k_proj/bias" not in name]  # 0 but for rounding
    for name in mean:
        assert (one[name] - two[name]).abs().max() < 1e-3 * one[name].abs().max() + 1e-9, name
    same = ["contrastive", "diversity", "penalty", "norm/encoder"]
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert {name: a[name] for name in same} == pytest.approx({name: b[name] for name in same}, rel=1e-4)


def test_the_losses_are_means_over_masked_frames(beeps):
    """The same batch twice over: the same losses, but for fresh noise, which here is the same, too."""
    task, data = prepare(recipe_of(beeps))
    batch = data.batch(3)
    double = {key: torch.cat([value, value]) if torch.is_tensor(value) else value for key, value in batch.items()}
    once, twice = task.losses(batch, "encoder"), task.losses(double, "encoder")
    assert once.keys() == task.recipe.weights.keys()
    assert {k: v.item() for k, v in once.items()} == pytest.approx({k: v.item() for k, v in twice.items()}, rel=1e-4)
    again = task.losses(data.batch(3), "encoder")
    assert all(torch.equal(once[key], again[key]) for key in once)


def good():
    return {"bits": 2.0, "accuracy": 0.5, "same": 0.1, "code_perplexity": 9.0}


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"code_perplexity": 2.1}, "collapse: of 16 entries about 2.1 are used; raise weights.diversity"),
        ({"same": 0.95}, "collapse: 95% of the distractors equal the target"),
        ({"accuracy": 0.99}, "accuracy is 0.990: the codes tell where a frame is"),
        ({"bits": 5.0}, "5.0 bits, where chance needs 3.5: lower the rate"),
    ],
)
def test_guards_stop_with_a_diagnosis(beeps, seen, said):
    task, _ = prepare(recipe_of(beeps))
    task._guard(good())
    with pytest.raises(TrainError, match=said):
        task._guard(good() | seen)


def test_a_collapsed_quantizer_stops_the_run_once_it_had_time(beeps):
    task, data = prepare(recipe_of(beeps))
    with torch.no_grad():
        task.model.quantizer.weight_proj.weight.zero_()
        task.model.quantizer.weight_proj.bias[::8] = 50.0
    task.losses(data.batch(0) | {"step": 10}, "encoder")
    assert task.metrics()["code_perplexity"] == pytest.approx(2) and task.metrics() == {}
    task.losses(data.batch(0) | {"step": 1000}, "encoder")
    with pytest.raises(TrainError, match="collapse: of 16 entries about 2.0 are used"):
        task.metrics()


def test_bad_words_are_named(beeps):
    with pytest.raises(TrainError, match="model.entries is 0"):
        prepare(recipe_of(beeps, ["model.entries=0"]))
    with pytest.raises(TrainError, match="unknown loss 'features_pen' in weights; known: contrastive, diversity"):
        prepare(recipe_of(beeps, ["weights.features_pen=1"]))


def settings_of(table, above=""):
    """A recipe's file as settings `a.b=c`."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from settings_of(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={json.dumps(value)}"


@pytest.mark.parametrize(("name", "preset"), [("base", base), ("large", large_ls960), ("large-lv60", large_lv60)])
def test_recipes_are_the_papers(name, preset):
    """Of the models the presets, of the runs the numbers of §4.2; warm-up is 8 % of the updates."""
    recipe = configs.override(KIND(), list(settings_of(configs.read_yaml(RECIPES / f"wav2vec2-{name}.yaml"))))
    with torch.device("meta"):
        assert recipe.model == preset().config
    hours, updates = {"base": (1.56, 400_000), "large": (2.67, 250_000), "large-lv60": (2.67, 600_000)}[name]
    encoder = recipe.optim["encoder"]
    assert recipe.batch / 3600 == pytest.approx(hours, abs=0.01) and recipe.steps == updates
    assert encoder.warmup == 0.08 * updates and encoder.rate(updates, updates, updates) == 0
    assert encoder.lr == (5e-4 if name == "base" else 3e-4) and encoder.schedule == "linear" and not encoder.clip
    assert recipe.weights == {"contrastive": 1, "diversity": 0.1, "penalty": 0 if name == "large-lv60" else 10}
    assert recipe.temperature == (2.0, 0.5 if name == "base" else 0.1, 0.999995)


def test_the_mini_recipe_has_5_million_parameters_and_cools_down_in_time():
    recipe = configs.override(KIND(), list(settings_of(configs.read_yaml(RECIPES / "wav2vec2-mini.yaml"))))
    with torch.device("meta"):
        assert 5e6 < sum(parameter.numel() for parameter in Wav2Vec2(recipe.model).parameters()) < 6e6
    start, stop, factor = recipe.temperature
    assert 0.6 < np.log(stop / start) / np.log(factor) / recipe.steps < 0.75
