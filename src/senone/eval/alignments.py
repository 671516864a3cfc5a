"""When each phone is said: alignments as programs write them, read to one form.

read("alignments.tsv.gz")["4088-158077-0000"]  # [(0.0, 0.14, "sil"), (0.14, 0.29, "DH"), ...]
"""

import csv
import gzip
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from senone.eval.units import EvalError, Interval

PAUSES = {"": "sil", "sp": "sil", "pau": "sil", "SIL": "sil"}  # one silence, whatever the aligner calls it
_INTERVAL = re.compile(r'xmin\s*=\s*([\d.eE+-]+)\s*xmax\s*=\s*([\d.eE+-]+)\s*text\s*=\s*"((?:[^"]|"")*)"')


def read(path: str | Path) -> dict[str, list[Interval]]:
    """Phones by the name of the recording, without folder and suffix.

    A .tsv or .tsv.gz with columns utt, start, end, label, and maybe tier, of which "phones" is read; a .ctm (name,
    channel, start, duration, phone); a folder of .TextGrid (the Montreal Forced Aligner's; the tier "phones") or of
    Festival's .lab. Raises EvalError naming the file and line, or where there are no phones.
    """
    path = Path(path)
    try:
        found = _folder(path) if path.is_dir() else _file(path)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise EvalError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        raise EvalError(f"{path} holds no phones")
    return found


def _file(path: Path) -> dict[str, list[Interval]]:
    kind = path.name.removesuffix(".gz")
    if not kind.endswith((".tsv", ".ctm")):
        raise EvalError(f"{path} is no alignment: give a .tsv, a .tsv.gz, a .ctm, or a folder of .TextGrid or .lab")
    with gzip.open(path, "rt", encoding="utf-8") if kind != path.name else open(path, encoding="utf-8") as file:
        return _tsv(path, file) if kind.endswith(".tsv") else _ctm(path, file)


def _tsv(path: Path, lines: Iterable[str]) -> dict[str, list[Interval]]:
    rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    for name in ("utt", "start", "end", "label"):
        if name not in (rows.fieldnames or ()):
            raise EvalError(f"{path} has no column '{name}'")
    out = defaultdict(list)
    for line, row in enumerate(rows, 2):
        if row.get("tier", "phones") == "phones":
            out[Path(row["utt"]).stem].append(_interval(path, line, row["start"], row["end"], row["label"]))
    return dict(out)


def _ctm(path: Path, lines: Iterable[str]) -> dict[str, list[Interval]]:
    out = defaultdict(list)
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith(";;"):
            name, _, start, seconds, label, *_ = [*line.split(), *[None] * 5]
            first, length, label = _interval(path, number, start, seconds, label)
            out[Path(str(name)).stem].append((first, round(first + length, 6), label))
    return dict(out)


def _folder(folder: Path) -> dict[str, list[Interval]]:
    grids, labs = sorted(folder.rglob("*.TextGrid")), sorted(folder.rglob("*.lab"))
    return {file.stem: _grid(file) for file in grids} or {file.stem: _lab(file) for file in labs}


def _grid(file: Path) -> list[Interval]:
    """The long form of Praat."""
    tiers = re.split(r"\n\s*item\s*\[\d+\]:?", file.read_text(encoding="utf-8"))[1:]
    found = [tier for tier in tiers if re.search(r'name\s*=\s*"[^"]*phones"', tier)]
    if len(found) != 1:
        raise EvalError(f"{file} has {len(found)} tiers of the name phones, in the long form of TextGrid")
    return [_interval(file, 0, *match.groups()) for match in _INTERVAL.finditer(found[0])]


def _lab(file: Path) -> list[Interval]:
    """Ends of phones in seconds, after a line with a #."""
    lines = [line.split() for line in file.read_text(encoding="utf-8").partition("#")[2].splitlines() if line.strip()]
    starts = ["0", *(line[0] for line in lines)]
    return [
        _interval(file, number, start, line[0], line[-1])
        for number, (start, line) in enumerate(zip(starts, lines, strict=False), 2)
    ]


def _interval(path: Path, line: int, start: str | None, end: str | None, label: str | None) -> Interval:
    try:
        return float(start or "none"), float(end or "none"), PAUSES.get(str(label), str(label))
    except ValueError:
        raise EvalError(f"{path}, line {line}: times must be seconds, got {start!r} and {end!r}") from None
