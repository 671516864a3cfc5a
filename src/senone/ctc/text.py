"""Transcripts as a recogniser writes them, and how far two of them are apart."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np


def plain(text: str) -> str:
    """Upper case, one space between words, no punctuation but the apostrophe inside or beside a word.

    Dashes and slashes part words. Digits and signs are left: nobody knows how they were read out.
    """
    text = unicodedata.normalize("NFC", text).upper().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    out = []
    for letter in text:
        kind = unicodedata.category(letter)
        if kind == "Pd" or letter == "/" or letter.isspace():
            out.append(" ")
        elif letter == "'" or kind[0] not in "PC":
            out.append(letter)
    return " ".join(word for word in "".join(out).split() if word.strip("'"))


def edits(truth: Sequence[Any], said: Sequence[Any]) -> int:
    """The fewest insertions, deletions and substitutions that lead from one to the other (Levenshtein 1966)."""
    place = np.arange(len(said) + 1)
    ids = {item: k for k, item in enumerate(dict.fromkeys([*truth, *said]))}
    other = np.array([ids[item] for item in said], np.int64)
    row = place
    for item in truth:
        best = row + 1
        best[1:] = np.minimum(best[1:], row[:-1] + (other != ids[item]))
        row = np.minimum.accumulate(best - place) + place  # insertions, one after another, are a running minimum
    return int(row[-1])
