"""The recordings that systems are measured on, with what is known of them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from senone.audio import Audio, AudioError, duration
from senone.data import manifest
from senone.eval.units import EvalError

ROUNDING = 0.02  # seconds by which a list may be wrong about the length of a file


@dataclass(frozen=True)
class Utterance:
    """A recording, or the stretch of one from `start` for `length` seconds (None: to its end).

    content: fingerprint of the file, the stretch and the text; what was measured of another content is no longer true.
    """

    id: str
    path: str
    speaker: str
    seconds: float
    text: str | None
    content: str
    start: float = 0.0
    length: float | None = None

    def read(self) -> Audio:
        """The sound, mono, at the rate of the file. Raises AudioError naming the file."""
        return Audio.read(self.path, start=self.start, seconds=self.length).mono()


@dataclass(frozen=True)
class Corpus:
    """Utterances, speaker after speaker in turn, so that any first N are of as many speakers as can be.

    unreadable: a sentence for each file that is listed or lies there, and is no audio.
    """

    utterances: list[Utterance]
    unreadable: list[str]


def read(source: str | Path, split: str | None = None, text: str | Path | None = None) -> Corpus:
    """A folder, a .tsv or a .jsonl (`senone.data.manifest`), or a folder of LibriSpeech with its .trans.txt.

    text: a file of lines `name words ...`, for recordings that come without. Raises DataError or EvalError naming what
    is wrong, or where no recording can be read.
    """
    said = _transcripts([Path(text)]) if text is not None else {}
    unreadable: list[str] = []
    folder = Path(source)
    if folder.is_dir() and not any((folder / f"manifest.{kind}").exists() for kind in ("tsv", "jsonl")):
        cuts = list(manifest.build(folder, unreadable.append))
        official = _transcripts(sorted(folder.rglob("*.trans.txt")))
        said = official | said
    else:
        cuts, official = manifest.read(source, split), {}
    found = []
    for cut in cuts:
        stem = Path(cut.id).stem
        words = said.get(cut.id) or said.get(stem) or cut.text
        speaker = stem.split("-")[0] if stem in official else cut.speaker  # LibriSpeech: speaker-chapter-number
        try:
            found.append(_utterance(cut, speaker or "", words))
        except (AudioError, OSError) as error:
            unreadable.append(f"cannot read {cut.path}: {error.strerror}" if isinstance(error, OSError) else str(error))
    if not found:
        raise EvalError(f"no recording in {source} can be read" + (f": {unreadable[0]}" if unreadable else ""))
    names = [utterance.id for utterance in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise EvalError(f"{source} has two recordings named '{twice}'")
    return Corpus(_in_turn(found), unreadable)


def _utterance(cut: manifest.Cut, speaker: str, text: str | None) -> Utterance:
    whole = duration(cut.path)
    if whole is None:
        Audio.read(cut.path)  # says what is wrong
        raise AudioError(f"{cut.path} does not say how long it is")
    all_of_it = cut.start == 0 and cut.seconds > whole - ROUNDING
    length = None if all_of_it else cut.seconds
    digest = hashlib.sha256(repr((cut.start, length, text)).encode())
    with open(cut.path, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    seconds = whole if all_of_it else cut.seconds
    return Utterance(cut.id, cut.path, speaker, round(seconds, 6), text, digest.hexdigest()[:16], cut.start, length)


def _transcripts(files: Iterable[Path]) -> dict[str, str]:
    """Words by name, of lines `name words ...` (a space or a tab between)."""
    said = {}
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise EvalError(f"cannot read {file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise EvalError(f"{file} is not text") from None
        for line in lines:
            name, _, words = line.strip().replace("\t", " ", 1).partition(" ")
            if name:
                said[name] = words.strip()
    return said


def _in_turn(utterances: list[Utterance]) -> list[Utterance]:
    turns: dict[str, int] = {}
    order = []
    for utterance in utterances:
        turns[utterance.speaker] = turns.get(utterance.speaker, -1) + 1
        order.append((turns[utterance.speaker], utterance))
    return [utterance for _, utterance in sorted(order, key=lambda pair: pair[0])]
