"""Statistics of scores: bootstrap intervals, paired comparisons, Holm's correction, equivalent rates.

A score of a system is sum(value) / sum(weight) over utterances: with weight 1 a mean, with errors and words an error
rate. What is drawn are units: speakers where there are enough of them, as the utterances of one speaker are alike.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

DRAWS = 10_000  # of the bootstrap
FLIPS = 99_999  # of the test; p is at least 1 / (FLIPS + 1)
CHUNK = 1_000  # draws in memory at once
ENOUGH = 20  # speakers, for them to be the units


def units(speakers: Sequence[str], utterances: Sequence[str]) -> tuple[str, Int[np.ndarray, "utterance"]]:
    """What is drawn, "speaker" or "utterance", and the number of the unit that each utterance belongs to."""
    several = len(set(speakers)) >= ENOUGH
    names = speakers if several else utterances
    return "speaker" if several else "utterance", np.unique(np.asarray(names), return_inverse=True)[1]


def totals(of: Int[np.ndarray, "utterance"], table: Float[np.ndarray, "utterance column"]) -> np.ndarray:
    """(unit, column): sums over the utterances of each unit."""
    out = np.zeros((int(of.max(initial=-1)) + 1, table.shape[1]))
    np.add.at(out, of, table)
    return out


def intervals(
    values: Float[np.ndarray, "unit column"], weights: Float[np.ndarray, "unit column"], seed: int = 0
) -> Float[np.ndarray, "2 column"]:
    """95 % percentile bootstrap of sum(values) / sum(weights), for each column: low and high.

    Units are drawn with replacement, DRAWS times, the same ones for every column. A column without weight gives NaN.
    """
    count = len(values)
    ratios = np.full((DRAWS, values.shape[1]), np.nan)
    if count:
        draw = np.random.default_rng(seed)
        for first in range(0, DRAWS, CHUNK):
            drawn = draw.integers(0, count, (CHUNK, count)) + count * np.arange(CHUNK)[:, None]
            times = np.bincount(drawn.ravel(), minlength=CHUNK * count).reshape(CHUNK, count).astype(float)
            top, bottom = times @ values, times @ weights
            np.divide(top, bottom, out=ratios[first : first + CHUNK], where=bottom > 0)
    known = ~np.isnan(ratios).all(0)  # a draw may miss all that has weight, where little has
    out = np.full((2, values.shape[1]), np.nan)
    if known.any():
        out[:, known] = np.nanpercentile(ratios[:, known], [2.5, 97.5], axis=0)
    return out


def sign_flips(differences: Float[np.ndarray, "unit column"], seed: int = 0) -> Float[np.ndarray, "column"]:
    """p of the hypothesis that each unit's difference could as well have the other sign, two-sided, by column.

    A randomisation test with FLIPS draws of signs: no shape of distribution is assumed.
    """
    draw, (count, columns) = np.random.default_rng(seed), differences.shape
    scale = np.abs(differences).max(0, initial=0)
    x = np.divide(differences, scale, out=np.zeros_like(differences), where=scale > 0).astype(np.float32)
    observed, beyond = np.abs(x.sum(0, dtype=np.float64)), np.zeros(columns)
    for size in _chunks(FLIPS, CHUNK):
        bits = np.frombuffer(draw.bytes(size * -(-count // 8)), np.uint8).reshape(size, -1)
        signs = np.unpackbits(bits, axis=1, count=count).astype(np.float32) * 2 - 1
        # rounding must not tell equal sums apart
        beyond += (np.abs(signs @ x) >= observed * (1 - 1e-5) - 1e-6).sum(0)
    return (beyond + 1) / (FLIPS + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: with these, all claims below 0.05 hold together at that level."""
    order, out, highest = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        out[index] = highest
    return out


def win_rate(a: Float[np.ndarray, "utterance"], b: Float[np.ndarray, "utterance"], higher: bool) -> float:
    """Share of utterances on which a is better than b, ties half."""
    better = a > b if higher else a < b
    return float((better + 0.5 * (a == b)).mean())


def equivalent(ladder: Sequence[tuple[float, float]], value: float, higher: bool = True) -> float | None:
    """The rate at which a ladder of (kb/s, score) has this score, on straight lines over the logarithm of the rate.

    Steps that a lower rate beats are left out. None outside the ladder, and where it has fewer than two steps.
    """
    sign, steps = 1 if higher else -1, []
    for rate, score in sorted(ladder):
        if not steps or sign * score > steps[-1][1]:
            steps.append((rate, sign * score))
    if len(steps) < 2 or not steps[0][1] <= sign * value <= steps[-1][1]:
        return None
    rates, scores = zip(*steps, strict=True)
    return float(np.exp(np.interp(sign * value, scores, np.log(rates))))


def _chunks(total: int, most: int) -> Iterator[int]:
    for first in range(0, total, most):
        yield min(most, total - first)
