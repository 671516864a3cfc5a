"""Stand-ins for sWUGGY and sBLIMP, said by espeak-ng: synthetic, and not comparable with any published figure.

build("standins", counts)  # counts: how often each word occurs, from transcripts

They have the official folders' form, so that all of the way from sound to result can be tried without those. A non-word
is a word with one phone changed for another of its kind, such that each two neighbours are neighbours in some word.
"""

import csv
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from senone.ctc.text import plain
from senone.eval.units import EvalError
from senone.eval.zerospeech import SYNTHETIC

VOICES = {"A": "en-us+m1", "B": "en-us+f2", "C": "en-us+m7", "D": "en-us+f4"}
LABEL = "Synthetic stand-ins for sWUGGY and sBLIMP, said by espeak-ng: not comparable with any published figure.\n"
VOWEL = re.compile("[aeiouAEIOUV@03]")
LEXICAL = ("filename", "id", "voice", "frequency", "word", "phones", "length", "correct")
SYNTACTIC = ("filename", "id", "voice", "type", "subtype", "transcription", "correct")
NOUNS = ("dog", "girl", "doctor", "painter", "sailor", "brother", "neighbor", "lion", "farmer", "teacher", "singer")
VERBS = (("walks", "walk"), ("sings", "sing"), ("waits", "wait"), ("turns", "turn"), ("falls", "fall"))
PEOPLE = (("queen", "herself"), ("king", "himself"), ("mother", "herself"), ("father", "himself"), ("girl", "herself"))
ACTS = ("saw", "praised", "helped", "watched", "blamed", "described")
PLACES = ("by the old gate", "near the water", "in the garden", "after the storm")


