"""From CTC log-probabilities to words: greedy, prefix beam and lexicon beam search, n-grams, forced alignment.

Everything here works on log-probabilities (frame, vocab) and a vocabulary, a tuple of strings in which entry 0 is the
blank, "|" the boundary between words, and names in angle brackets are never text. No model is needed.

`spell` and `text_of` go between text and tokens; `beam.greedy`, `beam.prefix_beam` and `lexicon.LexiconDecoder` give
`Hypothesis` values; `ngram.NGram` is a `WordLM`; `align.align` puts tokens on frames, `align.words` words on seconds;
`tune.tune` finds the weight of the language model.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from senone.errors import SenoneError

BLANK = 0
BOUNDARY = "|"


class CTCError(SenoneError):
    """Text that the vocabulary cannot spell, log-probabilities that do not fit it, or an impossible alignment."""


@dataclass(frozen=True)
class Hypothesis:
    """What may have been said.

    tokens, with a span of frames [start, end) and a mean log-probability each, from their best alignment.
    score = acoustic + lm_weight * lm + word_score * number of words, the last two only where there is an LM.
    acoustic: log-probability, natural; lm: as the LM gives it (an n-gram: log10, with </s>), unweighted.
    """

    text: str
    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]
    score: float
    acoustic: float
    lm: float = 0.0


@dataclass(frozen=True)
class Beam:
    """How to search: `size` hypotheses are kept a frame, those more than `threshold` below the best are not.

    lm_weight, word_score: see `Hypothesis`; the defaults are those with which wav2vec 2.0 picks its models (§B).
    floor: tokens of a smaller log-probability than this start no new letter or word in that frame.
    """

    size: int = 50
    lm_weight: float = 2.0
    word_score: float = -1.0
    threshold: float = inf
    floor: float = -inf

    def __post_init__(self) -> None:
        if self.size < 1 or self.threshold < 0:
            raise CTCError(f"a beam needs size >= 1 and threshold >= 0, got {self.size} and {self.threshold}")


class WordLM(Protocol):
    """Any language model of words, its state a value that can be hashed: equal states must have equal futures."""

    def start(self) -> Hashable:
        """The state before the first word."""
        ...

    def score(self, state: Any, word: str) -> tuple[float, Hashable]:
        """Log-probability of `word` after `state`, in a unit of its own (n-grams: log10), and the state after it."""
        ...

    def finish(self, state: Any) -> float:
        """Log-probability that the sentence ends here."""
        ...


def spell(text: str, vocab: tuple[str, ...]) -> tuple[int, ...]:
    """Tokens of a transcript: its letters in the case the vocabulary has, and "|" after every word, the last included.

    Raises CTCError for a transcript without words or a character that is not in `vocab`.
    """
    ids = {token: k for k, token in enumerate(vocab) if len(token) == 1}
    boundary(vocab)
    if not text.split():
        raise CTCError("the transcript is empty")
    out = []
    for word in text.split():
        for letter in word:
            found = next((ids[form] for form in (letter, letter.upper(), letter.lower()) if form in ids), None)
            if found is None or letter == BOUNDARY:
                raise CTCError(f"the vocabulary has no {letter!r}, which '{word}' needs")
            out.append(found)
        out.append(ids[BOUNDARY])
    return tuple(out)


def text_of(tokens: tuple[int, ...], vocab: tuple[str, ...]) -> str:
    """The words that tokens spell, one space between them."""
    mute = silent(vocab)
    letters = (vocab[token] for token in tokens if token not in mute)
    return " ".join("".join(letters).replace(BOUNDARY, " ").split())


def boundary(vocab: tuple[str, ...]) -> int:
    """The id of "|". Raises CTCError where there is none."""
    if BOUNDARY not in vocab[1:]:
        raise CTCError(f"the vocabulary has no '{BOUNDARY}' between words")
    return vocab.index(BOUNDARY)


def silent(vocab: tuple[str, ...]) -> set[int]:
    """Ids that are no text: the blank, and names in angle brackets such as <s> and <unk>."""
    return {k for k, token in enumerate(vocab) if k == BLANK or (token.startswith("<") and token.endswith(">"))}


def emissions(log_probs: Tensor | NDArray[Any], vocab: tuple[str, ...]) -> NDArray[np.float64]:
    """Log-probabilities (frame, vocab) in double precision on the CPU. Raises CTCError where shape or values are off.

    Scores without normalisation rank hypotheses alike: what a frame is off by, it is off by for all.
    """
    if isinstance(log_probs, Tensor):
        log_probs = log_probs.detach().cpu().double().numpy()
    out = np.asarray(log_probs, np.float64)
    if out.ndim != 2 or out.shape[1] != len(vocab):
        raise CTCError(f"expected log-probabilities (frame, {len(vocab)}), one a token, got shape {out.shape}")
    if np.isnan(out).any() or (out == inf).any():
        raise CTCError("log-probabilities must not be NaN or +inf")
    return out
