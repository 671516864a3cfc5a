"""The folder of a run: what was measured, row by row, and the sound and codes behind it.

RUN/rows.jsonl             one score a line, append-only; a line that was torn off at the end is dropped
RUN/run.json               the run card: all that a number depends on
RUN/summary.json           means with intervals, codebook statistics, comparisons
RUN/audio/SYSTEM/UTTERANCE.flac, RUN/audio/original/UTTERANCE.flac, RUN/codes/SYSTEM.npz
RUN/table.csv, table.md, table.tex, report.html
"""

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from senone.eval.units import EvalError

ORIGINAL = "original"  # the system whose audio is the reference
NO_PHASE = "the codec keeps no phase"  # why a parametric codec has no SI-SDR
KBPS, DELAY = "kbps", "delay"  # metrics of the bench itself: kilobits (weight: seconds), and samples
LONGEST = 80  # characters of a slug


@dataclass(frozen=True)
class Row:
    """One score: the value of a metric for one utterance and one system.

    content: fingerprint of the utterance, its sound and its text. value: null where there is none; then status and
    error say why. weight: of the value in a ratio (words for errors); the value of a system is a mean or such a ratio.
    """

    utterance: str
    speaker: str
    seconds: float
    system: str
    system_fingerprint: str
    metric: str
    metric_fingerprint: str
    value: float | None
    weight: float = 1.0
    status: str = "ok"
    error: str = ""
    content: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What a score is a function of, its name in this run included."""
        return self.utterance, self.content, self.system, self.system_fingerprint, self.metric, self.metric_fingerprint


def slug(name: str) -> str:
    """A file name for `name`: itself where it can be one, else a likeness with six digits of its hash."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "_"
    if plain == name and len(name) <= LONGEST:
        return name
    return f"{plain[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Run:
    """A run that is there, read on demand."""

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Raises EvalError where `folder` holds no run."""
        if not (Path(folder) / "run.json").is_file():
            raise EvalError(f"{folder} holds no run: it has no run.json")
        return cls(Path(folder))

    @cached_property
    def card(self) -> dict[str, Any]:
        """run.json."""
        return read_json(self.folder / "run.json")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return read_json(self.folder / "summary.json")

    @cached_property
    def rows(self) -> list[Row]:
        """The scores of the card's utterances, systems and metrics, KBPS and DELAY too; the order is the file's."""
        systems = {system["name"]: system["fingerprint"] for system in self.card["systems"]}
        metrics = {metric["name"]: metric["fingerprint"] for metric in self.card["metrics"]}
        own = (KBPS, DELAY)
        contents = {utterance["id"]: utterance["content"] for utterance in self.card["utterances"]}
        last = {row.key: row for row in read_rows(self.folder / "rows.jsonl")}
        return [
            row
            for row in last.values()
            if contents.get(row.utterance) == row.content
            and systems.get(row.system) == row.system_fingerprint
            and (row.metric in own or metrics.get(row.metric) == row.metric_fingerprint)
        ]

    def audio(self, system: str, utterance: str) -> Path:
        """Where the decoded utterance is; of the system "original", the reference."""
        return audio_file(self.folder, system, utterance)

    def codes(self, system: str) -> dict[str, Int[np.ndarray, "level frame"]]:
        """Codes by slug of the utterance; none for a system without codes."""
        path = self.folder / "codes" / f"{slug(system)}.npz"
        if not path.exists():
            return {}
        try:
            with np.load(path) as file:
                return dict(file)
        except (OSError, ValueError) as error:
            raise EvalError(f"{path} cannot be read: {error}") from None


def audio_file(folder: Path, system: str, utterance: str) -> Path:
    return folder / "audio" / slug(system) / f"{slug(utterance)}.flac"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in their order. Raises EvalError naming a line that is none, but for a torn last one."""
    if not path.exists():
        return
    names = {field.name for field in fields(Row)}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield Row(**{key: value for key, value in json.loads(line).items() if key in names})
            except (ValueError, TypeError, AttributeError):
                raise EvalError(f"{path}, line {number} is no score") from None


class Book:
    """rows.jsonl, open for appending by one process at a time; `rows` are those there already, by key."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.jsonl"

    def __enter__(self) -> "Book":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "ab+")
        except OSError as error:
            raise EvalError(f"cannot write {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise EvalError(f"another process is writing to {self.path.parent}") from None
        try:
            self._mend()
            self.rows = {row.key: row for row in read_rows(self.path)}
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Append, and see to it that they are on the disk."""
        new = {row.key: row for row in rows}
        lines = [json.dumps(asdict(row), allow_nan=False, ensure_ascii=False) + "\n" for row in new.values()]
        try:
            self.file.write("".join(lines).encode())
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise EvalError(f"cannot write {self.path}: {error.strerror}") from None
        self.rows |= new

    def _mend(self) -> None:
        """Cut off a line that a killed process left unfinished."""
        size = self.file.seek(0, os.SEEK_END)
        while size:
            self.file.seek(size - 1)
            if self.file.read(1) == b"\n":
                break
            size -= 1
        self.file.truncate(size)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises EvalError naming the file."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise EvalError(f"{path} does not exist: the run has not come to its end") from None
    except (OSError, ValueError) as error:
        raise EvalError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise EvalError(f"{path} must hold one JSON object")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON, without NaN and Infinity, under a temporary name first."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix, that takes its place on success. Raises EvalError naming it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(path.suffix, f".{path.stem[:40]}-", path.parent)
        os.close(handle)
        os.chmod(name, 0o666 & ~_umask())
        try:
            yield Path(name)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise EvalError(f"cannot write {path}: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
