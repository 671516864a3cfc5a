"""Batches without padding: recordings of like length, cut to the shortest of them (wav2vec 2.0's way to pre-train)."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from senone.audio import AudioError
from senone.data import augment
from senone.data.loader import TRIES, Batch, Store, ahead
from senone.data.manifest import Cut, DataError

NEIGHBOURS = 8  # rows come from so many times the rows of a batch, around a random place in the order of length

# what else a row needs: (random numbers, cut, first sample, samples, speed) -> arrays by name
Extra = Callable[[np.random.Generator, Cut, int, int, float], dict[str, np.ndarray]]


class Buckets:
    """Batches of about `seconds` seconds, a function of (seed, step), and by row of (seed, step, row).

    A batch: wave (row, samples), step, and what `extra` says of each row. Its length is that of its shortest
    recording, but no more than `longest` seconds, in whole frames of `hop` samples and `reach` - `hop` on top; every
    crop starts on a whole frame. A recording is drawn as often as it is long; those under `shortest` seconds are left
    out. Process `rank` of `world` gets its share of the rows. Raises DataError where nothing is long enough.

    With `speed`, a batch is to be heard up to so much faster or slower, pitch and all: its wave has that many more
    or fewer samples, which whoever trains resamples to its "samples".
    """

    def __init__(
        self,
        store: Store,
        seconds: float,
        longest: float,
        extra: Extra,
        *,
        hop: int = 320,
        reach: int = 400,
        shortest: float = 1.0,
        gain: float = 0.0,
        speed: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.store, self.seconds, self.longest, self.extra, self.speed = store, seconds, longest, extra, speed
        self.hop, self.reach, self.gain, self.seed, self.rank, self.world = hop, reach, gain, seed, rank, world
        lengths = np.array([cut.seconds for cut in store.cuts])
        order = np.argsort(lengths, kind="stable")
        self.order = order[lengths[order] >= shortest]
        if not len(self.order):
            raise DataError(f"no recording is {shortest:g} s long")
        self.lengths = lengths[self.order]
        self.ends = np.cumsum(self.lengths)

    @property
    def skipped(self) -> dict[str, str]:
        """Files that could not be read so far, and why."""
        return self.store.skipped

    def batch(self, step: int) -> Batch:
        """The batch of this step."""
        rng = np.random.default_rng((self.seed, step))
        middle = self._draw(rng, 0, len(self.order))
        near = self._rows(middle) * NEIGHBOURS // 2
        first, end = max(0, middle - near), min(len(self.order), middle + near + 1)
        picked = [self._draw(rng, first, end) for _ in range(self._rows(first))]
        rows = self._rows(min(picked))  # of the recordings drawn, not of all that might have been
        speed = 1 + self.speed * (2 * rng.random() - 1)
        shortest = round(min(self.longest, min(self.lengths[picked]) / speed) * self.store.rate)
        samples = (shortest - self.reach) // self.hop * self.hop + self.reach
        if self.speed:
            speed = max(1, int(samples * speed / self.hop)) * self.hop / samples  # a length that an FFT likes
        share = range(self.rank * rows // self.world, (self.rank + 1) * rows // self.world)
        made = [self._row(step, row, picked[row], samples, speed, first, end) for row in share]
        stacked = {key: torch.from_numpy(np.stack([row[key] for row in made])) for key in made[0]}
        return stacked | {"step": step, "samples": samples}

    def stream(self, step: int = 0) -> Iterator[Batch]:
        """The batches from `step` on, made ahead of time."""
        return ahead(self.batch, step)

    def _rows(self, place: int) -> int:
        """Rows of a batch around this place in the order of length, a multiple of `world`."""
        rows = self.seconds / min(self.longest, self.lengths[place])
        return max(1, round(rows / self.world)) * self.world

    def _draw(self, rng: np.random.Generator, first: int, end: int) -> int:
        """A place between `first` and `end`, with a chance that grows with length."""
        before = self.ends[first - 1] if first else 0.0
        drawn = before + rng.random() * (self.ends[end - 1] - before)
        return min(int(np.searchsorted(self.ends, drawn, side="right")), end - 1)

    def _row(
        self, step: int, row: int, place: int, samples: int, speed: float, first: int, end: int
    ) -> dict[str, np.ndarray]:
        heard = round(samples * speed)
        rng = np.random.default_rng((self.seed, step, row))
        for _ in range(TRIES):
            index = int(self.order[place])
            cut = self.store.cuts[index]
            room = round(cut.seconds * self.store.rate) - heard
            begin = int(rng.integers(max(0, room) // self.hop + 1)) * self.hop
            try:
                piece = self.store.piece(index, begin, heard)
            except AudioError as error:
                self.store.skipped[cut.path] = str(error)
                place = self._draw(rng, first, end)
                continue
            wave = np.zeros(heard, np.float32)  # a file may be a little shorter than its manifest says
            wave[: len(piece)] = piece[:heard] * np.float32(augment.gain(rng, self.gain))
            return {"wave": wave, **self.extra(rng, cut, begin, samples, speed)}
        raise DataError(f"{TRIES} files in a row cannot be read; {next(iter(self.skipped.values()))}")
