"""The run card: run.json, what every number of a run depends on."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from senone.eval.corpus import Corpus
from senone.eval.metrics import RATE
from senone.eval.systems import System

PACKAGES = ("senone", "numpy", "torch", "soundfile", "soxr", "pesq", "pystoi", "visqol-python", "jiwer", "transformers",
            "whisper-normalizer", "onnxruntime")  # fmt: skip


def card(
    command: str, corpus: Corpus, systems: list[System], metrics: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """All that a number of a run depends on. metrics: their columns, fingerprints, how many utterances they hear."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "data": {
            "utterances": len(corpus.utterances),
            "speakers": len({utterance.speaker for utterance in corpus.utterances}),
            "seconds": round(sum(utterance.seconds for utterance in corpus.utterances), 3),
            "unreadable": corpus.unreadable,
        },
        "systems": [_about(codec) for codec in systems],
        "metrics": metrics,
        "utterances": [
            {key: getattr(utterance, key) for key in ("id", "speaker", "seconds", "text", "path", "content")}
            for utterance in corpus.utterances
        ],
        "resampler": "soxr HQ",
        "length": "cut to the shorter",
        "sample": f"{RATE} Hz, 16 bit",
        "normaliser": "as each metric's fingerprint says",
        **more,
    }


def _about(codec: System) -> dict[str, Any]:
    return {
        "name": codec.name,
        "fingerprint": codec.fingerprint,
        "kbps": codec.kbps,
        "levels": len(codec.sizes) or None,
        "sizes": list(codec.sizes),
        "frame_rate": codec.frame_rate,
        "token_rate": codec.frame_rate and codec.frame_rate * len(codec.sizes),
        "causal": codec.causal,
        "latency": codec.latency,
        "delay_samples": codec.delay,
        "waveform": codec.waveform,
        "group": codec.group,
        "missing": codec.missing,
    }


def _commit() -> str | None:
    """Of the source tree that this runs from, where it is one."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
