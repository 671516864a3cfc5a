"""Does a language model of units know words and grammar? sWUGGY and sBLIMP (ZeroSpeech 2021, 2011.11588).

pairs = read_gold("sLM21/lexical/dev")
scores = score(model, tokenizer, files(pairs))
judge(pairs, scores).all

Of a word and a non-word, or of a sentence and its ungrammatical twin, said by the same voice, the right one should have
the higher score: 1 if so, 1/2 for a tie. A pair counts the mean over its voices, a result is the mean over pairs, as in
the official program; but rows are paired by what they say they are, never by their order in the file.
"""

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int

from senone.audio import Audio
from senone.eval.stats import intervals
from senone.eval.units import EvalError
from senone.lm import LanguageModel
from senone.tokenizer import AudioTokenizer

Norm = Literal["mean", "sum"]
NORMS = ("mean", "sum")
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
OOV = "oov"
BANDS = ((1, OOV), (5, "1-5"), (20, "6-20"), (100, "21-100"), (math.inf, ">100"))  # below which count, its name
SYNTHETIC = "SYNTHETIC"  # a file of this name marks a folder of stand-ins, and says what they are


@dataclass(frozen=True)
class Pair:
    """One word or sentence beside its wrong twin. key: what makes it one pair, over voices. files: (right, wrong) by
    voice. group: band of frequency or type; length: phones of the word, None for sentences."""

    key: tuple[str, ...]
    files: dict[str, tuple[Path, Path]]
    group: str
    length: int | None = None


