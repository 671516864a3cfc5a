"""Pre-training HuBERT: predict the units of masked frames (2106.07447 §II-B to D), guarded against collapse."""

from dataclasses import dataclass, field, replace
from math import log, log2
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from senone.audio import Audio
from senone.data.buckets import Buckets
from senone.data.labels import Labels
from senone.data.loader import Store
from senone.data.manifest import Cut, read
from senone.models.hubert import Hubert, Predicted
from senone.nn.mask import spans
from senone.train import parallel
from senone.train.optim import Optimiser
from senone.train.task import Batch, Recipe, TrainError
from senone.train.teacher import resampled

SETTLED = 500  # steps after which a guard may speak


@dataclass(frozen=True)
class HubertRecipe(Recipe):
    """What HuBERT adds: labels, the files that `senone units` wrote (separated by commas, one for each set); mask_p,
    the share of frames where a masked span starts, and its mask_length in frames. crop: the longest. speed: crops are
    heard up to so much faster or slower, other voices as it were, whose units stay those of the true ones.

    weights.unmasked is alpha's other side (eq. 1): 0 in the paper; a run of hours on one core learns to hear by it.
    """

    labels: str = ""
    mask_p: float = 0.08
    mask_length: int = 10
    crop: float = 15.625
    gain: float = 0.0
    speed: float = 0.0
    optim: dict[str, Optimiser] = field(
        default_factory=lambda: {"encoder": Optimiser(betas=(0.9, 0.98), eps=1e-6, decay=0.01, schedule="linear")}
    )
    weights: dict[str, float] = field(default_factory=lambda: {"masked": 1.0, "unmasked": 0.0, "penalty": 10.0})


class HubertTask:
    """Losses in nats a frame: masked and unmasked, summed over the sets of labels; penalty (of features)."""

    def __init__(self, model: Hubert, recipe: HubertRecipe) -> None:
        for name in recipe.weights.keys() - {"masked", "unmasked", "penalty"}:
            raise TrainError(f"unknown loss '{name}' in weights; known: masked, penalty, unmasked")
        self.model, self.recipe = model, recipe
        self.players: dict[str, nn.Module] = {"encoder": model}
        self._sums: Tensor | None = None
        self._said: Tensor | None = None
        self._steps = 0

    def losses(self, batch: Batch, player: str) -> dict[str, Tensor]:
        """Divided by the number of frames over all processes, as one process would."""
        model: Any = self.players[player]
        encoded = model(resampled(batch["wave"], batch["samples"]), mask=batch["mask"])
        out = model.predict(encoded.x, batch["labels"], batch["mask"])
        self._steps = batch["step"]
        sums = torch.stack([out.loss.detach().sum(), out.correct.sum(), out.count.float() * len(out.loss)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._said = out.said if self._said is None else self._said + out.said
        losses = {"masked": _mean(out), "penalty": encoded.penalty}
        if self.recipe.weights.get("unmasked"):
            losses["unmasked"] = _mean(model.predict(encoded.x, batch["labels"], ~batch["mask"]))
        return losses

    def metrics(self) -> dict[str, float]:
        """bits (of the loss, by set), accuracy, and the perplexity of what is predicted; raises TrainError where they
        say that nothing can be learnt any more."""
        if self._sums is None or self._said is None:
            return {}
        loss, correct, count = self._sums.tolist()
        share = self._said / self._said.sum()
        values = {
            "bits": loss / count / log(2),
            "accuracy": correct / count,
            "perplexity": float(torch.special.entr(share).sum().exp()),
        }
        self._sums = self._said = None
        if self._steps >= SETTLED:
            self._guard(values)
        return values

    def examples(self, batch: Batch) -> dict[str, Audio]:
        """Nothing to listen to."""
        return {}

    def _guard(self, values: dict[str, float]) -> None:
        classes = max(self.model.config.classes)
        if values["accuracy"] > 0.98:
            raise TrainError(f"accuracy is {values['accuracy']:.3f}: labels are constant, or the mask hides nothing")
        if values["perplexity"] < min(2.0, classes / 2):
            raise TrainError(f"collapse: predictions have a perplexity of {values['perplexity']:.2f}; lower the rate")
        if values["bits"] > log2(classes) + 1:
            raise TrainError(f"{values['bits']:.1f} bits, where chance needs {log2(classes):.1f}: lower the rate")


def _mean(out: Predicted) -> Tensor:
    return out.loss.sum() * parallel.world() / parallel.total(out.count.float())


class Targets:
    """The labels and the mask of a crop, for `data.buckets`."""

    def __init__(self, model: Hubert, labels: list[Labels], recipe: HubertRecipe) -> None:
        self.model, self.labels, self.recipe = model, labels, recipe

    def __call__(
        self, rng: np.random.Generator, cut: Cut, first: int, samples: int, speed: float
    ) -> dict[str, np.ndarray]:
        """Each frame takes the label under its middle."""
        frames = int(self.model.frames(samples))
        middle = first + (speed * (np.arange(frames) * self.model.hop + self.model.reach // 2)).astype(np.int64)
        sets = []
        for labels in self.labels:
            units = labels[cut]
            place = middle * labels.frame_rate.numerator // (labels.frame_rate.denominator * self.model.sample_rate)
            sets.append(units[np.minimum(place, len(units) - 1)].astype(np.int64))
        return {"labels": np.stack(sets), "mask": spans(frames, self.recipe.mask_p, self.recipe.mask_length, rng=rng)}


def prepare(recipe: Any) -> tuple[HubertTask, Buckets]:
    """The task and the data of a recipe whose table `model` is a `models.hubert.Config`. The numbers of classes come
    from the labels. Raises TrainError, DataError or LabelsError naming what is wrong."""
    if not recipe.labels:
        raise TrainError("no labels: say labels=FILE, as `senone units` writes it")
    labels = [Labels.load(name) for name in recipe.labels.split(",")]
    cuts = read(recipe.data)
    for one in labels:
        one.covers(cuts)
    model = Hubert(replace(recipe.model, classes=tuple(one.clusters for one in labels)))
    task = HubertTask(model, recipe)
    store = Store(cuts, model.sample_rate, recipe.memory * 1e9)
    data = Buckets(
        store,
        recipe.batch,
        recipe.crop,
        Targets(model, labels, recipe),
        hop=model.hop,
        reach=model.reach,
        gain=recipe.gain,
        speed=recipe.speed,
        seed=recipe.seed,
        rank=parallel.rank(),
        world=parallel.world(),
    )
    return task, data
