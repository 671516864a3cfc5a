import random

import pytest

from senone.eval import words
from senone.eval.metrics import Unmeasurable
from senone.hub import HubError


def rate(pairs, **options):
    counts = [words.count(said, heard, **options) for said, heard in pairs]
    return sum(e for e, _ in counts) / sum(n for _, n in counts)


def test_a_corpus_is_not_the_mean_of_its_utterances():
    """The spec's two: one error in two words, one in three."""
    pairs = [("a b", "a x"), ("a b c", "a b")]
    assert rate(pairs, normal="none") == pytest.approx(0.4)
    assert sum(rate([pair], normal="none") for pair in pairs) / 2 == pytest.approx(0.41667, abs=1e-5)


@pytest.mark.parametrize("letters", [False, True])
def test_equals_jiwer(letters):
    jiwer = pytest.importorskip("jiwer")
    rng = random.Random(0)
    said = [" ".join(rng.choices(["ab", "b", "cab", "a"], k=rng.randint(1, 9))) for _ in range(50)]
    heard = [" ".join(rng.choices(["ab", "b", "cab", "a"], k=rng.randint(0, 9))) for _ in range(50)]
    official = (jiwer.cer if letters else jiwer.wer)(said, heard)
    assert rate(zip(said, heard, strict=True), normal="none", letters=letters) == pytest.approx(official, abs=1e-12)


def test_whispers_normal_form():
    pytest.importorskip("whisper_normalizer")
    form = words.normaliser("whisper")
    assert form("It's colour 2nd twenty-one Dr. Smith's") == "it is color 2nd 21 doctor smith is"
    assert words.count("MISTER QUILTER'S COLOUR", "Mr. Quilter's color!") == (0, 4)
    assert words.count("MISTER", "Mr.", "plain") == (1, 1)


def test_plain_and_none():
    assert words.count("Well, it's—so!", "WELL IT'S SO", "plain") == (0, 3)
    assert words.count("a  b", " a b ", "none") == (0, 2)
    assert words.count("a b", "A b", "none") == (1, 2)


def test_hearing_nothing_is_all_wrong_and_saying_nothing_has_no_rate():
    assert words.count("one two", "", "none") == (2, 2)
    for said in (None, "", "  "):
        with pytest.raises(Unmeasurable, match="no reference text") as caught:
            words.count(said, "one", "none")
        assert caught.value.status == "na"


def test_unknown_normaliser():
    with pytest.raises(HubError, match="did you mean 'whisper'"):
        words.normaliser("whispr")
