"""Labels of a data set: the units of its recordings in one file, and what they are the units of.

A safetensors file: labels (int16, all recordings in a row) and offsets (int64, where each begins, and the end), read
through memory mapping. Its header holds the provenance, so that labels of another teacher are refused before they
cost a training run (HuBERT's users: "cost a month", fairseq pull request 4521).
"""

import base64
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16, Integer
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from senone.data.manifest import Cut
from senone.errors import SenoneError
from senone.models.units import Units

FORMAT = "senone-labels-1"
MOST = 2**15  # clusters that an int16 can name


class LabelsError(SenoneError):
    """Labels of another teacher, of other recordings, all alike, or a file that holds none."""


@dataclass(frozen=True)
class Provenance:
    """Where labels come from. teacher, centroids, units: fingerprints of the encoder, the clusters, and the tokenizer
    that they make; rate: labels a second, as a fraction such as "50/1"; data: the lists of recordings."""

    teacher: str
    layer: int | None
    clusters: int
    centroids: str
    rate: str
    units: str
    data: str = ""

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= MOST:
            raise LabelsError(f"labels are of 2 to {MOST} clusters, not {self.clusters}")

    @classmethod
    def of(cls, units: Any, data: str = "") -> "Provenance":
        """That of what this tokenizer writes. Raises LabelsError where it is none of units."""
        if not isinstance(units, Units):
            raise LabelsError(f"labels come from units (`senone kmeans`), not from a {type(units).__name__}")
        (clusters,), rate = units.spec.sizes, units.spec.frame_rate
        ratio = f"{rate.numerator}/{rate.denominator}"
        return cls(units.teacher, units.config.layer, clusters, units.centroids, ratio, units.spec.fingerprint, data)


class Labels:
    """The labels of many recordings, in memory only as far as they are looked at."""

    def __init__(self, path: Path, provenance: Provenance, keys: list[str], ids: list[str], *arrays: np.ndarray):
        self.path, self.provenance, self.keys = path, provenance, keys
        self._labels, self._offsets = arrays
        self._rows = {key: row for row, key in enumerate(keys)}
        self._ids: dict[str, int | None] = {}
        for row, name in enumerate(ids):
            self._ids[name] = None if name in self._ids else row  # of two recordings: of none

    @classmethod
    def load(cls, path: str | Path) -> "Labels":
        """Open what a `Writer` wrote. Raises LabelsError naming the file."""
        try:
            with safe_open(str(path), "np") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise LabelsError(f"{path} holds no labels: `senone units` writes them")
                offsets, count = file.get_tensor("offsets"), file.get_slice("labels").get_shape()[0]
            provenance = Provenance(**json.loads(header["provenance"]))
            rows = json.loads(header["rows"])
            if len(offsets) != len(rows) + 1 or offsets[-1] != count:
                raise LabelsError(f"{path} is damaged: its rows do not add up")
            with open(path, "rb") as file:  # safetensors: the length of a JSON header, that, the arrays
                size = int.from_bytes(file.read(8), "little")
                start = 8 + size + json.loads(file.read(size))["labels"]["data_offsets"][0]
            labels = np.memmap(path, "<i2", "r", start, (count,)) if count else np.zeros(0, np.int16)
        except FileNotFoundError:
            raise LabelsError(f"{path} does not exist") from None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, LabelsError):
                raise
            raise LabelsError(f"{path} is not a file of labels: {error}") from None
        return cls(Path(path), provenance, [row[0] for row in rows], [row[1] for row in rows], labels, offsets)

    @property
    def frame_rate(self) -> Fraction:
        """Labels a second. Label i is of the time from i to i + 1 over this."""
        return Fraction(self.provenance.rate)

    @property
    def clusters(self) -> int:
        """How many different labels there may be."""
        return self.provenance.clusters

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, cut: Cut | str | Path) -> bool:
        return self._row(cut) is not None

    def __getitem__(self, cut: Cut | str | Path | int) -> Int16[np.ndarray, "frame"]:
        """The labels of a cut or of a whole file by its path (of a row, by its number).

        A cut whose path is unknown is looked up by its id: data may move. Raises LabelsError where there are none.
        """
        row = cut if isinstance(cut, int) else self._row(cut)
        if row is None:
            raise LabelsError(f"{self.path} has no labels for {cut.path if isinstance(cut, Cut) else cut}")
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} labelled recordings")
        row %= len(self)
        return self._labels[self._offsets[row] : self._offsets[row + 1]]

    def accept(self, other: Provenance) -> None:
        """Raise LabelsError, naming the first difference, unless these labels come from where `other` does."""
        for field in fields(Provenance):
            mine, wanted = getattr(self.provenance, field.name), getattr(other, field.name)
            if field.name != "data" and mine != wanted:
                what = "labels of another teacher" if field.name != "rate" else "labels on another clock"
                raise LabelsError(f"{self.path} holds {what}: {field.name} {mine}, not {wanted}")

    def covers(self, cuts: Iterable[Cut]) -> None:
        """Raise LabelsError unless every cut has labels, as many as its length makes, and they are not all the same."""
        seen = np.zeros(self.clusters, np.int64)
        for cut in cuts:
            labels, frames = self[cut], cut.seconds * self.frame_rate
            # seconds may be rounded, and fairseq's frames end where the last whole window does
            if abs(len(labels) - float(frames)) > max(4, 0.01 * frames):
                expect = f"{cut.seconds:g} s at {float(self.frame_rate):g} a second make {ceil(frames)}"
                raise LabelsError(f"{self.path} has {len(labels)} labels for {cut.path}: {expect}")
            if len(labels) and not 0 <= labels.min() <= labels.max() < self.clusters:
                raise LabelsError(f"{self.path} has labels for {cut.path} outside of its {self.clusters} clusters")
            seen += np.bincount(labels, minlength=self.clusters)
        if np.count_nonzero(seen) == 1:
            raise LabelsError(f"{self.path} is constant: all labels are {int(seen.argmax())}")

    def _row(self, cut: Cut | str | Path) -> int | None:
        row = self._rows.get(key(cut))
        return self._ids.get(cut.id) if row is None and isinstance(cut, Cut) else row