def build(
    folder: str | Path,
    counts: dict[str, int],
    *,
    pairs: int = 100,
    seed: int = 0,
    done: Callable[[str], None] = lambda file: None,
) -> Path:
    """Write folder/lexical/dev and folder/syntactic/dev, `pairs` pairs in four voices each, under a temporary name
    first. Raises EvalError if `folder` is there, if espeak-ng is not, or if there are too few words."""
    folder, rng = Path(folder), np.random.default_rng(seed)
    if folder.exists():
        raise EvalError(f"{folder} is there already: stand-ins are made in a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            made = Path(scratch) / folder.name
            made.mkdir()
            (made / SYNTHETIC).write_text(LABEL)
            _write(made / "lexical" / "dev", LEXICAL, _lexical(counts, pairs, rng), done)
            _write(made / "syntactic" / "dev", SYNTACTIC, _syntactic(pairs, rng), done)
            made.rename(folder)
    except OSError as error:
        raise EvalError(f"cannot write {folder}: {error.strerror}") from None
    return folder


def count(texts: Iterable[str]) -> dict[str, int]:
    """How often each word occurs, in lower case."""
    return dict(Counter(word for text in texts for word in plain(text).lower().split()))


def phones(words: list[str]) -> dict[str, tuple[str, ...]]:
    """espeak-ng's phones of each word, with its marks of stress, from one call."""
    said = _espeak("-q", "-x", "--sep=_", "-v", "en-us", "".join(f"{word}.\n\n" for word in words)).splitlines()
    if len(said) != len(words):
        raise EvalError(f"espeak-ng said {len(said)} lines for {len(words)} words")
    spelt = (tuple(filter(None, line.replace(" ", "_").split("_"))) for line in said)
    return dict(zip(words, spelt, strict=True))


def nonwords(
    words: list[str], lexicon: dict[str, tuple[str, ...]], rng: np.random.Generator
) -> dict[str, tuple[str, ...]]:
    """For each of the words one of phones that is not in the lexicon; words without such a twin are left out."""
    follows = defaultdict(set)
    for said in lexicon.values():
        for a, b in zip(("", *said), (*said, ""), strict=True):
            follows[a].add(b)
    out: dict[str, tuple[str, ...]] = {}
    taken = set(lexicon.values())
    for word in words:
        said = lexicon[word]
        twins = [
            twin
            for k, old in enumerate(said)
            for new in sorted(follows[("", *said)[k]])
            if new not in ("", old) and _kind(new) == _kind(old) and (*said, "")[k + 1] in follows[new]
            if (twin := (*said[:k], new, *said[k + 1 :])) not in taken
        ]
        if twins:
            out[word] = twins[rng.integers(len(twins))]
            taken.add(out[word])
    return out


def _kind(phone: str) -> tuple[bool, str]:
    """Vowel or consonant, and its stress."""
    return bool(VOWEL.search(phone)), phone[0] if phone[0] in "'," else ""


Rows = Iterator[tuple[str, dict[str, Any]]]  # what espeak-ng has to say, and the row but for the voice


def _lexical(counts: dict[str, int], pairs: int, rng: np.random.Generator) -> Rows:
    """Words are said from their phones too, so that both come the same way."""
    lexicon = phones(sorted(word for word in counts if word.isascii() and word.isalpha()))
    words = [word for word, spelt in lexicon.items() if len(spelt) > 3]
    drawn = [words[k] for k in rng.permutation(len(words))[: 3 * pairs]]
    twins = list(nonwords(drawn, lexicon, rng).items())[:pairs]
    if len(twins) < pairs:
        raise EvalError(f"{pairs} pairs need more words: of {len(words)}, {len(twins)} have a non-word beside them")
    for k, (word, twin) in enumerate(twins):
        for correct, spelt in ((1, lexicon[word]), (0, twin)):
            name = word if correct else f"{word}*"
            about = {"word": name, "phones": " ".join(spelt), "length": len(spelt), "frequency": counts[word]}
            yield f"[[{''.join(spelt)}]]", {**about, "id": k, "correct": correct}


def _syntactic(pairs: int, rng: np.random.Generator) -> Rows:
    """Agreement of verb, of determiner, and of pronoun, an equal share of each."""
    kinds: list[list[tuple[str, str, str, str]]] = [[], [], []]
    for noun, (one, many), place in product(NOUNS, VERBS, PLACES):
        forms = (
            ("singular", noun, (one, many), ("this", "these")),
            ("plural", f"{noun}s", (many, one), ("these", "this")),
        )
        for subtype, subject, (verb, wrong), (this, these) in forms:
            kinds[0].append(
                ("subject_verb", subtype, f"the {subject} {verb} {place}", f"the {subject} {wrong} {place}")
            )
            rest = f"{subject} moved {place}"
            kinds[1].append(("determiner_noun", subtype, f"{this} {rest}", f"{these} {rest}"))
    for (who, right), act, place in product(PEOPLE, ACTS, PLACES):
        wrong = "himself" if right == "herself" else "herself"
        kinds[2].append(("anaphor", right, f"the {who} {act} {right} {place}", f"the {who} {act} {wrong} {place}"))
    kinds = [[list(dict.fromkeys(kind))[k] for k in rng.permutation(len(dict.fromkeys(kind)))] for kind in kinds]
    mixed = [kind[k] for k in range(max(map(len, kinds))) for kind in kinds if k < len(kind)]
    if pairs > len(mixed):
        raise EvalError(f"there are {len(mixed)} pairs of sentences, {pairs} are wanted")
    for k, (kind, subtype, right, wrong) in enumerate(mixed[:pairs]):
        for correct, text in ((1, right), (0, wrong)):
            yield text, {"type": kind, "subtype": subtype, "transcription": text, "id": k, "correct": correct}


def _write(folder: Path, columns: tuple[str, ...], rows: Rows, done: Callable[[str], None]) -> None:
    folder.mkdir(parents=True)
    with open(folder / "gold.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for text, row in rows:
            for voice, variant in VOICES.items():
                name = f"{row['id']}-{row['correct']}-{voice}"
                _espeak("-v", variant, "-w", str(folder / f"{name}.wav"), text)
                table.writerow(row | {"filename": name, "voice": voice})
                done(name)


def _espeak(*words: str) -> str:
    try:
        return subprocess.run(["espeak-ng", *words], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise EvalError("espeak-ng is not installed: apt-get install espeak-ng") from None
    except subprocess.CalledProcessError as error:
        raise EvalError(f"espeak-ng failed: {' '.join(error.stderr.split())}") from None
