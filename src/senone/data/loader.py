"""Batches of random crops that are a function of (seed, step, row) and of nothing else.

Not of threads, of resuming, or of the number of processes: the position in an epoch is just the step.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from senone.audio import Audio, AudioError
from senone.data import augment
from senone.data.manifest import Cut, DataError

TRIES = 100  # crops drawn before we believe that no file can be read


Batch = dict[str, Any]


def ahead(batch: Callable[[int], Batch], step: int) -> Iterator[Batch]:
    """`batch(step)`, `batch(step + 1)`, ..., made ahead of time by as many threads as help."""
    threads = min(4, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, "batches")
    try:
        coming = deque(pool.submit(batch, step + i) for i in range(2 * threads))
        while True:
            step += 1
            yield coming.popleft().result()
            coming.append(pool.submit(batch, step + 2 * threads - 1))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Store:
    """Sound of many cuts, mono, at one rate. The first of them that fit into `memory` bytes stay there, as int16."""

    def __init__(self, cuts: list[Cut], rate: int, memory: float = 2e9) -> None:
        self.cuts, self.rate = cuts, rate
        self.ends = np.cumsum([cut.seconds for cut in cuts])
        if not len(cuts) or not self.ends[-1] > 0:
            raise DataError("no sound to draw crops from")
        self.fit = int(np.searchsorted(self.ends * rate * 2, memory, side="right"))
        self.skipped: dict[str, str] = {}  # path -> why
        self._kept: dict[int, np.ndarray] = {}

    @property
    def seconds(self) -> float:
        """All of it."""
        return float(self.ends[-1])

    def crop(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        """`samples` samples, float32, from a place uniform over all sound; short cuts are followed by zeros.

        A file that cannot be read is noted in `skipped`, and another place drawn. Raises DataError where all fail.
        """
        for _ in range(TRIES):
            index = min(int(np.searchsorted(self.ends, rng.random() * self.seconds, side="right")), len(self.cuts) - 1)
            whole = round(self.cuts[index].seconds * self.rate)
            first = int(rng.integers(max(0, whole - samples) + 1))
            try:
                piece = self.piece(index, first, samples)
            except AudioError as error:
                self.skipped[self.cuts[index].path] = str(error)
                continue
            out = np.zeros(samples, np.float32)
            out[: len(piece)] = piece[:samples]
            return out
        raise DataError(f"{TRIES} files in a row cannot be read; {next(iter(self.skipped.values()))}")

    def piece(self, index: int, first: int, samples: int) -> np.ndarray:
        """Up to `samples` samples of cut `index`, float32. Raises AudioError for a file that cannot be read."""
        cut = self.cuts[index]
        if cut.path in self.skipped:
            raise AudioError(self.skipped[cut.path])
        if index >= self.fit:  # which cuts stay in memory depends on the list alone, or resuming would hear it
            seconds = min(samples / self.rate, cut.seconds - first / self.rate)
            return self._decode(cut, first / self.rate, seconds)
        if index not in self._kept:
            whole = self._decode(cut, 0.0, cut.seconds)
            self._kept[index] = np.round(whole.clip(-1, 1) * 32767).astype(np.int16)
        return self._kept[index][first : first + samples].astype(np.float32) / 32767

    def _decode(self, cut: Cut, start: float, seconds: float) -> np.ndarray:
        audio = Audio.read(cut.path, start=cut.start + start, seconds=seconds)
        return audio.mono().resample(self.rate).wave[0].numpy()


class Crops:
    """Batches of `rows` crops of `samples` samples.

    A batch: wave (what goes in) and target (what shall come out), (row, samples); chance, (row, 4), uniform numbers
    for whatever a task decides by row; step. With `noise` also denoise, (row,) bool: a share of `noisy` rows has noise
    of -30 to 0 dB mixed in, which target keeps where denoise is false and lacks where it is true; the flag is random,
    true in a share of `flagged`, in clean rows too (SoundStream §III-F). Process `rank` of `world` gets its rows of the
    batch that one process gets.
    """

    def __init__(
        self,
        store: Store,
        samples: int,
        rows: int,
        *,
        gain: float = 20.0,
        noise: Store | None = None,
        noisy: float = 0.5,
        flagged: float = 0.5,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if rows < 1 or rows % world:
            raise DataError(f"{rows} crops a batch cannot be shared by {world} processes")
        self.store, self.samples, self.rows, self.gain, self.noise = store, samples, rows, gain, noise
        self.noisy, self.flagged, self.seed = noisy, flagged, seed
        self.mine = range(rank * rows // world, (rank + 1) * rows // world)

    @property
    def seconds(self) -> float:
        """Sound in a batch, over all processes."""
        return self.rows * self.samples / self.store.rate

    @property
    def skipped(self) -> dict[str, str]:
        """Files that could not be read so far, and why."""
        return self.store.skipped | (self.noise.skipped if self.noise else {})

    def batch(self, step: int) -> Batch:
        """The batch of this step."""
        rows = [self._row(step, row) for row in self.mine]
        stacked = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
        return {**stacked, "step": step}

    def stream(self, step: int = 0) -> Iterator[Batch]:
        """The batches from `step` on, made ahead of time."""
        return ahead(self.batch, step)

    def _row(self, step: int, row: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, step, row))
        chance = rng.random(4).astype(np.float32)
        factor = np.float32(augment.gain(rng, self.gain))
        wave = target = self.store.crop(rng, self.samples)
        if self.noise is None:
            return {"wave": wave * factor, "target": target * factor, "chance": chance}
        flag = rng.random() < self.flagged
        if rng.random() < self.noisy:
            noise = self.noise.crop(rng, self.samples)
            wave, target = augment.mix(wave, noise, rng.uniform(-30, 0))
        target = target if flag else wave
        return {"wave": wave * factor, "target": target * factor, "chance": chance, "denoise": np.array(flag)}
