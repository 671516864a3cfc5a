"""Batches of whole utterances with their text, of like length, so that little is padding; an epoch has all of them."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch

from senone.audio import AudioError
from senone.data.loader import Batch, Store, ahead
from senone.data.manifest import Cut, DataError
from senone.nn.mask import keyed

JITTER = 0.05  # lengths are sorted after a change by up to this share, so that neighbours change with the epoch

# what else a row needs: (random numbers, samples) -> arrays by name
Extra = Callable[[np.random.Generator, int], dict[str, np.ndarray]]


def subset(cuts: list[Cut], hours: float) -> list[Cut]:
    """Cuts of `hours` hours in all (0: everything), drawn evenly and always the same; a smaller one lies in a larger.

    Raises DataError where there is less.
    """
    if not hours:
        return cuts
    order = np.random.default_rng(0).permutation(len(cuts))
    ends = np.cumsum([cuts[k].seconds for k in order])
    if ends[-1] < 3600 * hours * 0.99:
        raise DataError(f"{hours:g} hours are wanted, there are {ends[-1] / 3600:.2f}")
    count = int(np.searchsorted(ends, 3600 * hours)) + 1
    return [cuts[k] for k in sorted(order[:count])]


class Utterances:
    """Batches of up to `seconds` seconds, padding included, a function of (seed, step).

    tokens: of each cut of `store`. A batch: wave (row, samples) and lengths; targets (row, token) and sizes; weight,
    (row,), 0 for a row that counts for nothing; step; and what `extra` says of each row, by random numbers of (seed,
    epoch, utterance) alone. All are padded with zeros to the longest row of the whole batch, of which process `rank`
    of `world` gets its share: every process has as many rows, if need be one that counts for nothing.
    """

    def __init__(
        self,
        store: Store,
        tokens: Sequence[Sequence[int]],
        seconds: float,
        extra: Extra = lambda rng, samples: {},
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.store, self.tokens, self.extra, self.seed, self.rank, self.world = store, tokens, extra, seed, rank, world
        self.samples = np.array([round(cut.seconds * store.rate) for cut in store.cuts])
        lengths = np.sort(self.samples)
        self.ends: list[int] = []  # of batches, in the order of length; the same in every epoch
        first = 0
        for k, longest in enumerate(lengths):
            if k > first and (k + 1 - first) * longest > seconds * store.rate:
                self.ends.append(k)
                first = k
        self.ends.append(len(lengths))
        self._order = lru_cache(4)(self._shuffled)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.ends)

    @property
    def seconds(self) -> float:
        """Sound in a batch, on average, over all processes."""
        return self.store.seconds / len(self)

    @property
    def skipped(self) -> dict[str, str]:
        """Files that could not be read so far, and why."""
        return self.store.skipped

    def rows(self, step: int) -> list[int]:
        """The utterances of the batch of this step, over all processes."""
        epoch, place = divmod(step, len(self))
        order, batches = self._order(epoch)
        k = int(batches[place])
        return order[self.ends[k - 1] if k else 0 : self.ends[k]].tolist()

    def batch(self, step: int) -> Batch:
        """The batch of this step."""
        rows = self.rows(step)
        mine, share = rows[self.rank :: self.world], -(-len(rows) // self.world)
        made = [self._row(step // len(self), row) for row in mine]
        if len(made) < share:
            spare = made[0] if made else self._row(step // len(self), rows[0])
            made.append(spare | {"weight": np.array(0, np.float32)})
        size = int(max(self.samples[row] for row in rows))
        longest = max(len(self.tokens[row]) for row in rows)
        full = {"wave": (size,), "targets": (longest,)}
        full |= {key: value.shape for key, value in self.extra(keyed(self.seed, 0, rows[0]), size).items()}
        rows = {key: np.stack([_padded(row[key], full.get(key, ())) for row in made]) for key in made[0]}
        return {key: torch.from_numpy(stacked) for key, stacked in rows.items()} | {"step": step}

    def stream(self, step: int = 0) -> Iterator[Batch]:
        """The batches from `step` on, made ahead of time."""
        return ahead(self.batch, step)

    def _row(self, epoch: int, row: int) -> dict[str, np.ndarray]:
        samples, weight = int(self.samples[row]), 1.0
        try:
            wave = self.store.piece(row, 0, samples)[:samples]
        except AudioError as error:
            self.store.skipped[self.store.cuts[row].path] = str(error)
            wave, weight = np.zeros(0, np.float32), 0.0
        wave = _padded(wave, (samples,))  # a file may be a little shorter than its manifest says
        tokens = np.array(self.tokens[row], np.int64)
        out = {"wave": wave, "lengths": np.array(samples), "targets": tokens, "sizes": np.array(len(tokens))}
        return out | {"weight": np.array(weight, np.float32)} | self.extra(keyed(self.seed, epoch, row), samples)

    def _shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Utterances by (roughly) their length, and the order of batches."""
        rng = np.random.default_rng((self.seed, epoch))
        order = np.argsort(self.samples * rng.uniform(1 - JITTER, 1 + JITTER, len(self.samples)))
        return order, rng.permutation(len(self))


def _padded(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Followed by zeros up to `shape`."""
    return np.pad(x, [(0, whole - have) for whole, have in zip(shape, x.shape, strict=True)]) if shape else x