class Writer:
    """Collect labels of one provenance, recording by recording; a context manager.

    All goes to a hidden file beside `path` first, a line a recording. A run that is stopped leaves it there, and the
    next one goes on; at a good end it becomes `path`. Raises LabelsError naming the file.
    """

    def __init__(self, path: str | Path, provenance: Provenance) -> None:
        self.path, self.provenance = Path(path), provenance
        self.part = self.path.with_name(f".{self.path.name}.part")
        self.done: set[str] = set()

    def __enter__(self) -> "Writer":
        if self.path.is_dir():
            raise LabelsError(f"cannot write {self.path}: it is a folder")
        try:
            whole = 0
            if self.part.exists():
                with open(self.part, "rb") as file:
                    for line in file:
                        entry = _entry(line)
                        if entry is None:
                            break  # the line that was being written
                        if not whole and entry != asdict(self.provenance):
                            raise LabelsError(f"{self.part} is of a run with another teacher or other data: remove it")
                        if whole:
                            self.done.add(entry["key"])
                        whole += len(line)
                os.truncate(self.part, whole)
            self.file = open(self.part, "a", encoding="utf-8")
            if not whole:
                self._line(asdict(self.provenance))
        except OSError as error:
            raise LabelsError(f"cannot write {self.path}: {error.strerror}") from None
        return self

    def __contains__(self, cut: Cut | str | Path) -> bool:
        return key(cut) in self.done

    def write(self, cut: Cut, labels: Integer[np.ndarray, "frame"]) -> None:
        """Add a recording. Raises LabelsError for labels outside of the clusters."""
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.provenance.clusters:
            raise LabelsError(f"labels of {cut.path} are not all from 0 to {self.provenance.clusters - 1}")
        data = base64.b64encode(labels.astype("<i2").tobytes()).decode()
        try:
            self._line({"key": key(cut), "id": cut.id, "labels": data})
        except OSError as error:
            raise LabelsError(f"cannot write {self.path}: {error.strerror}") from None
        self.done.add(key(cut))

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.file.close()
        if kind is not None:
            return
        scratch = self.part.with_suffix(".whole")
        try:
            rows, labels = [], []
            with open(self.part, "rb") as file:
                next(file)
                for line in file:
                    entry = json.loads(line)
                    rows.append((entry["key"], entry["id"]))
                    labels.append(np.frombuffer(base64.b64decode(entry["labels"]), "<i2"))
            offsets = np.cumsum([0, *map(len, labels)], dtype=np.int64)
            everything = np.concatenate([np.zeros(0, "<i2"), *labels])
            header = {"format": FORMAT, "provenance": json.dumps(asdict(self.provenance)), "rows": json.dumps(rows)}
            scratch.write_bytes(to_bytes({"offsets": offsets, "labels": everything}, header))
            os.replace(scratch, self.path)
            self.part.unlink()
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise LabelsError(f"cannot write {self.path}: {error.strerror}") from None

    def _line(self, entry: dict[str, Any]) -> None:
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()


def key(cut: Cut | str | Path) -> str:
    """The name of a stretch of sound: its absolute path, and where it starts unless at the beginning."""
    if not isinstance(cut, Cut):
        return os.path.abspath(cut)
    return os.path.abspath(cut.path) + (f"@{cut.start:g}" if cut.start else "")


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
