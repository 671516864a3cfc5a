"""The training loop. Stop it at any moment; the same call goes on where it was, to the sample."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from senone import config as configs
from senone.train import parallel
from senone.train.checkpoint import Run
from senone.train.log import Log
from senone.train.task import Batch, Recipe, Task, TrainError


class Data(Protocol):
    """Batches that are a function of the step; seconds of sound in each; files that could not be read, and why."""

    @property
    def seconds(self) -> float: ...
    @property
    def skipped(self) -> dict[str, str]: ...
    def batch(self, step: int) -> Batch: ...
    def stream(self, step: int = 0) -> Iterator[Batch]: ...


def fit(task: Task, data: Data, recipe: Recipe, out: str | Path) -> Path:
    """Train to `recipe.steps`, or until SIGTERM or SIGINT, and return the folder of the averaged model.

    Below `out`: model/ (for `senone.load`), training/state.safetensors (to go on from, with discriminators and
    optimisers), log.jsonl, examples/, tensorboard/. Raises TrainError where a number is not finite, or a name unknown.
    """
    out, device = Path(out), parallel.start()
    for name, module in task.players.items():
        if name not in recipe.optim:
            raise TrainError(f"the recipe has no 'optim.{name}'")
        module.to(device).train()
    run = Run(task.players, recipe.optim)
    path = out / "training" / "state.safetensors"
    if path.exists():
        run.load(path, configs.to_dict(recipe))
    elif recipe.init:
        run.start_from(recipe.init)
    first = parallel.rank() == 0
    log = None
    if first:
        out.mkdir(parents=True, exist_ok=True)
        log = Log(out, run.step, recipe.steps)
        if run.step:
            log.say(f"going on from step {run.step} of {out}")
    try:
        with _signals() as stopped:
            _steps(task, data, recipe, run, out, log, device, stopped)
    finally:
        if log:
            log.close()
    return out / "model"


def _steps(
    task: Task,
    data: Data,
    recipe: Recipe,
    run: Run,
    out: Path,
    log: Log | None,
    device: torch.device,
    stopped: threading.Event,
) -> None:
    path, plain = out / "training" / "state.safetensors", configs.to_dict(recipe)
    seen: dict[str, list[float]] = {}
    noted, logged, since, saved = 0, run.step, time.monotonic(), time.monotonic()
    for batch in data.stream(run.step):
        if run.step >= recipe.steps:
            break
        _seed(recipe.seed, run.step)
        batch = {key: _move(value, device) for key, value in batch.items()}
        values, stop = _step(task, batch, recipe, run, device, stopped)
        run.average(recipe.ema)
        run.step += 1
        if log:
            log.move(run.step)
            for key, value in values.items():
                seen.setdefault(key, []).append(value)
        stop = stop or run.step == recipe.steps
        if log and (run.step - logged >= recipe.log_steps or stop):
            count, wall = run.step - logged, time.monotonic() - since
            row = {key: sum(some) / len(some) for key, some in seen.items()}
            row |= {f"lr/{name}": optim.param_groups[0]["lr"] for name, optim in run.optim.items()}
            row |= {"speed": data.seconds * count / wall} | task.metrics()
            log.numbers(run.step, row)
            seen, logged, since = {}, run.step, time.monotonic()
            for file, why in list(data.skipped.items())[noted:]:
                log.say(f"skipped {file}: {why}")
            noted = len(data.skipped)
        if log and (stop or time.monotonic() - saved > 60 * recipe.save_minutes):
            began = time.monotonic()
            run.save(path, plain)
            _export(task, data, run, out, log, device)
            saved = time.monotonic()
            since += saved - began  # speed is that of training
        if stop:
            if log and run.step < recipe.steps:
                log.say(f"stopped at step {run.step}; the same command goes on from there")
            break


def _step(
    task: Task, batch: Batch, recipe: Recipe, run: Run, device: torch.device, stopped: threading.Event
) -> tuple[dict[str, float], bool]:
    """Move every player once: the values to log, and whether some process was told to stop."""
    names, values, moved = [], [], []
    for name in reversed(task.players):
        module, optim, rule = task.players[name], run.optim[name], recipe.optim[name]
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            losses = task.losses(batch, name)
        if not losses:
            continue
        total = torch.stack([recipe.weights.get(key, 1.0) * loss.float() for key, loss in losses.items()]).sum()
        optim.zero_grad(set_to_none=True)
        total.backward()
        parallel.mean_gradients(module)
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), rule.clip or float("inf"))
        for group in optim.param_groups:
            group["lr"] = rule.rate(run.step, recipe.steps, run.moves[name])
        optim.step()
        run.moves[name] += 1
        own = [parameter for parameter in module.parameters() if parameter.requires_grad]  # not what a model froze
        moved += [parameter.requires_grad_(False) for parameter in own]  # who has moved is only listened to
        names += [*losses, f"norm/{name}"]
        values += [*(loss.detach().float() for loss in losses.values()), norm.detach()]
    for parameter in moved:
        parameter.requires_grad_(True)
    told = torch.tensor(float(stopped.is_set()), device=device)
    *numbers, told = parallel.mean(torch.stack([*values, told])).tolist()  # the one question to a GPU in a step
    for name, value in zip(names, numbers, strict=True):
        if not np.isfinite(value):
            what = f"the gradient of '{name[5:]}'" if name.startswith("norm/") else f"loss '{name}'"
            raise TrainError(f"{what} is {value} at step {run.step}: training stops, the last checkpoint is kept")
    return dict(zip(names, numbers, strict=True)), told > 0


def _export(task: Task, data: Data, run: Run, out: Path, log: Log, device: torch.device) -> None:
    """The averaged model, ready for `senone.load`, and what it sounds like."""
    run.mean.save_pretrained(out / "model", {"step": str(run.step)})  # type: ignore[operator]
    live = task.players[run.model]
    task.players[run.model] = run.mean
    try:
        with torch.no_grad():
            batch = {key: _move(value, device) for key, value in data.batch(0).items()}
            log.sounds(run.step, task.examples(batch))
    finally:
        task.players[run.model] = live


def _seed(seed: int, step: int) -> None:
    """Make all random numbers of this step a function of the step."""
    torch.manual_seed(seed * 1_000_003 + step)
    np.random.seed((seed * 1_000_003 + step) % 2**32)
    random.seed(seed * 1_000_003 + step)


def _move(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second one acts as ever."""
    stopped = threading.Event()
    before: dict[int, Any] = {}

    def stop(number: int, _: Any) -> None:
        stopped.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before |= {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
