"""Lexicon beam search: the best sequence of known words, as wav2letter's decoder finds it (Collobert et al. 2016).

The words are a trie of letters; a word ends with "|". A hypothesis is a node of the trie, a state of the LM, and
whether its last frame was a blank; of equal ones the best path is kept (max over alignments, no sum). Inside a word
the LM is foretold by the best score that any word below the node has at the start of a sentence. Where this differs
from flashlight's decoder: the recording's end closes a word too, with no "|" needed, and paths that wait between two
words are one, whether in a blank or in another "|".
"""

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from senone.ctc import BLANK, Beam, CTCError, Hypothesis, WordLM, boundary, emissions, spell, text_of
from senone.ctc.beam import prune

_PAUSE, _HELD = -1, -2  # instead of a new token: no token, and the last one still
_Trace = list[tuple[NDArray[np.int32], NDArray[np.int32]]]  # a frame: where each hypothesis came from, its token


class LexiconDecoder:
    """Decodes log-probabilities (frame, vocab) into words of a list; built once, called for every recording.

    words: in letters of `vocab`; of those spelled alike the first counts. An n-gram's own are `NGram.spoken`.
    Raises CTCError for an empty list or a word that the vocabulary cannot spell.
    """

    def __init__(self, words: Iterable[str], vocab: tuple[str, ...], lm: WordLM | None = None):
        self.vocab, self.lm = vocab, lm
        self._bar = boundary(vocab)
        self._words = list(words)
        if not self._words:
            raise CTCError("the lexicon has no words")
        parents, labels = [0], [self._bar]
        numbers: dict[tuple[int, int], int] = {}
        ends: dict[int, int] = {}
        for place, word in enumerate(self._words):
            node = 0
            for token in spell(word, vocab)[:-1]:
                after = numbers.setdefault((node, token), len(parents))
                if after == len(parents):
                    parents.append(node)
                    labels.append(token)
                node = after
            ends.setdefault(node, place)
        self._label = np.array(labels)
        self._children = np.full((len(parents), len(vocab)), -1, np.int32)
        self._children[parents[1:], labels[1:]] = np.arange(1, len(parents))
        self._word = np.full(len(parents), -1)  # which word ends at the node
        self._word[list(ends)] = list(ends.values())
        ahead = [-np.inf] * len(parents)
        for node, place in ends.items():
            ahead[node] = lm.score(lm.start(), self._words[place])[0] if lm else 0.0
        for node in range(len(parents) - 1, 0, -1):  # children come after their parents
            ahead[parents[node]] = max(ahead[parents[node]], ahead[node])
        ahead[0] = 0.0
        self._ahead = np.array(ahead)

    def __call__(self, log_probs: Tensor | NDArray[Any], beam: Beam = Beam(), nbest: int = 1) -> list[Hypothesis]:
        """The best `nbest` texts, best first. Without an LM lm_weight and word_score do not apply.

        For one text, hypotheses whose words differ become one where the LM's states are equal; for more they do not.
        A word that the recording breaks off is left out where no hypothesis ends with a whole one. Raises CTCError
        where the log-probabilities do not fit, or allow no path.
        """
        frames = emissions(log_probs, self.vocab)
        weight, bonus = (beam.lm_weight, beam.word_score) if self.lm else (0.0, 0.0)
        book = _States(self.lm or _NoLM(), merge=nbest == 1)
        node, state, blank = np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, bool)
        score, lm = np.zeros(1), np.zeros(1)
        trace: _Trace = []
        for frame in frames:
            open_, rows = frame >= beam.floor, np.arange(len(node))
            open_[BLANK] = False
            # in a blank, or between two words in another "|"
            pause = score + np.where(node == 0, max(frame[BLANK], frame[self._bar]), frame[BLANK])
            held = rows[~blank]  # in the same letter
            columns = np.flatnonzero(open_)
            after = self._children[node][:, columns]
            fits = (after >= 0) & (blank[:, None] | (columns != self._label[node][:, None]))
            row, column = np.nonzero(fits)
            token = columns[column]
            ended = rows[self._word[node] >= 0] if open_[self._bar] else rows[:0]
            said, gone = book.score(state[ended], [self._words[k] for k in self._word[node[ended]]])

            parents = np.concatenate([rows, held, row, ended])
            nodes = np.concatenate([node, node[held], after[row, column], np.zeros(len(ended), np.int64)])
            states = np.concatenate([state, state[held], state[row], gone])
            blanks = np.concatenate([np.ones(len(rows), bool), np.zeros(len(held) + len(row), bool), ended >= 0])
            tokens = np.concatenate(
                [np.full(len(rows), _PAUSE), np.full(len(held), _HELD), token, np.full(len(ended), self._bar)]
            )
            scores = np.concatenate(
                [
                    pause,
                    score[held] + frame[self._label[node[held]]],
                    score[row] + frame[token],
                    score[ended] + frame[self._bar] + weight * said + bonus,
                ]
            )
            ranks = scores + weight * self._ahead[nodes]
            key = (states * len(self._label) + nodes) * 2 + blanks
            order = np.lexsort((-ranks, key))
            order = order[np.diff(key[order], prepend=-1) != 0]  # the best of equals
            keep = order[prune(ranks[order], beam)]
            lm = lm[parents]
            lm[len(parents) - len(ended) :] += said
            node, state, blank, score, lm = nodes[keep], states[keep], blanks[keep], scores[keep], lm[keep]
            trace.append((parents[keep].astype(np.int32), tokens[keep].astype(np.int32)))
        return self._finish(frames, trace, node, state, score, lm, book, beam, nbest)

    def _finish(self, frames, trace, node, state, score, lm, book, beam, nbest) -> list[Hypothesis]:
        weight, bonus = (beam.lm_weight, beam.word_score) if self.lm else (0.0, 0.0)
        closed = (node == 0) | (self._word[node] >= 0)
        whole = closed if closed.any() else ~closed
        ended = np.flatnonzero(closed & (node > 0))
        said, gone = book.score(state[ended], [self._words[k] for k in self._word[node[ended]]])
        state[ended] = gone
        lm[ended] += said
        score[ended] += weight * said + bonus
        last = book.finish(state)
        lm, score = lm + last, score + weight * last
        found: dict[str, Hypothesis] = {}
        for row in (-score).argsort(kind="stable"):
            if not whole[row] or len(found) >= nbest:
                continue
            tokens, spans = _back(trace, int(row))
            if not closed[row]:
                size = len(tokens) - tokens[::-1].index(self._bar) if self._bar in tokens else 0
                tokens, spans = tokens[:size], spans[:size]
            text = text_of(tokens, self.vocab)
            if text in found:
                continue
            means = tuple(float(frames[a:b, token].mean()) for token, (a, b) in zip(tokens, spans, strict=True))
            total, raw = float(score[row]), float(lm[row])
            acoustic = total - weight * raw - bonus * len(text.split())
            found[text] = Hypothesis(text, tokens, spans, means, total, acoustic, raw)
        return list(found.values())


