"""Training codecs: they learn, resume to the bit, two processes equal one, and a codec of one's own trains as well."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import senone
from senone import config as configs
from senone import tree
from senone.config import ConfigError
from senone.errors import SenoneError
from senone.loss import adversarial, spectral
from senone.models.soundstream import SoundStream
from senone.train import RECIPES, SYSTEMS, CodecTask, TrainError, recipe_for, run
from senone.train.checkpoint import Run
from senone.train.loop import _step

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from senone.train import run; run(sys.argv[1], sys.argv[3:], sys.argv[2])"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def task_of(words, *more) -> tuple[CodecTask, dict]:
    recipe = recipe_for("soundstream", SoundStream, [*words, *more])
    torch.manual_seed(0)
    task = CodecTask(SoundStream(recipe.model), recipe)
    batch = {"wave": torch.randn(4, 2048) * 0.1, "chance": torch.rand(4, 4), "step": 5}
    return task, batch | {"target": batch["wave"]}


def test_a_codec_learns_and_loads(folder, words, tmp_path, log):
    more = [f"noise={folder / 'noise'}", "steps=60", "adversarial_from=50", "log_steps=10", "optim.generator.lr=3e-3"]
    judges = "discriminators=[{kind: stft, width: 2, n_fft: 256}, {kind: wave, width: 1, scales: 2}]"
    model = senone.load(run("soundstream", [*words, *more, judges], tmp_path))
    rows = log(tmp_path)
    assert rows[-2]["mel"] < 0.8 * rows[0]["mel"]
    assert "disc" not in rows[0] and {"disc", "adv", "feat"} <= rows[-1].keys()
    assert 0 < rows[-1]["used/0"] <= 1 and 1 <= rows[-1]["perplexity/2"] <= 16
    audio = senone.Audio.read(folder / "sound" / "110.wav")
    codes = model.encode(audio, denoise=True)
    assert model.decode(codes)[0].wave.shape == audio.wave.shape


def test_frozen_parts_stay_as_they_are(words, tmp_path):
    begun = run("soundstream", [*words, "steps=2"], tmp_path / "begun")
    more = [f"init={begun}", "freeze=[encoder, embed, quantizer]", "steps=3", "continuous=0", "ema=0"]
    before, after = (
        senone.load(model).state_dict() for model in (begun, run("soundstream", [*words, *more], tmp_path))
    )
    same = {name.split(".")[0] for name in before if torch.equal(before[name], after[name])}
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"encoder", "embed", "quantizer"} <= same - moved and "decoder" in moved
    with pytest.raises(TrainError, match="freeze: unknown part of SoundStream 'encodr'; did you mean 'encoder'"):
        task_of(words, "freeze=[encodr]")


def test_a_denoiser_learns_beside_a_codec_that_stays_as_it_is(folder, words, tmp_path, log):
    begun = run("soundstream", [*words, "steps=2"], tmp_path / "begun")
    parts = ["denoiser=true", "model.denoiser=8", "freeze=[encoder, film, embed, quantizer, decoder]"]
    more = [f"init={begun}", f"noise={folder / 'noise'}", "noisy=1", "ema=0", "steps=300", "log_steps=50"]
    out = run("soundstream", [*words, *parts, *more, "optim.generator.lr=1e-2"], tmp_path / "out")
    first = log(tmp_path / "out")[0]
    assert "clean" in first and "mel" not in first
    voice = senone.Audio.read(folder / "sound" / "150.wav").wave[None]
    noisy = voice + 0.1 * torch.randn(voice.shape, generator=torch.Generator().manual_seed(1))
    old, new = senone.load(begun), senone.load(out)
    with torch.no_grad():
        off, on = ((model.analyse(noisy, denoise=True)[0] - model.analyse(voice)[0]).norm() for model in (old, new))
    assert on < 0.8 * off
    before, after = old.state_dict(), new.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"denoiser"}
    assert after["denoiser.film.weight"].any()
    with pytest.raises(TrainError, match="denoiser: nothing to learn from: say noise="):
        task_of(words, "denoiser=true")


def test_kill_and_resume_equal_a_run_without(words, tmp_path, weights, log):
    more = [*words, "steps=40", "save_minutes=0"]
    run("soundstream", [*words, "steps=40"], tmp_path / "whole")
    call = [sys.executable, "-c", SCRIPT, "soundstream", tmp_path / "killed", *more]
    killed = subprocess.Popen(call, env=ENVIRONMENT)
    try:
        until = time.monotonic() + 600
        while not (log(tmp_path / "killed") and log(tmp_path / "killed")[-1]["step"] >= 20):
            assert killed.poll() is None and time.monotonic() < until, "it ended, or hangs, before step 20"
            time.sleep(0.01)
    finally:
        killed.kill()
        killed.wait()
    assert 19 <= tree.load(tmp_path / "killed" / "training" / "state.safetensors")["step"] < 40
    run("soundstream", more, tmp_path / "killed")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == resumed.keys() and any("/optim/discriminator" in name for name in whole)
    assert not [name for name in whole if not torch.equal(whole[name], resumed[name])]


def one_and_two(settings: list[str], folder: Path) -> None:
    """A run of one process below `folder`, and of two."""
    run("soundstream", settings, folder / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = ENVIRONMENT | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    call = [sys.executable, "-c", SCRIPT, "soundstream", folder / "two", *settings]
    ranks = [subprocess.Popen(call, env=group | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert [process.wait(300) for process in ranks] == [0, 0]


def test_two_processes_equal_one_at_the_denoiser(folder, words, tmp_path, log):
    one_and_two([*words, "denoiser=true", "model.denoiser=8", f"noise={folder / 'noise'}", "steps=8"], tmp_path)
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert [b["clean"], b["norm/generator"]] == pytest.approx([a["clean"], a["norm/generator"]], rel=1e-4)


def test_two_processes_equal_one(words, tmp_path, weights, log):
    one_and_two([*words, "steps=8"], tmp_path)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    apart = {name: float((one[name].double() - two[name].double()).abs().max()) for name in one}
    for name in (name for name in one if name.startswith(("/mean/", "/players/generator/"))):
        assert apart[name] < 1e-5 * max(1.0, float(one[name].abs().max())), name
    # of the discriminator the gradients, which here are small differences: Adam makes whole steps of rounding errors
    mean = [name for name in one if name.startswith("/optim/") and name.endswith("/exp_avg")]
    largest = max(float(one[name].abs().max()) for name in mean if "discriminator" in name)
    assert max(apart[name] for name in mean if "discriminator" in name) < 0.01 * largest
    same = {"mel", "stft", "commit", "disc", "adv", "feat", "norm/generator"}
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert [name for name in same & a.keys() if a[name] != pytest.approx(b[name], rel=1e-4, abs=1e-6)] == []


def test_a_codec_of_ones_own(words, tmp_path, log):
    settings = [words[0], "crop=0.5", "batch=2", "steps=12", "log_steps=4", "model.dim=16", "optim.generator.warmup=2"]
    system = f"{ROOT / 'examples' / 'mycodec.py'}:MyCodec"
    model = senone.load(f"{system}@{run(system, settings, tmp_path)}")
    assert model.config.dim == 16
    assert log(tmp_path)[-1]["mel"] < log(tmp_path)[0]["mel"]


def test_the_codec_runs_once_a_step_and_players_keep_to_themselves(words, monkeypatch):
    task, batch = task_of(words)
    state, runs, held = Run(task.players, task.recipe.optim), [], []
    task.model.register_forward_hook(lambda *_: runs.append(1))
    judge, generator = task.players["discriminator"], adversarial.generator

    def listening(said, kind):
        held.append(not any(parameter.requires_grad for parameter in judge.parameters()))
        return generator(said, kind)

    monkeypatch.setattr(adversarial, "generator", listening)
    before = {name: [value.clone() for value in module.parameters()] for name, module in task.players.items()}
    values, stop = _step(task, batch, task.recipe, state, torch.device("cpu"), threading.Event())
    assert len(runs) == 1 and held == [True] and not stop
    assert values.keys() >= {"disc", "mel", "stft", "commit", "adv", "feat", "norm/generator", "norm/discriminator"}
    for name, module in task.players.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], module.parameters(), strict=True))
        assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_generator_hears_the_moved_discriminator(words):
    task, batch = task_of(words)
    first = task.losses(dict(batch), "generator")["adv"].item()
    task.losses(batch, "discriminator")
    with torch.no_grad():
        for parameter in task.players["discriminator"].parameters():
            parameter.zero_()
    assert task.losses(batch, "generator")["adv"].item() == 1.0 != first  # max(0, 1 - 0)


def test_a_weight_of_zero_computes_nothing(words, monkeypatch):
    task, batch = task_of(words, "weights.mel=0", "weights.stft=0", "weights.adv=0", "weights.feat=0", "weights.wave=2")

    def never(*_):
        raise AssertionError("computed in vain")

    for module, name in ((spectral, "multiscale_mel"), (spectral, "complex_stft"), (adversarial, "generator")):
        monkeypatch.setattr(module, name, never)
    assert task.losses(batch, "generator").keys() == {"wave", "commit"}


def test_adversaries_wait_for_their_step(words):
    task, batch = task_of(words)
    early = batch | {"step": 2}
    assert task.losses(early, "discriminator") == {}
    assert not {"adv", "feat"} & task.losses(early, "generator").keys()
    assert "disc" in task.losses(batch | {"step": 3}, "discriminator")


def test_rows_use_a_random_number_of_levels(words):
    task, batch = task_of(words, "dropout=0.5")
    chance = torch.rand(4000, 4)
    wave = torch.zeros(4000, 80)
    seen = []
    task.model.forward = lambda wave, levels, **_: seen.append(levels) or senone.tokenizer.Output(wave, wave, {})
    task._tally = lambda *_: None
    task._forward(batch | {"wave": wave, "chance": chance})
    share = [float((seen[0] == level).float().mean()) for level in (1, 2, 3)]
    assert share == pytest.approx([1 / 6, 1 / 6, 2 / 3], abs=0.03)


def test_start_from_another_run_or_model(words, tmp_path, weights):
    run("soundstream", [*words, "steps=6"], tmp_path / "old")
    for source in (tmp_path / "old", tmp_path / "old" / "model"):
        out = tmp_path / source.name
        still = [f"optim.{player}.{key}=0" for player in ("generator", "discriminator") for key in ("lr", "final")]
        run("soundstream", [*words, *still, "steps=1", "adversarial_from=0", f"init={source}"], out / "new")
        old, new = weights(tmp_path / "old"), weights(out / "new")
        learned = [name for name in old if name.startswith("/mean/") and "quantizer" not in name]
        assert all(torch.equal(old[name], new[name]) for name in learned)
        judges = [torch.equal(old[name], new[name]) for name in old if name.startswith("/players/discriminator")]
        assert all(judges) == (source == tmp_path / "old")


def test_another_model_in_the_same_folder_is_refused(words, tmp_path):
    run("soundstream", [*words, "steps=1"], tmp_path)
    with pytest.raises(TrainError, match="has model.levels=3, the recipe says 2: choose another output folder"):
        run("soundstream", [*words, "steps=2", "model.levels=2"], tmp_path)


@pytest.mark.parametrize(
    ("system", "settings", "said"),
    [
        ("soundstraem", [], "unknown system 'soundstraem'; did you mean 'soundstream'"),
        ("soundstream", [], "no data: say data="),
        ("soundstream", ["recipe=mimi"], "unknown recipe of soundstream 'mimi'; did you mean 'mini'"),
        ("soundstream", ["model.levles=3"], "unknown config key 'model.levles'; did you mean 'levels'"),
        ("soundstream", ["weights.mell=3", "data=x"], "unknown loss 'mell' in weights; known: adv, commit"),
        ("soundstream", ["optim.generator.lrr=3"], "unknown config key 'optim.generator.lrr'; did you mean"),
        ("soundstream", ["optim.judge.lr=3"], "unknown config key 'optim.judge'; known keys: generator, discriminator"),
        ("soundstream", ["stepps=3"], "unknown config key 'stepps'; did you mean 'steps'"),
        ("soundstream", ["data=nowhere"], "cannot read nowhere: No such file"),
        ("soundstream", ["recipe=nowhere.yaml"], "cannot read nowhere.yaml"),
        ("spectral", ["noise=x", "data=x"], "Spectral cannot remove noise: leave noise= out"),
    ],
)
def test_bad_words_are_named(system, settings, said, tmp_path):
    with pytest.raises(SenoneError, match=said):
        run(system, settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_short_and_fit(path):
    system, _, name = path.stem.partition("-")
    kind = SYSTEMS.get(system)
    recipe = recipe_for(system, kind, [f"recipe={name}"])
    assert len(path.read_text().splitlines()) <= 25
    plain = recipe_for(system, kind, [])
    changed = configs.read_yaml(path)
    same = [key for key, value in changed.items() if configs.to_dict(recipe)[key] == configs.to_dict(plain)[key]]
    assert not same, f"{same} repeat the defaults"
    with pytest.raises(ConfigError, match="batch"):
        recipe_for(system, kind, [f"recipe={name}", "batch=many"])
