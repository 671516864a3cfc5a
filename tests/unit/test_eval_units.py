"""Purity and PNMI against counting by hand, known extremes and scikit-learn; phones on the frame clock."""

from collections import Counter
from math import exp, log

import numpy as np
import pytest

from senone.eval.units import EvalError, entropy, joint, phones_at, quality, runs, unstressed


def brute(pairs):
    """The definitions, by dictionaries: phone purity, cluster purity, PNMI, perplexity."""
    both = Counter(pair for phones, units in pairs for pair in zip(phones, units, strict=True))
    n = sum(both.values())
    phone, unit = Counter(), Counter()
    for (y, z), count in both.items():
        phone[y] += count
        unit[z] += count
    shared = sum(c / n * log(c * n / (phone[y] * unit[z])) for (y, z), c in both.items())
    h_phone, h_unit = (-sum(c / n * log(c / n) for c in each.values()) for each in (phone, unit))
    right = sum(max(c for (_, z), c in both.items() if z == k) for k in unit) / n
    pure = sum(max(c for (y, _), c in both.items() if y == k) for k in phone) / n
    return right, pure, shared / h_phone, exp(h_unit)


def draw(seed, phones=4, units=6, lengths=(7, 1, 30)):
    rng = np.random.default_rng(seed)
    return [(["abcdefgh"[i] for i in rng.integers(0, phones, n)], rng.integers(0, units, n).tolist()) for n in lengths]


@pytest.mark.parametrize("seed", range(20))
def test_equals_counting_by_hand(seed):
    pairs = draw(seed)
    got = quality(pairs)
    assert (got.phone_purity, got.cluster_purity, got.pnmi, got.perplexity) == pytest.approx(brute(pairs), abs=1e-12)
    assert got.frames == 38


def test_a_case_on_paper():
    """Phones aabb, units 0012: unit 0 is a, 1 and 2 are b: all is known of the phone, b is split."""
    got = quality([("aabb", [0, 0, 1, 2])])
    assert (got.phone_purity, got.cluster_purity, got.units, got.phones) == (1.0, 0.75, 3, 2)
    assert got.pnmi == pytest.approx(1.0, abs=1e-12) and got.perplexity == pytest.approx(exp(1.5 * log(2)))
    assert (got.unit_run, got.phone_run) == (4 / 3, 2.0)


def test_the_same_labelling_is_perfect():
    pairs = [(phones, ["abcd".index(y) * 7 for y in phones]) for phones, _ in draw(0)]
    got = quality(pairs)
    assert (got.phone_purity, got.cluster_purity) == (1, 1) and got.pnmi == pytest.approx(1, abs=1e-12)


def test_one_unit_for_all_tells_nothing():
    phones = "aaab"
    got = quality([(phones, [5] * 4)])
    assert (got.phone_purity, got.cluster_purity, got.pnmi, got.perplexity, got.bias) == (0.75, 1, 0, 1, 0)
    assert quality([("aaaa", [1, 2, 3, 4])]).pnmi == 0  # nothing to know: no division by zero


def test_independent_labels_share_nothing_but_the_bias():
    every = [(y, z) for y in "abc" for z in range(4)]
    assert quality([([y for y, _ in every], [z for _, z in every])]).pnmi == pytest.approx(0, abs=1e-12)
    got = [quality(draw(seed, 8, 30, lengths=(4000,))) for seed in range(30)]
    assert np.mean([q.pnmi for q in got]) == pytest.approx(np.mean([q.bias for q in got]), rel=0.1)


def test_mutual_information_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for seed in range(5):
        pairs = draw(seed, 5, 9, lengths=(200, 300))
        phones, units = ([label for pair in pairs for label in pair[k]] for k in (0, 1))
        got = quality(pairs)
        h_phone = entropy(np.unique(phones, return_counts=True)[1])
        assert got.pnmi * h_phone == pytest.approx(metrics.mutual_info_score(phones, units), abs=1e-12)
        assert got.pnmi == pytest.approx(metrics.homogeneity_score(phones, units), abs=1e-12)
        assert joint([np.array(phones)], [np.array(units)]).sum(0).tolist() == np.bincount(units).tolist()


def test_neither_the_names_of_units_nor_the_order_of_utterances_matter():
    pairs = draw(3)
    renamed = [(phones, [10**6 - 3 * z for z in units]) for phones, units in reversed(pairs)]
    a, b = quality(pairs), quality(renamed)
    assert vars(a) == pytest.approx(vars(b), abs=1e-12)


def test_runs_end_with_the_utterance():
    assert [runs(np.array(x)) for x in ([], [1], [1, 1], [1, 2, 2, 1])] == [0, 1, 1, 3]
    got = quality([("aab", [1, 1, 1]), ("bba", [1, 1, 2])])
    assert (got.unit_run, got.phone_run) == (6 / 3, 6 / 4)


def test_unlabelled_frames_are_left_out():
    assert quality([(["", "a", "", "b"], [9, 0, 9, 1])]) == quality([("ab", [0, 1])])
    with pytest.raises(EvalError, match="no frame has a phone"):
        quality([(["", ""], [1, 2])])
    with pytest.raises(EvalError, match="no frame"):
        quality([])


def test_other_lengths_are_refused():
    with pytest.raises(EvalError, match="utterance 1 has phones for 2 frames and units for 3"):
        quality([("a", [1]), ("ab", [1, 2, 3])])


def test_phones_on_the_frame_clock():
    """Centres at 10, 30, 50, ... ms; a border belongs to what starts there; gaps and the end have no phone."""
    phones = [(0.0, 0.03, "sil"), (0.03, 0.0501, "AH0"), (0.0899, 0.11, "T")]
    assert phones_at(phones, 7, 320, 16000) == ["sil", "AH", "AH", "", "T", "", ""]
    assert phones_at(reversed(phones), 7, 320, 16000) == phones_at(phones, 7, 320, 16000)
    assert phones_at(phones, 4, 160, 16000) == ["sil", "sil", "sil", "AH"]
    assert phones_at([], 2, 320, 16000) == ["", ""] and phones_at(phones, 0, 320, 16000) == []


@pytest.mark.parametrize("hop,rate", [(320, 16000), (160, 16000), (480, 24000), (441, 22050)])
def test_the_frame_clock_against_a_loop(hop, rate):
    """In whole milliseconds, where most centres of 20 ms frames meet a border."""
    rng = np.random.default_rng(hop)
    borders = np.unique(rng.integers(0, 100, 40)) * 10
    phones = [(a / 1000, b / 1000, f"p{i}x") for i, (a, b) in enumerate(zip(borders, borders[1:], strict=False))]
    for t, got in enumerate(phones_at(phones, 60, hop, rate)):
        centre = 1000 * (2 * t + 1) * hop  # in units of 1 / (2 rate) milliseconds
        match = [f"p{i}x" for i, a in enumerate(borders[:-1]) if a * 2 * rate <= centre < borders[i + 1] * 2 * rate]
        assert got == (match[0] if match else "")


def test_intervals_that_make_no_sense_are_refused():
    with pytest.raises(EvalError, match="'b' ends at 0.1 s, before it starts at 0.2 s"):
        phones_at([(0.2, 0.1, "b")], 5, 320, 16000)
    with pytest.raises(EvalError, match="'a' and 'b' overlap at 0.1 s"):
        phones_at([(0.0, 0.2, "a"), (0.1, 0.3, "b")], 5, 320, 16000)


def test_stress_is_a_trailing_digit():
    assert [unstressed(x) for x in ("AH0", "ER1", "sil", "s2", "1")] == ["AH", "ER", "sil", "s", "1"]
