"""Forced alignment against every path there is; words in seconds; error rates and the tuner."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from senone.ctc import CTCError, Hypothesis, spell
from senone.ctc.align import Word, align, words
from senone.ctc.beam import greedy
from senone.ctc.tune import Tuned, cer, edits, tune, wer

VOCAB = ("<pad>", "|", "A", "B")


def noise(frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(frames, 4, generator=generator, dtype=torch.float64)).log_softmax(1)


def best_path(log_probs, tokens):
    """The best path that collapses to `tokens`, by trying all of them, and the span of each token in it."""
    best, spans, rows = -math.inf, [], log_probs.tolist()
    for path in itertools.product(range(4), repeat=len(log_probs)):
        runs, t = [], 0
        for token, group in itertools.groupby(path):
            size = len(list(group))
            runs += [(token, (t, t + size))] if token else []
            t += size
        score = sum(rows[t][k] for t, k in enumerate(path))
        if tuple(token for token, _ in runs) == tokens and score > best:
            best, spans = score, [span for _, span in runs]
    return best, tuple(spans)


@pytest.mark.parametrize("tokens", [(), (2,), (2, 3), (2, 2), (1, 2, 3), (3, 3, 2), (2, 3, 2, 3, 2, 3), (2, 2, 3, 3)])
def test_the_best_of_every_path(tokens):
    for seed in range(2):
        log_probs = noise(6, seed)
        score, spans = best_path(log_probs, tokens)
        found = align(log_probs, tokens, VOCAB)
        assert found.score == pytest.approx(score, abs=1e-12) and found.spans == spans
        for token, mean, (a, b) in zip(tokens, found.scores, spans, strict=True):
            assert mean == pytest.approx(float(log_probs[a:b, token].mean()))


def test_the_best_path_of_all_aligns_as_it_lies():
    log_probs = noise(200, seed=3)
    found = greedy(log_probs, VOCAB)
    again = align(log_probs, found.tokens, VOCAB)
    assert (again.spans, again.score) == (found.spans, pytest.approx(found.score))
    assert len(found.spans) > 100  # more states than a byte counts


def test_alignments_that_cannot_be():
    with pytest.raises(CTCError, match="3 tokens need at least 4 frames, there are 3"):
        align(noise(3), (2, 2, 3), VOCAB)
    with pytest.raises(CTCError, match="must be 1 to 3"):
        align(noise(3), (0,), VOCAB)
    with pytest.raises(CTCError, match="must be 1 to 3"):
        align(noise(3), (4,), VOCAB)
    with pytest.raises(CTCError, match="probability 0"):
        align(torch.full((3, 4), -math.inf), (2,), VOCAB)
    with pytest.raises(CTCError, match=r"\(frame, 4\)"):
        align(torch.zeros(1, 3, 4), (2,), VOCAB)


def test_words_in_seconds():
    path = [0, 2, 2, 0, 3, 1, 1, 0, 0, 3, 0, 1]
    log_probs = torch.full((12, 4), -9.0)
    log_probs[range(12), path] = -0.5
    wanted = [Word("AB", 0.02, 0.1, -0.5), Word("B", 0.18, 0.2, -0.5)]
    for tokens in (spell("ab b", VOCAB), spell("ab b", VOCAB)[:-1]):
        assert words(align(log_probs, tokens, VOCAB), VOCAB, Fraction(50)) == wanted
    assert words(greedy(log_probs, VOCAB), VOCAB, 50.0) == wanted
    assert words(align(log_probs, (), VOCAB), VOCAB, 50.0) == []


# error rates


def test_edits_and_rates():
    assert [edits(a, b) for a, b in (("", ""), ("ABC", ""), ("", "AB"), ("KITTEN", "SITTING"), ("AB", "BA"))] == [
        0, 3, 2, 3, 2
    ]  # fmt: skip
    assert wer(["THE CAT SAT", "ON"], ["THE  CAT", "ON IT"]) == 0.5
    assert cer(["A CAT"], ["A  CUT"]) == 0.2
    with pytest.raises(CTCError, match="2 references for 1 hypotheses"):
        wer(["A", "B"], ["A"])
    with pytest.raises(CTCError, match="no words"):
        wer([""], ["A"])


def test_rates_are_those_of_jiwer():
    jiwer = pytest.importorskip("jiwer", reason="jiwer is missing: pip install jiwer")
    generator = torch.Generator().manual_seed(0)

    def text(size):
        return " ".join("ABCD"[k] * (k + 1) for k in torch.randint(4, (size,), generator=generator).tolist())

    truth, said = [text(k + 1) for k in range(12)], [text((5 * k) % 13 + 1) for k in range(12)]
    assert wer(truth, said) == pytest.approx(jiwer.wer(truth, said))
    assert cer(truth, said) == pytest.approx(jiwer.cer(truth, said))


# the tuner


def hypothesis(text, acoustic, lm, lm_weight, word_score):
    score = acoustic + lm_weight * lm + word_score * len(text.split())
    return Hypothesis(text, (), (), (), score, acoustic, lm)


def test_the_tuner_finds_weights_that_make_no_errors():
    """Right when lm_weight > 1 (first recording), lm_weight < 3 (second), and word_score > 1 (third)."""
    recordings = [
        ("RIGHT", [("RIGHT", -10.0, -2.0), ("WRONG", -9.0, -3.0)]),
        ("RIGHT", [("RIGHT", -10.0, -3.0), ("WRONG", -13.0, -2.0)]),
        ("A B", [("A B", -11.0, -2.0), ("AB", -10.0, -2.0)]),
    ]
    asked = []

    def decode(lm_weight, word_score):
        asked.append((lm_weight, word_score))
        lists = [[hypothesis(*one, lm_weight, word_score) for one in found] for _, found in recordings]
        return [sorted(found, key=lambda one: -one.score) for found in lists]

    found = tune(decode, [truth for truth, _ in recordings], start=(0.0, -1.0))
    assert found.wer == 0.0 and 1 < found.lm_weight < 3 and found.word_score > 1
    assert asked[0] == (0.0, -1.0) and len(asked) == 2  # the second point was right, and is not tried again
    assert asked[1] == (found.lm_weight, found.word_score)
    assert abs(found.lm_weight - 1) < 0.11 and abs(found.word_score - 1) < 0.21  # the nearest that is right


def test_the_tuner_answers_with_what_was_decoded():
    """A pool that promises what decoding does not keep: the start stays the answer."""
    calls = []

    def decode(lm_weight, word_score):
        calls.append(lm_weight)
        if len(calls) == 1:
            return [[hypothesis("A C", -1.0, -1.0, lm_weight, word_score), hypothesis("A B", -2.0, -0.5, 0, 0)]]
        return [[hypothesis("D E F", 0.0, 0.0, lm_weight, word_score)]]

    assert tune(decode, ["A B"], start=(1.0, 0.0), rounds=2) == Tuned(1.0, 0.0, 0.5)
    assert len(calls) == 2
