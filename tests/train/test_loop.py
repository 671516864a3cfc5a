"""The loop by itself, on a task of two numbers."""

import os
import signal
from dataclasses import dataclass, replace
from itertools import count

import pytest
import torch
from torch import nn

from senone import hub, tree
from senone.audio import Audio
from senone.train.loop import fit
from senone.train.optim import Optimiser, average
from senone.train.task import Recipe, TrainError


@dataclass(frozen=True)
class Config:
    start: float = 4.0


class Point(nn.Module, hub.Pretrained):
    Config, model_type = Config, "point"

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config, self.place = config, nn.Parameter(torch.tensor(config.start))
        self.register_buffer("visits", torch.zeros((), dtype=torch.long))


class Pursuit:
    """The hunter goes where the hare is, the hare away from where the hunter was; `at` may interfere."""

    def __init__(self, at=None) -> None:
        self.players = {"hunter": Point(), "hare": Point(Config(1.0))}
        self.at, self.calls = at or {}, []

    def losses(self, batch, player):
        hunter, hare = (self.players[name].place for name in ("hunter", "hare"))
        self.calls.append((batch["step"], player))
        if player == "hare":
            return {"flee": -(hare - hunter.detach()).abs() + hare.square()} if batch["step"] >= 2 else {}
        bad = self.at.get(batch["step"], lambda: None)() or 0.0
        noise = torch.randn(()) * 0.1  # random numbers must not undo resuming
        return {"near": (hunter - hare).square(), "jitter": (hunter * noise).abs() + bad}

    def metrics(self):
        return {"places": float(self.players["hunter"].place.detach())}

    def examples(self, batch):
        return {"click": Audio(torch.full((1, 8), float(self.players["hunter"].place.detach()) / 100), 8000)}


class Steps:
    seconds, skipped = 1.0, {"bad.wav": "bad.wav holds no samples"}

    def batch(self, step):
        return {"step": step, "wave": torch.zeros(1, 8)}

    def stream(self, step=0):
        return (self.batch(i) for i in count(step))


RECIPE = Recipe(
    steps=10, log_steps=4, optim={"hunter": Optimiser(0.1, warmup=2), "hare": Optimiser(0.05, decay=0.1, warmup=2)}
)


def state(out):
    return tree.load(out / "training" / "state.safetensors")


def equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_what_a_run_leaves(tmp_path, capsys, log):
    task = Pursuit()
    assert fit(task, Steps(), RECIPE, tmp_path) == tmp_path / "model"
    assert task.calls[:3] == [(0, "hare"), (0, "hunter"), (1, "hare")]  # the model moves last
    end = state(tmp_path)
    assert (end["step"], end["moves"]) == (10, {"hunter": 10, "hare": 8})
    exported = Point.from_pretrained(tmp_path / "model")
    assert torch.equal(exported.place, end["mean"]["place"])
    assert not torch.equal(exported.place, end["players"]["hunter"]["place"])
    rows = log(tmp_path)
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert rows[0].keys() == {
        "step", "near", "jitter", "norm/hunter", "flee", "norm/hare", "lr/hunter", "lr/hare", "speed", "places"
    }  # fmt: skip
    assert (tmp_path / "examples" / "click.wav").exists()
    said = capsys.readouterr().err
    assert "10/10" in said and said.count("skipped bad.wav: bad.wav holds no samples") == 1


def test_it_stops_when_told_and_goes_on_to_the_bit(tmp_path, capsys):
    fit(Pursuit(), Steps(), RECIPE, tmp_path / "whole")
    for number, step in ((signal.SIGTERM, 3), (signal.SIGINT, 5)):
        before = signal.getsignal(number)
        fit(Pursuit({step: lambda n=number: os.kill(os.getpid(), n)}), Steps(), RECIPE, tmp_path / "parts")
        assert state(tmp_path / "parts")["step"] == step + 1 and signal.getsignal(number) is before
        assert f"stopped at step {step + 1}; the same command goes on" in capsys.readouterr().err
    fit(Pursuit(), Steps(), RECIPE, tmp_path / "parts")
    assert equal(state(tmp_path / "whole"), state(tmp_path / "parts"))
    again = Pursuit()
    fit(again, Steps(), RECIPE, tmp_path / "parts")  # nothing left to do
    assert not again.calls


def test_a_log_forgets_what_is_done_again(tmp_path, log):
    fit(Pursuit({3: lambda: os.kill(os.getpid(), signal.SIGTERM)}), Steps(), RECIPE, tmp_path)
    with open(tmp_path / "log.jsonl", "a") as file:  # as a kill leaves it
        file.write('{"step": 8, "near": 1.0}\n{"step": 9, "ne')
    fit(Pursuit(), Steps(), RECIPE, tmp_path)
    assert [row["step"] for row in log(tmp_path)] == [4, 8, 10] and log(tmp_path)[1]["near"] != 1.0


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    often = replace(RECIPE, save_minutes=0)
    with pytest.raises(TrainError, match="loss 'jitter' is nan at step 6: training stops"):
        fit(Pursuit({6: lambda: float("nan")}), Steps(), often, tmp_path)
    assert state(tmp_path)["step"] == 6 and torch.isfinite(state(tmp_path)["mean"]["place"])


def test_a_gradient_that_is_no_number_stops_the_run(tmp_path):
    task = Pursuit()
    task.players["hunter"].place.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainError, match="the gradient of 'hunter' is (inf|nan) at step 0"):
        fit(task, Steps(), RECIPE, tmp_path)


def test_weights_scale_their_losses(tmp_path, log):
    alone = replace(RECIPE, weights={"near": 0.0, "jitter": 0.0, "flee": 0.0}, steps=5)
    fit(Pursuit(), Steps(), alone, tmp_path / "still")
    assert state(tmp_path / "still")["players"]["hunter"]["place"] == 4.0
    for weight in (1.0, 10.0):
        clip = {"hunter": replace(RECIPE.optim["hunter"], clip=1e9), "hare": RECIPE.optim["hare"]}
        fit(Pursuit(), Steps(), replace(RECIPE, weights={"near": weight}, optim=clip, steps=1), tmp_path / f"{weight}")
    norms = [log(tmp_path / name)[0]["norm/hunter"] for name in ("1.0", "10.0")]
    assert norms[1] / norms[0] == pytest.approx(10, rel=0.05)  # jitter is small beside it


def test_a_player_without_optimiser_is_named(tmp_path):
    with pytest.raises(TrainError, match="no 'optim.hare'"):
        fit(Pursuit(), Steps(), replace(RECIPE, optim={"hunter": Optimiser()}), tmp_path)


def test_learning_rate_rises_and_falls():
    rule = Optimiser(lr=1.0, warmup=10, final=0.1)
    rates = [rule.rate(step, 100, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(rule.rate(9, 100, 99))
    assert rates[50] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rule.rate(60, 100, 0) == pytest.approx(0.1)  # who comes late warms up as well


def test_the_mean_follows_the_model():
    model, mean = Point(Config(1.0)), Point(Config(0.0))
    model.visits.fill_(7)
    average(mean, model, 0, 0.999)
    assert mean.place.item() == pytest.approx(0.9) and mean.visits == 7  # early: 1 - 1/10
    average(mean, model, 10**9, 0.5)
    assert mean.place.item() == pytest.approx(0.95)
