"""Errors in words and letters of what a recogniser heard, against what was said; both in one normal form.

Rates are of the whole corpus, errors over words: a mean of rates by utterance is another number. Without the normal
form of the papers (whisper's, for English) the same recogniser has half as many errors again.
"""

from collections.abc import Callable
from functools import cache

from senone.ctc.text import edits, plain
from senone.eval.metrics import Unmeasurable
from senone.hub import HubError, unknown

NORMALISERS = {"whisper": "whisper-normalizer", "plain": "", "none": ""}  # name -> distribution that it needs


@cache
def normaliser(name: str) -> Callable[[str], str]:
    """ "whisper": OpenAI's EnglishTextNormalizer, which papers on codecs use; "plain": upper case without punctuation,
    see `ctc.text.plain`; "none": the text as it is, words parted by one space.

    Raises HubError for another name, ModuleNotFoundError where the package of the first is not installed.
    """
    if name == "whisper":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    if name not in NORMALISERS:
        raise HubError(unknown("normaliser", name, list(NORMALISERS)))
    return plain if name == "plain" else lambda text: " ".join(text.split())


def count(said: str | None, heard: str, normal: str = "whisper", *, letters: bool = False) -> tuple[float, float]:
    """Insertions, deletions and substitutions, and the words (or letters, with one space between words) that were said.

    Their sums over a corpus give its error rate. Raises Unmeasurable ("na") where nothing is known to have been said:
    an error rate of no words does not exist.
    """
    form = normaliser(normal)
    truth = form(said or "").split()
    if not truth:
        raise Unmeasurable("na", "there is no reference text")
    found = form(heard).split()
    if letters:
        truth, found = list(" ".join(truth)), list(" ".join(found))
    return float(edits(truth, found)), float(len(truth))