def _back(trace: _Trace, row: int) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """The tokens on the way to the last frame's hypothesis `row`, and their spans of frames."""
    tokens, spans, end = [], [], None
    for t in range(len(trace) - 1, -1, -1):
        parents, fresh = trace[t]
        token, row = int(fresh[row]), int(parents[row])
        if token == _HELD:
            end = end or t + 1
        elif token != _PAUSE:
            tokens.append(token)
            spans.append((t, end or t + 1))
            end = None
    return tuple(tokens[::-1]), tuple(spans[::-1])


class _NoLM:
    """A language model to which all is one."""

    def start(self) -> None:
        return None

    def score(self, state: None, word: str) -> tuple[float, None]:
        return 0.0, None

    def finish(self, state: None) -> float:
        return 0.0


class _States:
    """States of the LM by number, every score asked for once; unless `merge`, a state for every history of words."""

    def __init__(self, lm: WordLM, merge: bool):
        self.lm, self.merge = lm, merge
        self.states: list[Hashable] = [lm.start()]
        self._numbers: dict[Hashable, int] = {self.states[0]: 0} if merge else {}
        self._scores: dict[tuple[int, str], tuple[float, int]] = {}

    def score(self, state: NDArray[np.int64], words: list[str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """What the LM gives each word after each state, and the states after them."""
        found = [self._scores.get(pair) or self._ask(*pair) for pair in zip(state.tolist(), words, strict=True)]
        return np.array([score for score, _ in found]), np.array([after for _, after in found], np.int64)

    def finish(self, state: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the LM gives the end of the sentence."""
        scores = {k: self.lm.finish(self.states[k]) for k in set(state.tolist())}
        return np.array([scores[k] for k in state.tolist()])

    def _ask(self, state: int, word: str) -> tuple[float, int]:
        score, after = self.lm.score(self.states[state], word)
        number = self._numbers.setdefault(after if self.merge else (state, word), len(self.states))
        if number == len(self.states):
            self.states.append(after)
        self._scores[state, word] = score, number
        return score, number