@dataclass(frozen=True)
class Share:
    """A mean over `count` pairs, a share of 1, with its 95 % interval (bootstrap over pairs)."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Judged:
    """all: over every pair. invocab: over words that LibriSpeech has (None for sentences, or if no frequency is known).

    groups: by band of frequency, or by type of sentence. lengths: by phones.
    """

    all: Share
    invocab: Share | None
    groups: dict[str, Share]
    lengths: dict[int, Share]


def read_gold(folder: str | Path) -> list[Pair]:
    """The pairs of an official folder, such as lexical/dev or syntactic/test: gold.csv and the recordings beside it.

    Raises EvalError naming the file, and the column, the row or the recording at fault.
    """
    gold = Path(folder) / "gold.csv"
    try:
        with open(gold, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, have = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvalError(f"cannot read {gold}: {getattr(error, 'strerror', None) or error}") from None
    lexical = "word" in have
    needed = {"filename", "id", "voice", "correct"} | ({"frequency", "length"} if lexical else {"type", "subtype"})
    for name in sorted(needed - have):
        raise EvalError(f"{gold} has no column '{name}'")
    if not rows:
        raise EvalError(f"{gold} has no rows")
    sides: dict[tuple[str, ...], dict[str, dict[str, dict[str, str]]]] = {}
    for line, row in enumerate(rows, 2):
        if row["correct"] not in ("0", "1"):
            raise EvalError(f"{gold}, line {line}: correct must be 0 or 1, got {row['correct']!r}")
        key = (row["id"],) if lexical else (row["type"], row["subtype"], row["id"])
        voice = sides.setdefault(key, {}).setdefault(row["voice"], {})
        if row["correct"] in voice:
            raise EvalError(f"{gold}, line {line}: id {row['id']}, voice {row['voice']} is there twice")
        voice[row["correct"]] = row
    out = []
    for key, voices in sides.items():
        for voice, both in voices.items():
            if len(both) != 2:
                raise EvalError(f"{gold}: {' '.join(key)}, voice {voice} has no twin")
        found = {v: (_recording(folder, both["1"]), _recording(folder, both["0"])) for v, both in voices.items()}
        right = next(iter(voices.values()))["1"]
        group, length = (_band(gold, right), int(right["length"])) if lexical else (right["type"], None)
        out.append(Pair(key, found, group, length))
    return out


def _band(gold: Path, row: dict[str, str]) -> str:
    try:
        count = float(row["frequency"] or "nan")
        return next((name for limit, name in BANDS if count < limit), "")  # nothing is below NaN
    except ValueError:
        raise EvalError(f"{gold}: frequency of {row['filename']} must be a number, got {row['frequency']!r}") from None


def _recording(folder: str | Path, row: dict[str, str]) -> Path:
    path = Path(folder) / row["filename"]
    found = [path] if path.suffix in SUFFIXES else [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    for file in found:
        if file.exists():
            return file
    raise EvalError(f"{found[0]} does not exist: gold.csv has it")


def files(pairs: Iterable[Pair]) -> list[Path]:
    """Every recording, once."""
    return list(dict.fromkeys(file for pair in pairs for both in pair.files.values() for file in both))


def score(
    model: LanguageModel,
    tokenizer: AudioTokenizer,
    recordings: Iterable[Path],
    *,
    norm: Norm = "mean",
    collapse: bool = True,
    heard: Callable[[float], None] = lambda seconds: None,
) -> dict[Path, float]:
    """Log-probability, in nats, of the first level of each recording's codes, under the model.

    norm: "mean" is over the tokens that are scored, as AudioLM's sWUGGY is. collapse: runs of a token become one, as
    such models are trained. Each is scored alone, so equal tokens get equal scores. heard: called with seconds done.
    Raises EvalError for an unknown norm, AudioError, or LMError naming the recording.
    """
    if norm not in NORMS:
        raise EvalError(f"norm must be one of {NORMS}, got '{norm}'")
    device = next((value.device for value in (*model.parameters(), *model.buffers())), None)
    out = {}
    for path in recordings:
        audio = Audio.read(path)
        tokens = tokens_of(tokenizer, audio, collapse).to(device)
        count = model.scored(len(tokens))
        if not count:
            raise EvalError(f"{path} is of {len(tokens)} tokens: too few to score")
        out[path] = float(model.score(tokens[None])[0]) / (count if norm == "mean" else 1)
        heard(audio.wave.shape[1] / audio.rate)
    return out


def tokens_of(tokenizer: AudioTokenizer, audio: Audio, collapse: bool = True) -> Int[torch.Tensor, "time"]:
    """The first level of a recording, with runs of a token as one token unless told otherwise."""
    tokens = tokenizer.encode(audio, levels=1).data[0, 0]
    return torch.unique_consecutive(tokens) if collapse else tokens


def judge(pairs: list[Pair], scores: dict[Path, float], *, seed: int = 0) -> Judged:
    """Who won. Raises EvalError naming a recording without a score, or with one that is no number."""
    won = np.array([_won(pair, scores) for pair in pairs])
    bands = [name for _, name in BANDS]
    names = sorted({pair.group for pair in pairs}, key=lambda name: (bands.index(name) if name in bands else -1, name))
    groups = {name: _share(won[[pair.group == name for pair in pairs]], seed) for name in names if name}
    lengths = {n: _share(won[[pair.length == n for pair in pairs]], seed) for n in sorted(_lengths(pairs))}
    known = [pair.length is not None and pair.group not in ("", OOV) for pair in pairs]
    return Judged(_share(won, seed), _share(won[known], seed) if any(known) else None, groups, lengths)


def _lengths(pairs: list[Pair]) -> set[int]:
    return {pair.length for pair in pairs if pair.length is not None}


def _won(pair: Pair, scores: dict[Path, float]) -> float:
    """Voices first."""
    return float(np.mean([_beats(_of(right, scores), _of(wrong, scores)) for right, wrong in pair.files.values()]))


def _of(file: Path, scores: dict[Path, float]) -> float:
    if file not in scores or math.isnan(scores[file]):
        raise EvalError(f"{file} has no score")
    return scores[file]


def _beats(right: float, wrong: float) -> float:
    return float(right > wrong) + 0.5 * (right == wrong)


def _share(won: np.ndarray, seed: int) -> Share:
    (low,), (high,) = intervals(won[:, None], np.ones((len(won), 1)), seed)
    return Share(float(won.mean()), float(low), float(high), len(won))


def write_scores(path: str | Path, scores: dict[Path, float]) -> None:
    """A line a recording, its name and its score, as the official program takes them; under a temporary name first."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(f"{file.stem} {value:.17g}\n" for file, value in scores.items()))
        part.replace(path)
    except OSError as error:
        raise EvalError(f"cannot write {path}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def synthetic(folder: str | Path) -> bool:
    """Whether the folder, or one that it lies in, is marked as stand-ins: no figure from it compares with others."""
    return any((place / SYNTHETIC).exists() for place in (Path(folder), *Path(folder).absolute().parents))
