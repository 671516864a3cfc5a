"""Pre-training wav2vec 2.0: tell a masked frame's quantized vector from distractors (2006.11477 §3), with guards."""

from dataclasses import dataclass, field
from math import log, log2
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from senone.audio import Audio
from senone.data.buckets import Buckets
from senone.data.loader import Store
from senone.data.manifest import Cut, read
from senone.loss.contrastive import distractors
from senone.models.wav2vec2 import Contrasted, Wav2Vec2
from senone.nn.mask import spans
from senone.quantize.gumbel import diversity, gumbel, perplexity, temperature
from senone.train import parallel
from senone.train.optim import Optimiser
from senone.train.task import Batch, Recipe, TrainError
from senone.train.teacher import resampled

SETTLED = 500  # steps after which a guard may speak


@dataclass(frozen=True)
class Wav2Vec2Recipe(Recipe):
    """What wav2vec 2.0 adds: mask_p, the share of frames where a masked span starts, and its mask_length in frames;
    negatives: distractors of a frame. temperature: of the Gumbel-softmax, at first, at last, and its factor in every
    step. crop: the longest. speed: crops are heard up to so much faster or slower."""

    mask_p: float = 0.065
    mask_length: int = 10
    negatives: int = 100
    temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995)
    crop: float = 15.625
    gain: float = 0.0
    speed: float = 0.0
    optim: dict[str, Optimiser] = field(
        default_factory=lambda: {"encoder": Optimiser(betas=(0.9, 0.98), eps=1e-6, decay=0.01, schedule="linear")}
    )
    weights: dict[str, float] = field(default_factory=lambda: {"contrastive": 1.0, "diversity": 0.1, "penalty": 10.0})


class Wav2Vec2Task:
    """A Wav2Vec2 with its pre-training heads. Losses: contrastive (nats a frame), diversity, penalty (features).

    All are what one process with the whole batch would find, and all random numbers of a row come from its own key.
    """

    def __init__(self, model: Wav2Vec2, recipe: Wav2Vec2Recipe) -> None:
        if not model.config.entries:
            raise TrainError("model.entries is 0: without a quantizer there is nothing to learn")
        for name in recipe.weights.keys() - {"contrastive", "diversity", "penalty"}:
            raise TrainError(f"unknown loss '{name}' in weights; known: contrastive, diversity, penalty")
        self.model, self.recipe = model, recipe
        self.players: dict[str, nn.Module] = {"encoder": model}
        self._sums: Tensor | None = None
        self._steps = 0

    def losses(self, batch: Batch, player: str) -> dict[str, Tensor]:
        """Divided by the number of masked frames over all processes."""
        model, self._steps = self.players[player], batch["step"]
        noise, negatives = self._draw(batch["mask"], batch["key"])
        tau = temperature(self._steps, *self.recipe.temperature)
        wave = resampled(batch["wave"], batch["samples"])
        out: Contrasted = model.pretrain(wave, batch["mask"], tau, negatives, noise)  # type: ignore[operator]
        count, world = parallel.total(out.count.float()), parallel.world()
        mine = out.usage * out.count / count
        usage = parallel.total(mine.detach().clone()) + world * (mine - mine.detach())
        values = [out.loss, out.correct, out.same, out.count, perplexity(out.usage), perplexity(out.counts)]
        sums = torch.stack([*(value.detach().float() for value in values), torch.ones_like(count)])
        self._sums = sums if self._sums is None else self._sums + sums
        return {"contrastive": out.loss * world / count, "diversity": diversity(usage), "penalty": out.penalty}

    def metrics(self) -> dict[str, float]:
        """bits (of the contrastive loss), accuracy, same (the share of distractors that equal the target), perplexity
        of the softmax and of the codes (means over batches, summed over groups), and the temperature. Raises
        TrainError where they say that nothing can be learnt any more."""
        if self._sums is None:
            return {}
        loss, correct, same, count, soft, hard, batches = self._sums.tolist()
        self._sums = None
        values = {
            "bits": loss / count / log(2),
            "accuracy": correct / count,
            "same": same / count,
            "prob_perplexity": soft / batches,
            "code_perplexity": hard / batches,
            "temperature": temperature(self._steps, *self.recipe.temperature),
        }
        if self._steps >= SETTLED:
            self._guard(values)
        return values

    def examples(self, batch: Batch) -> dict[str, Audio]:
        """Nothing to listen to."""
        return {}

    def _draw(self, mask: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and distractors of the masked frames, row by row from the rows' keys."""
        config, generator = self.model.config, torch.Generator(mask.device)
        noise, negatives, start = [], [], 0
        for row, key, count in zip(mask, keys.tolist(), mask.sum(1).tolist(), strict=True):
            generator.manual_seed(key)
            noise.append(gumbel((count, config.groups, config.entries), mask.device, generator))
            negatives.append(distractors(row[None], self.recipe.negatives, generator) + start)
            start += count
        return torch.cat(noise), torch.cat(negatives)

    def _guard(self, values: dict[str, float]) -> None:
        entries, code = self.model.config.groups * self.model.config.entries, values["code_perplexity"]
        if code < 1.5 * self.model.config.groups:
            raise TrainError(
                f"collapse: of {entries} entries about {code:.1f} are used; raise weights.diversity or lower the rate"
            )
        if values["same"] > 0.9:
            raise TrainError(f"collapse: {values['same']:.0%} of the distractors equal the target; lower the rate")
        if values["accuracy"] > 0.98:
            raise TrainError(f"accuracy is {values['accuracy']:.3f}: the codes tell where a frame is, not what it says")
        chance = log2(self.recipe.negatives + 1)
        if values["bits"] > chance + 1:
            raise TrainError(f"{values['bits']:.1f} bits, where chance needs {chance:.1f}: lower the rate")


class Masks:
    """The mask of a crop, and the key of its random numbers, for `data.buckets`."""

    def __init__(self, model: Wav2Vec2, recipe: Wav2Vec2Recipe) -> None:
        self.model, self.recipe = model, recipe

    def __call__(
        self, rng: np.random.Generator, cut: Cut, first: int, samples: int, speed: float
    ) -> dict[str, np.ndarray]:
        frames = int(self.model.frames(samples))
        mask = spans(frames, self.recipe.mask_p, self.recipe.mask_length, rng=rng)
        return {"mask": mask, "key": np.array(rng.integers(2**63))}


def prepare(recipe: Any) -> tuple[Wav2Vec2Task, Buckets]:
    """The task and the data of a recipe whose table `model` is a `models.wav2vec2.Config`. Raises TrainError or
    DataError naming what is wrong."""
    model = Wav2Vec2(recipe.model)
    task = Wav2Vec2Task(model, recipe)
    data = Buckets(
        Store(read(recipe.data), model.sample_rate, recipe.memory * 1e9),
        recipe.batch,
        recipe.crop,
        Masks(model, recipe),
        hop=model.hop,
        reach=model.reach,
        gain=recipe.gain,
        speed=recipe.speed,
        seed=recipe.seed,
        rank=parallel.rank(),
        world=parallel.world(),
    )
    return task, data
