"""Errors in words and letters, and the weight of the language model that makes the fewest of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from senone.ctc import CTCError, Hypothesis
from senone.ctc.text import edits


@dataclass(frozen=True)
class Tuned:
    """What `tune` found, and the word error rate of decoding with it."""

    lm_weight: float
    word_score: float
    wer: float


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word errors over reference words. Raises CTCError where the numbers of texts differ or there are no words."""
    return _rate([text.split() for text in references], [text.split() for text in hypotheses])


def cer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Character errors over reference characters, one space between words. Raises CTCError as `wer` does."""
    return _rate([" ".join(text.split()) for text in references], [" ".join(text.split()) for text in hypotheses])


def _rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> float:
    if len(references) != len(hypotheses):
        raise CTCError(f"there are {len(references)} references for {len(hypotheses)} hypotheses")
    total = sum(map(len, references))
    if not total:
        raise CTCError("the references have no words, so there is no error rate")
    return sum(edits(a, b) for a, b in zip(references, hypotheses, strict=True)) / total


def tune(
    decode: Callable[[float, float], list[list[Hypothesis]]],
    references: Sequence[str],
    start: tuple[float, float] = (2.0, -1.0),
    rounds: int = 4,
    lm_weights: tuple[float, float] = (0.0, 5.0),
    word_scores: tuple[float, float] = (-5.0, 5.0),
) -> Tuned:
    """LM weight and word score for `decode(lm_weight, word_score)`, the n best of every development recording.

    Minimum error rate training (Och 2003) on a grid: every round decodes, pools all hypotheses met so far, and goes
    on with the point of a 51 by 51 grid over the two ranges whose first choices from the pool have the fewest errors,
    the nearest to the last point where several do. Ends early where that point has been decoded with. The answer is
    the best that was really decoded with. Raises CTCError as `wer` does.
    """
    texts = [text.split() for text in references]
    pools: list[dict[str, Hypothesis]] = [{} for _ in texts]
    errors: list[dict[str, int]] = [{} for _ in texts]
    grid = np.stack(np.meshgrid(np.linspace(*lm_weights, 51), np.linspace(*word_scores, 51)), -1).reshape(-1, 2)
    point, tried = start, {}
    for _ in range(rounds):
        found = decode(*point)
        tried[point] = wer(references, [best[0].text for best in found])
        counts = np.zeros(len(grid))
        for text, best, pool, known in zip(texts, found, pools, errors, strict=True):
            for one in best:
                if one.text not in pool or one.acoustic > pool[one.text].acoustic:
                    pool[one.text] = one
                if one.text not in known:
                    known[one.text] = edits(text, one.text.split())
            lm = np.array([[one.lm, len(one.text.split())] for one in pool.values()])
            scores = grid @ lm.T + np.array([one.acoustic for one in pool.values()])
            counts += np.array([known[one] for one in pool])[scores.argmax(1)]
        steps = np.abs((grid - point) / (np.ptp(grid, 0) + 1e-12)).sum(1)
        place = np.lexsort((steps, counts))[0]
        point = (float(grid[place, 0]), float(grid[place, 1]))
        if point in tried:
            break
    best = min(tried, key=tried.__getitem__)
    return Tuned(best[0], best[1], tried[best])
