"""Forced alignment: the most probable CTC path through given tokens (Graves et al. 2006, eq. 6 with max for sum)."""

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from senone.ctc import BLANK, CTCError, Hypothesis, boundary, emissions, silent


@dataclass(frozen=True)
class Alignment:
    """Tokens, the span of frames [start, end) of each, their mean log-probability there; score: of the whole path."""

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class Word:
    """A word and when it was said, in seconds; score: mean log-probability of its letters, 0 at best."""

    text: str
    start: float
    end: float
    score: float


def align(log_probs: Tensor | NDArray[Any], tokens: tuple[int, ...], vocab: tuple[str, ...]) -> Alignment:
    """Tokens on frames, by the Viterbi algorithm: vectorised over the 2 * tokens + 1 states, a loop over the frames.

    log_probs: (frame, vocab). Goes through the frames twice, keeping scores now and then, so that memory grows with
    sqrt(frame) * states. Of paths that tie, the one that gets ahead earlier.
    Raises CTCError for tokens outside of the vocabulary, fewer frames than the tokens need (one each, and a blank
    between equal neighbours), or if every path has probability 0.
    """
    frames = emissions(log_probs, vocab)
    if any(not 0 < token < len(vocab) for token in tokens):
        raise CTCError(f"tokens to align must be 1 to {len(vocab) - 1}, the blank is placed by itself")
    need = len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:], strict=False))
    if len(frames) < need:
        raise CTCError(f"{len(tokens)} tokens need at least {need} frames, there are {len(frames)}")
    labels = np.full(2 * len(tokens) + 1, BLANK)
    labels[1::2] = tokens
    skips = np.zeros(len(labels), bool)  # from a token straight to the next, if that is another
    skips[3::2] = labels[3::2] != labels[1:-2:2]

    def step(score: NDArray[np.float64], frame: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """By how many states the best path moves into each, and its score there."""
        ahead, jump = np.full((2, len(labels)), -np.inf)
        ahead[1:], jump[2:] = score[:-1], np.where(skips[2:], score[:-2], -np.inf)
        near = np.maximum(score, ahead)
        return np.where(jump > near, np.int8(2), (ahead > score).view(np.int8)), np.maximum(near, jump) + frame[labels]

    score = np.full(len(labels), -np.inf)
    score[0] = 0.0  # before the first frame: at the leading blank, or moving on from it
    block, kept = isqrt(len(frames)) + 1, []
    for t, frame in enumerate(frames):
        if t % block == 0:
            kept.append(score)
        score = step(score, frame)[1]
    state = int(len(labels) - 1 - score[::-1][:2].argmax())
    total = float(score[state]) if len(frames) else 0.0
    if total == -np.inf:
        raise CTCError("these tokens have probability 0 on these frames")
    path = np.empty(len(frames), np.int64)
    for first in range(len(kept) * block - block, -1, -block):
        score, moves = kept.pop(), []
        for frame in frames[first : first + block]:
            move, score = step(score, frame)
            moves.append(move)
        for t in range(first + len(moves) - 1, first - 1, -1):
            path[t] = state
            state -= int(moves[t - first][state])
    starts = np.searchsorted(path, np.arange(1, len(labels), 2), "left")
    ends = np.searchsorted(path, np.arange(1, len(labels), 2), "right")
    means = [float(frames[a:b, token].mean()) for a, b, token in zip(starts, ends, tokens, strict=True)]
    return Alignment(tokens, tuple(zip(starts.tolist(), ends.tolist(), strict=True)), tuple(means), total)


def words(aligned: Alignment | Hypothesis, vocab: tuple[str, ...], frame_rate: Fraction | float) -> list[Word]:
    """Words in seconds: from the first frame of the first letter to the end of the last frame of the last letter.

    frame_rate: frames a second, 50 for wav2vec 2.0; add the start of the chunk where a recording is cut into some.
    """
    out: list[Word] = []
    ignored, bar = silent(vocab), boundary(vocab)
    letters: list[int] = []
    for k, token in enumerate((*aligned.tokens, bar)):
        if token == bar and letters:
            start, end = aligned.spans[letters[0]][0], aligned.spans[letters[-1]][1]
            text = "".join(vocab[aligned.tokens[i]] for i in letters)
            score = sum(aligned.scores[i] for i in letters) / len(letters)
            out.append(Word(text, float(start / frame_rate), float(end / frame_rate), score))
            letters = []
        elif token != bar and token not in ignored:
            letters.append(k)
    return out
