"""Mutual information against loops and enumeration; a probe that can read what is there, and nothing else."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from senone import hub
from senone.eval.slmtokbench import (
    Alignment,
    Probe,
    Sample,
    Settings,
    codebooks,
    feasible,
    information,
    log_likelihoods,
    text_alignment,
)
from senone.eval.units import EvalError

TINY = Settings(steps=150, width=24, layers=1, batch=16, lr=0.02, dropout=0.0, check=50, pairs=40)
LETTERS = "ABCD"


def brute_ctc(log_probs, tokens):
    """log of the sum over all labellings of the frames that collapse to the tokens."""
    total = -np.inf
    for path in product(range(log_probs.shape[1]), repeat=len(log_probs)):
        merged = [a for k, a in enumerate(path) if a and (k == 0 or path[k - 1] != a)]
        if tuple(merged) == tuple(tokens):
            total = np.logaddexp(total, sum(log_probs[t, a] for t, a in enumerate(path)))
    return total


def test_likelihoods_are_sums_over_all_alignments():
    """Two levels, frames repeated; a text too long for an utterance has none."""
    torch.manual_seed(1)
    probe = Probe([3, 5], 4, TINY, repeats=2)
    rng = np.random.default_rng(0)
    codes = [np.stack([rng.integers(0, 3, n), rng.integers(0, 5, n)]) for n in (1, 2, 3)]
    texts = [(1,), (2, 2), (1, 2, 3), (1, 1, 1)]
    got = log_likelihoods(probe, codes, texts)
    for i, row in enumerate(codes):
        scores, frames = probe(torch.from_numpy(row)[None], torch.tensor([row.shape[1]]))
        assert int(frames[0]) == 2 * row.shape[1]
        log_probs = scores[0].double().log_softmax(-1).detach().numpy()
        for j, text in enumerate(texts):
            assert got[i, j] == pytest.approx(brute_ctc(log_probs, text), abs=1e-5)
            assert np.isfinite(got[i, j]) == feasible(2 * row.shape[1], text)
    assert [np.isinf(got[0, j]) for j in range(4)] == [False, True, True, True] and np.isinf(got[1, 3])


def test_rows_of_a_batch_do_not_see_their_padding():
    torch.manual_seed(0)
    probe = Probe([4], 5, TINY).eval()
    codes, frames = torch.randint(0, 4, (2, 1, 9)), torch.tensor([9, 4])
    both, _ = probe(codes, frames)
    alone, _ = probe(codes[1:, :, :4], frames[1:])
    assert torch.allclose(both[1, :4], alone[0], atol=1e-6)


def test_the_probe_is_a_bidirectional_lstm():
    """PyTorch's own on packed sequences, with the same weights: two layers, ragged rows."""
    torch.manual_seed(0)
    probe = Probe([4], 5, Settings(width=6, layers=2)).eval()
    oracle = nn.LSTM(6, 6, 2, batch_first=True, bidirectional=True)
    for layer, both in enumerate(probe.layers):
        for lstm, suffix in zip(both, ("", "_reverse"), strict=True):
            for name, value in lstm.named_parameters():
                getattr(oracle, name.replace("_l0", f"_l{layer}{suffix}")).data.copy_(value)
    codes, frames = torch.randint(0, 4, (3, 1, 9)), torch.tensor([4, 9, 6])
    x = probe.project(probe.tables[0](codes[:, 0]))
    packed = pack_padded_sequence(x, frames, batch_first=True, enforce_sorted=False)
    want = probe.head(pad_packed_sequence(oracle(packed)[0], batch_first=True)[0])
    got, _ = probe(codes, frames)
    for row, other, n in zip(got, want, frames, strict=True):
        assert torch.allclose(row[:n], other[:n], atol=1e-6)


def test_information_equals_loops():
    rng = np.random.default_rng(0)
    log_q, lengths = -rng.gamma(5, 10, (6, 6)), rng.integers(3, 9, 6)
    log_q[0, 3] = log_q[2, 1] = log_q[4, 4] = -np.inf
    got = information(log_q, lengths)
    assert got.infeasible == pytest.approx(3 / 36) and got.utterances == 6

    def by_hand(scale, zero):
        own, every = [], []
        for i, j in product(range(6), repeat=2):
            term = log_q[i, j] / (lengths[j] if scale else 1)
            term = 0.0 if zero and np.isinf(term) else term
            if not np.isinf(term):
                every.append(term)
                own += [term] if i == j else []
        return sum(own) / len(own) - sum(every) / len(every)

    for scale, zero, one in (
        (True, False, got.per_char),
        (False, False, got.per_utterance),
        (True, True, got.zero_per_char),
        (False, True, got.zero_per_utterance),
    ):
        assert one.value == pytest.approx(by_hand(scale, zero)) and one.low <= one.value <= one.high


def test_the_interval_is_over_utterances():
    """Against drawing rows by hand."""
    rng = np.random.default_rng(3)
    log_q = -rng.gamma(4, 4, (30, 30)) + 8 * np.eye(30)
    got, drawn = information(log_q, np.ones(30, int)), []
    for _ in range(20000):
        rows = rng.integers(0, 30, 30)
        drawn.append(log_q[rows, rows].mean() - log_q[rows].mean())
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert (got.per_char.low, got.per_char.high) == pytest.approx((low, high), abs=0.15)
    assert information(log_q, np.ones(30, int)) == got


