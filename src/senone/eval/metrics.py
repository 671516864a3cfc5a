"""Metrics of a decoded wave beside its original: the types, the registry, the presets.

metric = METRICS.get("stoi")()
measure(metric, Item(ref, deg, "what was said")).value

A metric never invents a number: where it has none, its Score says why, and no mean takes it in. Every model is a column
of its own, with its licence: a substitute never sits under the name of what it stands for.
"""

import hashlib
import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float32

from senone.errors import SenoneError
from senone.eval.child import RATE, Status, Unmeasurable
from senone.hub import Registry

__all__ = ["METRICS", "PRESETS", "RATE", "Column", "Item", "Metric", "Plain", "Score", "Unmeasurable", "measure"]

# how to install what is not installed by its name alone
INSTALL = {"visqol-python": "'visqol-python[lattice]'"}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    name: the key in rows. title: what is printed. scale: shown value over value (100: per cent). ratio: a system's
    value is sum(value) / sum(weight), as of word error rates; else the mean. waveform: needs the phase, so parametric
    codecs have none. heavy: a neural net, or slow. licence, source: of the metric's package or model.
    """

    name: str
    title: str
    better: Literal["higher", "lower"]
    digits: int = 3
    scale: float = 1.0
    ratio: bool = False
    waveform: bool = False
    heavy: bool = False
    licence: str = ""
    source: str = ""


@dataclass(frozen=True)
class Item:
    """What a metric sees: the original and the decoded wave, mono at RATE, of one length; what was said, if known."""

    ref: Float32[np.ndarray, "samples"]
    deg: Float32[np.ndarray, "samples"]
    text: str | None = None


@dataclass(frozen=True)
class Score:
    """A value, which is a number exactly if status is "ok"; weight: what it counts for in a ratio; error: why not."""

    value: float | None
    weight: float = 1.0
    status: Status = "ok"
    error: str = ""


class Metric(Protocol):
    """Anything with a column, a fingerprint that changes whenever a value may, and a call that gives a Score."""

    @property
    def column(self) -> Column: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, item: Item) -> Score: ...


@dataclass(frozen=True)
class Plain:
    """The usual metric: a function of the item, and what its value depends on.

    function: gives a value, or a value and its weight; raises Unmeasurable. packages: distributions it runs, as pip
    names them. files: weights that it reads, in `folder()`. facts: parameters, and the version of our own code.
    """

    column: Column
    function: Callable[[Item], float | tuple[float, float]]
    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    facts: str = "1"

    @property
    def fingerprint(self) -> str:
        """Readable: name, facts, versions of packages, hashes of weights; what is missing says so."""
        packages = [f"{name}=={version(name) or 'missing'}" for name in self.packages]
        files = [f"{name}:{digest(folder() / name)}" for name in self.files]
        return " ".join([self.column.name, self.facts, *packages, *files])

    @property
    def missing(self) -> str:
        """One sentence on what is not there, with what to do about it; empty if nothing is."""
        for name in self.packages:
            if version(name) is None:
                return f"{name} is not installed: pip install {INSTALL.get(name, name)}"
        for name in self.files:
            if not (folder() / name).exists():
                return (
                    f"{name} is not in {folder()} (SENONE_METRICS); it is from {self.column.source} (docs/metrics.md)"
                )
        return ""

    def __call__(self, item: Item) -> Score:
        if why := self.missing:
            return Score(None, status="na", error=why)
        try:
            found = self.function(item)
        except Unmeasurable as reason:
            return Score(None, status=reason.status, error=str(reason))
        value, weight = found if isinstance(found, tuple) else (found, 1.0)
        return Score(float(value), float(weight))


def measure(metric: Metric, item: Item) -> Score:
    """The metric's score of the item, whatever happens: any exception, and a value that is no number, is an "error"."""
    if item.ref.shape != item.deg.shape or item.ref.ndim != 1:
        return _error(f"original and decoded wave have shapes {item.ref.shape} and {item.deg.shape}")
    if not len(item.ref):
        return Score(None, status="too_short", error="there are no samples")
    for name, wave in (("original", item.ref), ("decoded wave", item.deg)):
        if not np.isfinite(wave).all():
            return _error(f"the {name} holds NaN or infinite samples")
    try:
        score = metric(item)
    except Exception as error:
        known = isinstance(error, SenoneError)  # those are sentences already
        first = (str(error) or "no message").splitlines()[0]
        return _error(first if known else f"{type(error).__name__}: {first}")
    if score.status == "ok" and (score.value is None or not np.isfinite([score.value, score.weight]).all()):
        return _error(f"{metric.column.name} gave {score.value}, which is no number")
    return score


