"""Intervals, tests and equivalents against brute force and known answers."""

from itertools import product

import numpy as np
import pytest

from senone.eval import stats


def draw(seed=0):
    return np.random.default_rng(seed)


def test_intervals_cover_the_truth_as_often_as_they_say():
    values = draw().exponential(1, (100, 500))  # 500 experiments of 100 units, skewed
    low, high = stats.intervals(values, np.ones_like(values))
    assert 0.93 <= ((low <= 1) & (high >= 1)).mean() <= 0.97


def test_intervals_are_a_function_of_the_seed():
    values = draw().standard_normal((30, 2))
    first = stats.intervals(values, np.ones_like(values), seed=1)
    assert (first == stats.intervals(values, np.ones_like(values), seed=1)).all()
    assert (first != stats.intervals(values, np.ones_like(values), seed=2)).any()


def test_intervals_equal_a_plain_bootstrap():
    values, weights = draw().integers(0, 5, (25, 1)).astype(float), draw(1).integers(5, 20, (25, 1)).astype(float)
    rng, ratios = draw(7), []
    for _ in range(20000):
        chosen = rng.integers(0, 25, 25)
        ratios.append(values[chosen].sum() / weights[chosen].sum())
    expected = np.percentile(ratios, [2.5, 97.5])
    assert stats.intervals(values, weights)[:, 0] == pytest.approx(expected, rel=0.02)


def test_what_is_missing_has_no_weight_and_no_interval():
    values, weights = np.zeros((10, 2)), np.zeros((10, 2))
    values[:4, 0], weights[:4, 0] = 3.0, 1.0
    found = stats.intervals(values, weights)
    assert found[:, 0].tolist() == [3, 3] and np.isnan(found[:, 1]).all()


def test_pairing_narrows_what_is_correlated():
    clip = 5 * draw().standard_normal((40, 1))
    a, b = clip + 0.1 + 0.01 * draw(1).standard_normal((40, 1)), clip
    low, high = stats.intervals(np.hstack([a, b, a - b]), np.ones((40, 3)))
    assert (high - low)[2] < 0.05 * (high - low)[:2].min() and low[2] > 0


def test_units_are_speakers_where_there_are_twenty():
    few, many = [f"s{n % 19}" for n in range(60)], [f"s{n % 20}" for n in range(60)]
    names = [f"u{n:02}" for n in range(60)]
    assert stats.units(few, names)[0] == "utterance" and stats.units(few, names)[1].tolist() == list(range(60))
    kind, unit = stats.units(many, names)
    assert kind == "speaker" and len(set(unit)) == 20 and unit[0] == unit[20] != unit[1]
    table = draw().standard_normal((60, 2))
    assert stats.totals(unit, table)[unit[3]] == pytest.approx(table[3::20].sum(0))


def test_sign_flips_equal_all_sign_flips():
    differences = draw(3).standard_normal((9, 4)) + np.array([0, 0.3, 0.8, 3])
    every = np.array(list(product((-1, 1), repeat=9)))
    exact = (np.abs(every @ differences) >= np.abs(differences.sum(0)) - 1e-9).mean(0)
    assert stats.sign_flips(differences) == pytest.approx(exact, abs=0.006)


def test_sign_flips_claim_no_more_than_they_may():
    p = stats.sign_flips(draw(5).standard_normal((25, 400)))
    assert 0.02 < (p < 0.05).mean() < 0.08
    assert stats.sign_flips(np.ones((30, 1)))[0] < 1e-4 and stats.sign_flips(np.zeros((30, 1)))[0] == 1


def test_holm_has_its_known_answer():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1, 1] and stats.holm([]) == []


def test_win_rate_counts_ties_half():
    a, b = np.array([1.0, 2, 3, 3]), np.array([0.0, 2, 4, 3])
    assert stats.win_rate(a, b, higher=True) == 0.5 and stats.win_rate(a, b - 1, higher=False) == 0.125


def test_equivalent_rate_lies_between_its_neighbours():
    ladder = [(24, 4.4), (6, 1.8), (12, 3.6)]
    assert stats.equivalent(ladder, 3.6) == pytest.approx(12)
    assert stats.equivalent(ladder, 2.7) == pytest.approx(np.sqrt(6 * 12))  # half way, on the logarithm
    assert stats.equivalent(ladder, 1.7) is None and stats.equivalent(ladder, 4.5) is None
    assert stats.equivalent(ladder[:1], 4.4) is None
    assert stats.equivalent([(6, 30.0), (9, 31.0), (12, 10.0)], 20, higher=False) == pytest.approx(np.sqrt(6 * 12))
