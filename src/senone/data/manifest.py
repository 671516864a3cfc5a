"""Lists of recordings: a folder, a TSV with a header, or JSONL of lhotse's cuts, all read to the same values."""

import csv
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from senone.errors import SenoneError

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".w64"}


class DataError(SenoneError):
    """A list of recordings that cannot be read, or that holds nothing to use."""


@dataclass(frozen=True)
class Cut:
    """A stretch of a recording, in seconds, and what is known of it."""

    id: str
    path: str
    seconds: float
    start: float = 0.0
    speaker: str | None = None
    text: str | None = None
    split: str | None = None


def read(source: str | Path, split: str | None = "train") -> list[Cut]:
    """The cuts of a folder, a TSV, a JSONL, or several of them separated by commas.

    A folder that holds a manifest.tsv or manifest.jsonl is read by that, any other is searched for audio. Where a
    recording says which split it belongs to, only those of `split` are taken (None: all). Raises DataError naming
    the file and line, or where nothing is left. Files of a folder that are not audio are skipped with a warning.
    """
    cuts: list[Cut] = []
    for name in str(source).split(","):
        found = list(_read(Path(name)))
        kept = [cut for cut in found if split is None or cut.split in (None, split)]
        if not kept:
            where = f"in split '{split}' of the {len(found)} in {name}" if found else f"in {name}"
            raise DataError(f"no recordings {where}")
        cuts += kept
    return cuts


def build(folder: str | Path, skipped: Callable[[str], None] | None = None) -> Iterator[Cut]:
    """A cut for every audio file below `folder`, sorted by path; the folder of a file is its speaker.

    `skipped` hears a sentence for every file that cannot be read. Raises DataError where there is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()):
        try:
            info = soundfile.info(str(path))
        except (soundfile.SoundFileError, OSError) as error:
            (skipped or (lambda sentence: None))(f"{path} is not audio that can be read ({type(error).__name__})")
            continue
        if not info.frames:
            (skipped or (lambda sentence: None))(f"{path} holds no samples")
            continue
        local = path.relative_to(folder)
        speaker = local.parent.name or None
        yield Cut(local.with_suffix("").as_posix(), str(path), info.frames / info.samplerate, speaker=speaker)


def write(path: str | Path, cuts: Iterable[Cut]) -> int:
    """Write the cuts as JSONL that lhotse reads as MonoCuts, under a temporary name first; returns how many.

    Paths are made absolute. Raises DataError naming the file.
    """
    path, count = Path(path), 0
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "w") as file:
            for cut in cuts:
                file.write(json.dumps(_to_lhotse(cut), ensure_ascii=False) + "\n")
                count += 1
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return count


def _read(path: Path) -> Iterator[Cut]:
    if path.is_dir():
        for name in ("manifest.tsv", "manifest.jsonl"):
            if (path / name).exists():
                yield from _read(path / name)
                return
        skipped: list[str] = []
        yield from build(path, skipped.append)
        if skipped:
            warnings.warn(f"{len(skipped)} files skipped: {'; '.join(skipped[:5])}", stacklevel=4)
        return
    try:
        with open(path, newline="", encoding="utf-8") as file:
            yield from _tsv(path, file) if path.suffix == ".tsv" else _jsonl(path, file)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text: give a folder, a .tsv or a .jsonl") from None


def _tsv(path: Path, file: Iterable[str]) -> Iterator[Cut]:
    rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = {"path", "seconds"} - set(rows.fieldnames or ())
    if missing:
        raise DataError(f"{path} has no column '{sorted(missing)[0]}'")
    for line, row in enumerate(rows, 2):
        try:
            speaker, text, split = (row.get(key) or None for key in ("speaker", "text", "split"))
            place = str(path.parent / row["path"])
            yield Cut(row["path"], place, float(row["seconds"]), speaker=speaker, text=text, split=split)
        except (TypeError, ValueError):
            raise DataError(f"{path}, line {line}: seconds must be a number, got {row['seconds']!r}") from None


def _jsonl(path: Path, file: Iterable[str]) -> Iterator[Cut]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            yield _from_lhotse(json.loads(text), path.parent)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise DataError(f"{path}, line {line} is not a cut: {type(error).__name__} {error}") from None


def _from_lhotse(cut: dict[str, Any], folder: Path) -> Cut:
    source = cut["recording"]["sources"][0]["source"]
    said = (cut.get("supervisions") or [{}])[0]
    split = (cut.get("custom") or {}).get("split")
    # a relative path is relative to the manifest, or else (as lhotse has it) to where we are
    found = str(folder / source) if (folder / source).exists() else source
    return Cut(
        cut["id"], found, float(cut["duration"]), float(cut["start"]), said.get("speaker"), said.get("text"), split
    )


def _to_lhotse(cut: Cut) -> dict[str, Any]:
    try:
        info = soundfile.info(cut.path)
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(f"{cut.path} is not audio that can be read ({type(error).__name__})") from None
    name = Path(cut.id).with_suffix("").as_posix()
    said = {"text": cut.text, "speaker": cut.speaker}
    said = {key: value for key, value in said.items() if value is not None}
    about = {"id": name, "recording_id": name, "start": 0.0, "duration": cut.seconds, "channel": 0}
    return {
        "id": cut.id,
        "start": cut.start,
        "duration": cut.seconds,
        "channel": 0,
        "supervisions": [about | said] if said else [],
        "recording": {
            "id": name,
            "sources": [{"type": "file", "channels": list(range(info.channels)), "source": os.path.abspath(cut.path)}],
            "sampling_rate": info.samplerate,
            "num_samples": info.frames,
            "duration": info.frames / info.samplerate,
        },
        **({"custom": {"split": cut.split}} if cut.split else {}),
        "type": "MonoCut",
    }
