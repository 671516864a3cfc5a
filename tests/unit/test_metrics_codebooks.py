import numpy as np
import pytest

from senone.eval import codebooks
from senone.eval.units import EvalError

TOY = np.array([[0, 0, 1, 1, 2, 2, 3, 3]])


def test_toy():
    """The spec's example: four entries of 1024, evenly."""
    (book,) = (codebooks.statistics(c) for c in codebooks.count([TOY], [1024]))
    assert book.entropy == pytest.approx(2)
    assert book.perplexity == pytest.approx(4)
    assert (book.used, book.dead, book.frames) == (4, 1020, 8)
    assert book.utilisation == book.frequent == 4 / 1024
    assert book.evenness == pytest.approx(0.2)
    assert codebooks.entropy_bitrate([book], 50) == pytest.approx(100)
    assert codebooks.nominal_bitrate([book], 50) == 500
    assert book.corrected == pytest.approx(2 + 3 / (16 * np.log(2)))


def test_even_draws_fill_a_book_as_expected():
    rng = np.random.default_rng(0)
    even = codebooks.statistics(np.bincount(rng.integers(0, 1024, 1_000_000), minlength=1024))
    assert even.evenness > 0.999 and even.perplexity > 1020 and even.utilisation == even.expected == 1
    few = [codebooks.statistics(np.bincount(rng.integers(0, 65536, 20_000), minlength=65536)) for _ in range(20)]
    spread = np.std([book.utilisation for book in few]) / 20**0.5
    assert np.mean([book.utilisation for book in few]) == pytest.approx(few[0].expected, abs=4 * spread)
    assert few[0].expected == pytest.approx(1 - (1 - 1 / 65536) ** 20_000, rel=1e-9)


def test_one_code_alone():
    book = codebooks.statistics(np.array([0, 7, 0, 0]))
    assert (book.entropy, book.perplexity, book.evenness, book.utilisation) == (0, 1, 0, 0.25)
    assert codebooks.statistics(np.array([5])).expected == 1


def test_a_rare_entry_is_used_but_not_frequent():
    counts = np.array([10_000_000, 10_000_000, 1, 0])
    book = codebooks.statistics(counts)
    assert book.utilisation == 0.75 and book.frequent == 0.5


def test_utterances_are_pooled_and_may_have_fewer_levels():
    counts = codebooks.count([np.array([[0, 1], [2, 2]], np.int16), np.array([[1, 1, 1]])], [2, 3])
    assert [c.tolist() for c in counts] == [[1, 4], [0, 0, 2]]


def test_cross_entropy_is_least_for_the_test_set_itself():
    own, other = np.array([700_000, 200_000, 100_000]), np.array([300_000, 300_000, 400_000])
    bits = codebooks.statistics(own).entropy
    assert codebooks.cross_entropy(own, own) == pytest.approx(bits, abs=1e-4)
    expected = -(0.7 * np.log2(0.3) + 0.2 * np.log2(0.3) + 0.1 * np.log2(0.4))
    assert codebooks.cross_entropy(own, other) == pytest.approx(expected, abs=1e-4)
    assert np.isfinite(codebooks.cross_entropy(own, np.array([1, 1, 0])))


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (np.array([[0, 4]]), "codes 0 to 4 in level 0 of 4"),
        (np.array([[-1, 2]]), "codes -1 to 2 in level 0 of 4"),
        (np.zeros((2, 3), int), r"int64 of \(2, 3\)"),
        (np.zeros(3, int), r"int64 of \(3,\)"),
        (np.zeros((1, 3)), r"float64 of \(1, 3\)"),
    ],
)
def test_codes_that_cannot_be(codes, said):
    with pytest.raises(EvalError, match=said):
        codebooks.count([codes], [4])


def test_no_codes():
    with pytest.raises(EvalError, match="no codes"):
        codebooks.statistics(codebooks.count([], [4])[0])
    with pytest.raises(EvalError, match="cannot compare"):
        codebooks.cross_entropy(np.array([1, 2]), np.array([1, 2, 3]))