def test_no_utterance_for_its_own_text():
    with pytest.raises(EvalError, match="no utterance has frames enough for its own text"):
        information(np.full((2, 2), -np.inf), np.ones(2, int))


def speech(count, seed, noise=0.0, told=True):
    """Random texts, and codes of two levels: the first says the letter for two or three frames, the second nothing.

    noise: share of frames of random codes. told: else the codes are of another text."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(count):
        text = "".join(rng.choice(list(LETTERS), rng.integers(4, 9)))
        said = text if told else "".join(rng.choice(list(LETTERS), len(text)))
        first = [1 + LETTERS.index(letter) for letter in said for _ in range(rng.integers(2, 4))]
        first = [0, *np.where(rng.random(len(first)) < noise, rng.integers(0, 5, len(first)), first), 0]
        out.append(Sample(np.array([first, rng.integers(0, 3, len(first))]), text))
    return out


def aligned(**more) -> Alignment:
    parts = (speech(200, 1, **more), speech(40, 2, **more), speech(40, 3, **more))
    return text_alignment(*parts, sizes=(5, 3), frame_rate=50, settings=TINY, device="cpu")


@pytest.fixture(scope="module")
def told():
    return aligned()


def test_a_probe_reads_what_is_there(told):
    """Letters that are spelt out are heard, but for doubled ones; the log says when and how well."""
    assert told.cer.value < 0.15 and told.cer.low <= told.cer.value <= told.cer.high
    assert told.mi.per_char.value > 2 and told.mi.per_char.low > 1 and told.mi.utterances == 40
    assert told.step in (50, 100, 150) and 0 < told.dev_loss < 1 and told.train_loss < 1
    assert (told.repeats, told.skipped, told.characters) == (1, 0, 5)
    assert 0 < told.mi.infeasible < 0.05  # the shortest cannot say the longest
    assert told.mi.per_utterance.value > 3 * told.mi.per_char.value


def test_less_is_read_in_noise_and_nothing_in_another_text(told):
    """MI: next to none where tokens and text are independent; more the better the tokens say the text."""
    noisy, other = aligned(noise=0.5), aligned(told=False)
    assert abs(other.mi.per_char.value) < 0.2 < noisy.mi.per_char.value < told.mi.per_char.value
    assert told.cer.value < noisy.cer.value < other.cer.value and other.cer.value > 0.5


def test_the_same_twice():
    few = Settings(steps=6, width=8, layers=2, batch=4, check=3, pairs=5)
    parts, state = [speech(12, k) for k in range(3)], torch.get_rng_state()
    runs = [text_alignment(*parts, sizes=(5, 3), frame_rate=50, settings=few, device="cpu") for _ in range(2)]
    assert runs[0] == runs[1] and torch.equal(state, torch.get_rng_state())
    assert runs[0].mi.utterances == 5 and runs[0].step in (3, 6)


def test_slow_frames_are_repeated_and_short_ones_counted():
    few = Settings(steps=2, width=4, layers=1, batch=4, check=1, pairs=9)
    parts = [speech(9, k) for k in range(3)]
    short = [*parts[0], Sample(np.array([[1], [1]]), "ABCDABCDABCD")]
    got = text_alignment(short, *parts[1:], sizes=(5, 3), frame_rate=12.5, settings=few, device="cpu")
    assert (got.repeats, got.skipped) == (4, 1)
    dev = [Sample(np.array([[1], [1]]), "ABCDABCDABCD"), *parts[1]]
    got = text_alignment(parts[0], dev, parts[2], sizes=(5, 3), frame_rate=25, settings=few, device="cpu")
    assert got.repeats == 2 and got.mi.infeasible > 0.08  # the short one can say no text at all
    assert got.mi.zero_per_char != got.mi.per_char


def test_parts_that_cannot_be_used_are_named():
    good = speech(4, 0)
    for parts, says in (
        (([], good, good), "no utterances to train on"),
        ((good, good, []), "no utterances to measure in test"),
        ((good, [Sample(good[0].codes, "  ?")], good), "an utterance of dev has no text"),
        (([Sample(np.array([[1], [1]]), "ABCDAB")], good, good), "every utterance of train has fewer frames"),
    ):
        with pytest.raises(EvalError, match=says):
            text_alignment(*parts, sizes=(5, 3), frame_rate=50, settings=TINY, device="cpu")
    with pytest.raises(EvalError, match="give its tables"):
        text_alignment(good, good, good, sizes=(5, 3), frame_rate=50, settings=Settings(tables="codebook"))


def test_codebooks_add_up_to_what_codes_stand_for():
    """The released residual quantizer: the sum of its levels' vectors is the decoded vector."""
    model = hub.load("soundstream-mini")
    levels = 3
    tables = codebooks(model, 1, levels)
    codes = torch.stack([torch.randint(0, size, (7,)) for size in model.quantizer.sizes[:levels]])
    summed = sum(table[row] for table, row in zip(tables, codes, strict=True))
    assert torch.allclose(summed, model.quantizer.decode(codes[None])[0].T, atol=1e-5)
    probe = Probe(tables, 4, TINY)
    assert torch.equal(probe.tables[2].weight, tables[2]) and probe.project.in_features == tables[0].shape[1]
    upper = codebooks(model, 2, levels)
    assert all(torch.equal(a, b) for a, b in zip(upper, tables[1:], strict=True))
