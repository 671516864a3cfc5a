"""How a tokenizer uses its codebooks, over a whole test set: what is used, how evenly, and what that is worth in bits.

books = [statistics(counts) for counts in count(codes, sizes)]
entropy_bitrate(books, frame_rate=50)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log, log2

import numpy as np
from jaxtyping import Int

from senone.eval.units import EvalError, entropy


@dataclass(frozen=True)
class Codebook:
    """One level. size: entries; frames: how many codes were counted; used: distinct ones among them.

    utilisation: share of the entries that are used (WavTokenizer's). expected: what that would be if as many codes were
    drawn evenly, 1 - (1 - 1/size)^frames: a large book on little data is not a collapsed one. frequent: share of the
    entries used at least a thousandth as often as if all were used evenly. entropy: bits a code, memoryless;
    corrected: with Miller and Madow's term for a finite sample. evenness: entropy over log2(size). perplexity: 2 to
    the power of entropy.
    """

    size: int
    frames: int
    used: int
    utilisation: float
    expected: float
    frequent: float
    entropy: float
    corrected: float
    evenness: float
    perplexity: float

    @property
    def dead(self) -> int:
        """Entries that were never used."""
        return self.size - self.used

    @property
    def bits(self) -> float:
        """Of a code whose entries are all as likely: log2(size)."""
        return log2(self.size)


def count(codes: Iterable[Int[np.ndarray, "level frame"]], sizes: Sequence[int]) -> list[Int[np.ndarray, "size"]]:
    """How often each entry of each level occurs in the utterances' codes. An utterance may have fewer levels than
    there are sizes. Raises EvalError for more, and for a code that its level does not have."""
    totals = [np.zeros(size, np.int64) for size in sizes]
    for n, utterance in enumerate(codes):
        if utterance.ndim != 2 or len(utterance) > len(sizes) or utterance.dtype.kind not in "iu":
            kind = f"{utterance.dtype} of {utterance.shape}"
            raise EvalError(f"codes of utterance {n} are {kind}, not integers of (up to {len(sizes)}, frames)")
        for level, row in enumerate(utterance):
            if row.size and not 0 <= row.min() <= row.max() < sizes[level]:
                raise EvalError(
                    f"utterance {n} has codes {row.min()} to {row.max()} in level {level} of {sizes[level]}"
                )
            totals[level] += np.bincount(row, minlength=sizes[level])
    return totals


def statistics(counts: Int[np.ndarray, "size"]) -> Codebook:
    """Of one level, from how often each of its entries occurs. Raises EvalError where none does."""
    size, frames = len(counts), int(counts.sum())
    if not frames:
        raise EvalError("there are no codes to count")
    used, bits = int((counts > 0).sum()), entropy(counts) / log(2)
    return Codebook(
        size=size,
        frames=frames,
        used=used,
        utilisation=used / size,
        expected=-float(np.expm1(frames * np.log1p(-1 / size))) if size > 1 else 1.0,
        frequent=float((counts >= max(1e-3 * frames / size, 1)).mean()),
        entropy=bits,
        corrected=bits + (used - 1) / (2 * frames * log(2)),
        evenness=bits / log2(size) if size > 1 else 1.0,
        perplexity=2**bits,
    )


def nominal_bitrate(books: Iterable[Codebook], frame_rate: float) -> float:
    """Bits a second if every code takes log2(size)."""
    return frame_rate * sum(book.bits for book in books)


def entropy_bitrate(books: Iterable[Codebook], frame_rate: float) -> float:
    """Bits a second that an entropy coder without memory, for each level alone, could reach at best (SoundStream,
    2107.03312, section V-C)."""
    return frame_rate * sum(book.entropy for book in books)


def cross_entropy(counts: Int[np.ndarray, "size"], training: Int[np.ndarray, "size"]) -> float:
    """Bits a code of a coder that was fitted to a training set, one added to each of its counts: what is really paid,
    where `entropy` knows the test set beforehand. Raises EvalError for counts of two sizes, or none."""
    if counts.shape != training.shape or not counts.sum():
        raise EvalError(f"cannot compare counts of {counts.shape} with {training.shape}, {int(counts.sum())} codes")
    p = (training + 1) / (training.sum() + len(training))
    return float(-(counts * np.log2(p)).sum() / counts.sum())
