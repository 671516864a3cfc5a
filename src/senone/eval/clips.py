"""Which clips of a run are worth hearing, and their sound as data inside a page."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

from senone.eval.page import Html, tag
from senone.eval.rows import ORIGINAL, Row, Run
from senone.eval.units import EvalError

OPUS_LEVEL = 0.8  # of libsndfile's "compression": about 54 kb/s, where FLAC takes 120


def extremes(rows: Iterable[Row], higher: bool) -> dict[str, str]:
    """Utterance -> "best", "median" or "worst" of one system by one metric, of those that have a value.

    With fewer than three, some are missing; ties go by name, so that the choice is the same every time.
    """
    sign = -1 if higher else 1
    order = sorted((sign * row.value, row.utterance) for row in rows if row.value is not None)
    if not order:
        return {}
    places = {"best": 0, "worst": len(order) - 1, "median": len(order) // 2}
    named: dict[str, str] = {}
    for name, place in places.items():
        named.setdefault(order[place][1], name)
    return named


def read(path: Path) -> tuple[Float32[np.ndarray, "samples"], int]:
    """Samples and rate of mono audio. Raises EvalError naming the file."""
    try:
        wave, rate = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.SoundFileError) as error:
        raise EvalError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if wave.ndim != 1:
        raise EvalError(f"{path} is not mono")
    return wave, rate


def decoded(run: Run, system: str, utterance: str) -> tuple[Float32[np.ndarray, "samples"], int]:
    """As `read`, of what a system made, without the delay that most clips agree on: it plays beside the original."""
    wave, rate = read(run.audio(system, utterance))
    steady = (each for each in run.summary["systems"] if each["name"] == system and each.get("delay_steady"))
    late = next((each["delay"] for each in steady), 0)
    return wave[round(late) if late >= rate / 1000 else 0 :], rate  # less is nothing to hear, and hard to measure


def uri(wave: Float32[np.ndarray, "samples"], rate: int, kind: str = "flac") -> str:
    """Samples as a data URI: "flac" (16 bit, without loss) or "opus"."""
    data = io.BytesIO()
    if kind == "flac":
        soundfile.write(data, wave, rate, "PCM_16", format="FLAC", compression_level=1.0)
    else:
        soundfile.write(data, wave, rate, "OPUS", format="OGG", compression_level=OPUS_LEVEL)
    return f"data:audio/{'flac' if kind == 'flac' else 'ogg'};base64,{base64.b64encode(data.getvalue()).decode()}"


def embed(
    run: Run, needed: Sequence[tuple[str, str]], wanted: Sequence[tuple[str, str]], room: int
) -> tuple[dict[tuple[str, str], Html], str]:
    """Audio elements of (system, utterance) pairs in `room` bytes, and a sentence on what was done.

    `needed` without loss if all of them fit, else as Opus, else as many as fit from the first on; `wanted` as room is
    left. An utterance comes with its original, or not at all.
    """
    done: dict[tuple[str, str], Html] = {}
    pairs = list(dict.fromkeys([*needed, *wanted]))
    for kind in ("flac", "opus"):
        done, left = {}, room
        for system, utterance in pairs:
            new = {
                pair: tag("audio", src=uri(*decoded(run, *pair), kind), preload="none", data_system=pair[0])
                for pair in ((ORIGINAL, utterance), (system, utterance))
                if pair not in done
            }
            size = sum(map(len, new.values()))
            if size > left:
                break
            done |= new
            left -= size
        if all(pair in done for pair in needed):
            break
    said = (
        "Sound is 16-bit FLAC, without loss."
        if kind == "flac"
        else ("Sound is coded again as Opus, to keep this file small: judge fine differences in the run's folder.")
    )
    lost = sum(pair not in done for pair in needed)
    return done, said + (f" {lost} of {len(needed)} clips did not fit." if lost else "")
