"""All that is asked of units at once: `senone eval units`.

measured = measure(tokenizer, spoken)
measured.quality.pnmi, measured.abx.within, measured.rates.entropy_bitrate, measured.stability["shift"]
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from senone.audio import Audio
from senone.data.units import vectors
from senone.eval.abx import ABX, SLICINGS, Distance, Slicing, abx, triphones
from senone.eval.corpus import Utterance
from senone.eval.stability import stability
from senone.eval.units import EvalError, Interval, Quality, Rates, phones_at, quality, rates
from senone.tokenizer import AudioTokenizer

On = Literal["codes", "features", "tokens"]
ON = ("codes", "features", "tokens")
DISTURBED = 20  # utterances that stability is measured on, if not told otherwise


@dataclass(frozen=True)
class Spoken:
    """An utterance, and when its phones are said; without phones, None."""

    utterance: Utterance
    phones: list[Interval] | None = None


@dataclass(frozen=True)
class Measured:
    """Of the first level: size, units used and to be expected if all were as likely, quality, and PNMI with the phones
    a frame early and late (lower, if the alignment is in time). Of all levels that were asked for: rates, abx and
    stability. None: not asked for, or no phones."""

    utterances: int
    seconds: float
    rates: Rates
    size: int
    used: int
    expected: float
    quality: Quality | None
    early: float | None
    late: float | None
    abx: ABX | None
    stability: dict[str, list[float]] | None


def measure(
    tokenizer: AudioTokenizer,
    spoken: list[Spoken],
    *,
    levels: int | None = None,
    on: On = "codes",
    distance: Distance | None = None,
    slicing: Slicing = "librilight",
    disturbed: int = DISTURBED,
    seed: int = 0,
    heard: Callable[[float], None] = lambda seconds: None,
) -> Measured:
    """Encode every utterance once, and measure.

    on: what ABX compares: "codes" as the vectors they stand for, as AudioLM has it; "features", the same before they
    are quantised; "tokens", by their numbers. distance: see `abx`; by default angular, of tokens identical. disturbed:
    how many utterances stability is measured on, 0 for none. heard: called with the seconds of each utterance.
    Raises EvalError, or AudioError naming a recording.
    """
    if on not in ON or slicing not in SLICINGS:
        raise EvalError(f"ABX is of one of {ON}, sliced as one of {SLICINGS}, got '{on}' and '{slicing}'")
    if not spoken:
        raise EvalError("there are no utterances to measure")
    count = tokenizer.levels_for(levels)
    hop, rate = tokenizer.hop, tokenizer.sample_rate
    codes: list[np.ndarray] = []
    seen: dict[str, np.ndarray] = {}
    for item in spoken:
        audio = item.utterance.read()
        found = tokenizer.encode(audio, levels=count)
        codes.append(found.data[0].numpy())
        if item.phones is not None:
            seen[item.utterance.id] = _vectors(tokenizer, audio, found.data, on)
        heard(item.utterance.seconds)
    sizes = tokenizer.quantizer.sizes
    with_phones = [(item, row[0]) for item, row in zip(spoken, codes, strict=True) if item.phones is not None]

    def shifted(by: float) -> Quality:
        pairs = ((_moved(item.phones or (), by), row) for item, row in with_phones)
        return quality((phones_at(phones, len(row), hop, rate), row.tolist()) for phones, row in pairs)

    compared = None
    if with_phones:
        segments = [
            segment
            for item, _ in with_phones
            for segment in triphones(item.utterance.id, item.phones or (), item.utterance.speaker)
        ]
        kind: Distance = distance or ("identical" if on == "tokens" else "angular")
        if segments:
            compared = abx(segments, seen.__getitem__, rate / hop, distance=kind, slicing=slicing, seed=seed)
    first = np.concatenate([row[0] for row in codes])
    step = hop / rate
    return Measured(
        utterances=len(spoken),
        seconds=sum(item.utterance.seconds for item in spoken),
        rates=rates(codes, sizes, rate / hop),
        size=sizes[0],
        used=len(np.unique(first)),
        expected=sizes[0] * -float(np.expm1(len(first) * np.log1p(-1 / sizes[0]))) if sizes[0] > 1 else 1.0,
        quality=shifted(0) if with_phones else None,
        early=shifted(-step).pnmi if with_phones else None,
        late=shifted(step).pnmi if with_phones else None,
        abx=compared,
        stability=stability(tokenizer, (item.utterance.read() for item in spoken[:disturbed]), count, seed)
        if disturbed
        else None,
    )


def _moved(phones: Iterable[Interval], by: float) -> list[Interval]:
    return [(start + by, end + by, label) for start, end, label in phones]


def _vectors(tokenizer: AudioTokenizer, audio: Audio, codes: torch.Tensor, on: On) -> np.ndarray:
    """(frame dim), or for tokens (frame level)."""
    if on == "tokens":
        return codes[0].T.numpy()
    if on == "features":
        wave = audio.resample(tokenizer.sample_rate).wave
        return torch.cat(list(vectors(tokenizer, [wave]))).float().cpu().numpy()
    with torch.no_grad():
        like = next(iter((*tokenizer.parameters(), *tokenizer.buffers())), codes)
        return tokenizer.quantizer.decode(codes.to(like.device))[0].T.float().cpu().numpy()