def _error(sentence: str) -> Score:
    return Score(None, status="error", error=sentence)


def folder() -> Path:
    """Where weights of metrics lie: SENONE_METRICS, else ~/.cache/senone-metrics."""
    return Path(os.environ.get("SENONE_METRICS") or Path.home() / ".cache" / "senone-metrics")


def version(package: str) -> str | None:
    """Of an installed distribution; None if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def digest(path: Path) -> str:
    """Eight digits of the SHA-256 of a file, or of a folder's files; "missing" without it. Read once in a process."""
    if not path.exists():
        return "missing"
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return _digest(*((file, file.stat().st_mtime_ns) for file in files))


@cache
def _digest(*files: tuple[Path, int]) -> str:
    total = hashlib.sha256()
    for path, _ in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:8]


# name -> what makes it, without arguments; weights are read at the first call, once in a process.
METRICS = Registry(
    "metric",
    {
        "stoi": "senone.eval.signal:stoi",
        "estoi": "senone.eval.signal:estoi",
        "pesq_wb": "senone.eval.signal:pesq_wb",
        "pesq_nb": "senone.eval.signal:pesq_nb",
        "si_sdr": "senone.eval.signal:si_sdr",
        "mel": "senone.eval.signal:mel",
        "stft": "senone.eval.signal:stft",
        "mcd": "senone.eval.signal:mcd",
        "visqol": "senone.eval.signal:visqol",
        # as published in Table 1 of Llasa; weights that cannot be had without a hub are the user's to bring
        "wer_hubert": "senone.eval.asr:wer_hubert",
        "cer_hubert": "senone.eval.asr:cer_hubert",
        "spk_sim": "senone.eval.speakers:spk_sim",
        "utmos": "senone.eval.opinion:utmos",
        # what stands in for them
        "wer_whisper": "senone.eval.asr:wer_whisper",
        "cer_whisper": "senone.eval.asr:cer_whisper",
        "wer_whisper_medium": "senone.eval.asr:wer_whisper_medium",
        "wer_moonshine": "senone.eval.asr:wer_moonshine",
        "cer_moonshine": "senone.eval.asr:cer_moonshine",
        "sim_ecapa": "senone.eval.speakers:sim_ecapa",
        "sim_resemblyzer": "senone.eval.speakers:sim_resemblyzer",
        "distillmos": "senone.eval.opinion:distillmos",
        "dnsmos": "senone.eval.opinion:dnsmos",
        "dnsmos_sig": "senone.eval.opinion:dnsmos_sig",
        "dnsmos_bak": "senone.eval.opinion:dnsmos_bak",
        "dnsmos_p808": "senone.eval.opinion:dnsmos_p808",
    },
)
QUICK = ("stoi", "estoi", "pesq_wb", "pesq_nb", "si_sdr", "mel", "stft", "mcd")
PRESETS: dict[str, tuple[str, ...]] = {
    "table1": ("wer_hubert", "stoi", "pesq_wb", "pesq_nb", "spk_sim", "utmos"),
    "quick": QUICK,
    "soundstream": ("visqol", "si_sdr", "dnsmos"),
    "offline": (*QUICK, "visqol", "wer_moonshine", "cer_moonshine", "sim_ecapa", "distillmos", "dnsmos"),
}
