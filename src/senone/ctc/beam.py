"""Greedy and prefix beam search over letters: what was said, spelled freely."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from senone.ctc import BLANK, BOUNDARY, Beam, CTCError, Hypothesis, WordLM, boundary, emissions, silent, text_of
from senone.ctc.align import align


def greedy(log_probs: Tensor | NDArray[Any], vocab: tuple[str, ...]) -> Hypothesis:
    """The best token of every frame, repeats joined, blanks dropped. log_probs: (frame, vocab). Raises CTCError."""
    frames = emissions(log_probs, vocab)
    best = frames.argmax(1)
    top = frames[np.arange(len(frames)), best]
    edges = np.flatnonzero(np.diff(best, prepend=-1, append=-1))
    runs = [(a, b) for a, b in zip(edges.tolist(), edges[1:].tolist(), strict=False) if best[a] != BLANK]
    tokens = tuple(int(best[a]) for a, _ in runs)
    scores = tuple(float(top[a:b].mean()) for a, b in runs)
    total = float(top.sum())
    return Hypothesis(text_of(tokens, vocab), tokens, tuple(runs), scores, total, total)


def prefix_beam(
    log_probs: Tensor | NDArray[Any],
    vocab: tuple[str, ...],
    lm: WordLM | None = None,
    beam: Beam = Beam(),
    nbest: int = 1,
) -> list[Hypothesis]:
    """The most probable token sequences, each summed over its alignments (Hannun et al. 2014, algorithm 1).

    log_probs: (frame, vocab). An `lm` scores every word at its "|", the last also without one, and the end of the
    sentence; words may be any, so it should have a price for unknown ones. It is asked only when a word has ended:
    where the letters are uncertain, `LexiconDecoder` does better. Without an `lm` lm_weight and word_score do not
    apply. The best `nbest`, best first. Raises CTCError where the log-probabilities do not fit, or allow no path.
    """
    frames = emissions(log_probs, vocab)
    bar, book = boundary(vocab) if lm else -1, _Prefixes(vocab, lm, beam)
    usable = np.array([k not in silent(vocab) for k in range(len(vocab))])
    ids, blank, token = np.zeros(1, np.int64), np.zeros(1), np.full(1, -np.inf)  # paths that end in a blank, or not
    for frame in frames:
        size = len(ids)
        extra = np.array([book.extra[k] for k in ids])
        last = np.array([book.token[k] for k in ids])
        both = np.logaddexp(blank, token)
        columns = np.flatnonzero(usable & (frame >= beam.floor))
        longer = both[:, None] + frame[columns]
        same = last[:, None] == columns  # a letter twice needs a blank between
        longer[same] = (blank[:, None] + frame[columns])[same]
        blank, token = both + frame[BLANK], token + np.where(last > BLANK, frame[last], 0.0)
        rows, places = {int(k): row for row, k in enumerate(ids)}, {int(k): place for place, k in enumerate(columns)}
        for row, k in enumerate(ids):  # a prefix made longer may be one that is in the beam as it is
            parent, place = rows.get(book.parent[k]), places.get(book.token[k])
            if parent is not None and place is not None:
                token[row] = np.logaddexp(token[row], longer[parent, place])
                longer[parent, place] = -np.inf
        gain = np.repeat(extra[:, None], len(columns), 1)
        if lm and bar in places:
            gain[:, places[bar]] = [book.close(k)[0] for k in ids.tolist()]
        ranks = np.concatenate([np.logaddexp(blank, token) + extra, (longer + gain).ravel()])
        keep = prune(ranks, beam)
        old, new = keep[keep < size], keep[keep >= size] - size
        row, place = np.divmod(new, max(1, len(columns)))
        made = [book.add(int(ids[r]), int(columns[p])) for r, p in zip(row, place, strict=True)]
        ids = np.concatenate([ids[old], np.array(made, np.int64)])
        blank = np.concatenate([blank[old], np.full(len(new), -np.inf)])
        token = np.concatenate([token[old], longer[row, place]])
    acoustic = np.logaddexp(blank, token)
    extra = np.array([book.finish(k) for k in ids.tolist()])
    found = []
    for row in (-(acoustic + extra)).argsort(kind="stable")[:nbest]:
        tokens = book.tokens(int(ids[row]))
        aligned = align(frames, tokens, vocab)
        score, total = float(acoustic[row] + extra[row]), float(acoustic[row])
        text, lm_score = text_of(tokens, vocab), book.lm_score(int(ids[row]))
        found.append(Hypothesis(text, tokens, aligned.spans, aligned.scores, score, total, lm_score))
    return found


def prune(ranks: NDArray[np.float64], beam: Beam) -> NDArray[np.int64]:
    """The places of the candidates that stay, in no order. Raises CTCError where none has a probability above 0."""
    if len(ranks) > beam.size:
        keep = np.argpartition(-ranks, beam.size - 1)[: beam.size]
    else:
        keep = np.arange(len(ranks))
    bar = ranks[keep].max() - beam.threshold
    keep = keep[(ranks[keep] >= bar) & (ranks[keep] > -np.inf)]
    if not len(keep):
        raise CTCError("the log-probabilities, or the floor of the beam, allow no path")
    return keep


class _Prefixes:
    """Every prefix met, by a number: 0 is the empty one. Its LM is asked once a word.

    extra: weighted LM and word scores of the words closed so far, what `score` has beside `acoustic`.
    """

    def __init__(self, vocab: tuple[str, ...], lm: WordLM | None, beam: Beam):
        self.vocab, self.lm, self.beam = vocab, lm, beam
        self.parent, self.token, self.extra = [-1], [-1], [0.0]
        self.raw = [0.0]  # of the LM, unweighted
        self.state: list[Any] = [lm.start() if lm else None]
        self._numbers: dict[tuple[int, int], int] = {}
        self._closed: dict[int, tuple[float, float, Any]] = {}

    def add(self, prefix: int, token: int) -> int:
        """The prefix one token longer."""
        number = self._numbers.setdefault((prefix, token), len(self.parent))
        if number == len(self.parent):
            closes = self.lm and self.vocab[token] == BOUNDARY
            values = self.close(prefix) if closes else (self.extra[prefix], self.raw[prefix], self.state[prefix])
            self.parent.append(prefix)
            self.token.append(token)
            for column, value in zip((self.extra, self.raw, self.state), values, strict=True):
                column.append(value)
        return number

    def close(self, prefix: int) -> tuple[float, float, Any]:
        """extra, raw and state once the open word of `prefix` has ended."""
        if prefix not in self._closed:
            word, at = [], prefix
            while at and self.vocab[self.token[at]] != BOUNDARY:
                word.append(self.vocab[self.token[at]])
                at = self.parent[at]
            extra, raw, state = self.extra[prefix], self.raw[prefix], self.state[prefix]
            if word and self.lm:
                score, state = self.lm.score(state, "".join(word[::-1]))
                extra, raw = extra + self.beam.lm_weight * score + self.beam.word_score, raw + score
            self._closed[prefix] = extra, raw, state
        return self._closed[prefix]

    def finish(self, prefix: int) -> float:
        """`extra` of the sentence that ends with `prefix`."""
        if not self.lm:
            return 0.0
        extra, _, state = self.close(prefix)
        return extra + self.beam.lm_weight * self.lm.finish(state)

    def lm_score(self, prefix: int) -> float:
        """What the LM gives that sentence, unweighted."""
        if not self.lm:
            return 0.0
        _, raw, state = self.close(prefix)
        return raw + self.lm.finish(state)

    def tokens(self, prefix: int) -> tuple[int, ...]:
        """Its tokens, first to last."""
        out = []
        while prefix:
            out.append(self.token[prefix])
            prefix = self.parent[prefix]
        return tuple(out[::-1])
