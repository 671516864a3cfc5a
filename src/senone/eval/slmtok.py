"""SLMTokBench as a run: probes of several tokenizers and ranges of levels, each kept once it is done, and resynthesis.

RUN/probes/SYSTEM.json       what the probe of one tokenizer and range found, with all it depends on
RUN/resynthesis/             a run of `senone.eval.bench`: what the test set sounds like, its rows and its card
RUN/slmtok.json, slmtok.md   both halves side by side
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from senone.eval.corpus import Corpus, Utterance
from senone.eval.rows import Run, read_json, replacing, slug, write_json
from senone.eval.slmtokbench import Alignment, Sample, Settings, codebooks, text_alignment
from senone.eval.units import EvalError
from senone.tokenizer import AudioTokenizer

RESYNTHESIS = ("wer_whisper", "sim_ecapa", "visqol")  # for the paper's Whisper medium.en, WavLM-TDNN, ViSQOL
COUNT = 300  # utterances resynthesised, as in the paper
VERSION = 1  # of what a probe is; a change makes what is kept worthless
PAGE = "slmtok.md"


@dataclass(frozen=True)
class Range:
    """Levels first to last, from 1."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}:{self.last}" if self.first < self.last else str(self.first)


@dataclass(frozen=True)
class Parts:
    """What the probe is trained on, and measured on: mutual information on dev, error rates on test."""

    train: Corpus
    dev: Corpus
    test: Corpus


def ranges(text: str | None, levels: int) -> list[Range]:
    """`1,1:8,2:8` as ranges, but for those that go beyond the levels there are; without, the first level and all.

    Raises EvalError for what is no range, or where none is left."""
    if text is None:
        return [Range(1, 1), Range(1, levels)][: 1 + (levels > 1)]
    out = []
    for word in text.split(","):
        first, colon, last = word.strip().partition(":")
        if not first.isdigit() or (colon and not last.isdigit()) or not 1 <= int(first) <= int(last or first):
            raise EvalError(f"levels are given as 1,1:8,2:8, got '{word}'")
        out.append(Range(int(first), int(last or first)))
    kept = [one for one in dict.fromkeys(out) if one.last <= levels]
    if not kept:
        raise EvalError(f"levels {text} are all beyond the {levels} that there are")
    return kept


def drawn(corpus: Corpus, count: int = COUNT, seed: int = 0) -> Corpus:
    """So many utterances that have a text, at random by `seed`, in their order; all, where there are fewer."""
    told = [utterance for utterance in corpus.utterances if utterance.text]
    chosen = sorted(np.random.default_rng(seed).permutation(len(told))[:count])
    return Corpus([told[k] for k in chosen], corpus.unreadable)


def encode(
    tokenizer: AudioTokenizer, corpus: Corpus, levels: int, heard: Callable[[float], None] = lambda seconds: None
) -> list[Sample]:
    """The utterances that have a text, as codes of the first `levels` levels."""
    out = []
    for utterance in corpus.utterances:
        if utterance.text:
            codes = tokenizer.encode(utterance.read(), levels=levels).data[0].numpy()
            out.append(Sample(codes.astype(np.int32), utterance.text))
        heard(utterance.seconds)
    return out


def probe(
    name: str,
    tokenizer: AudioTokenizer,
    samples: Callable[[], tuple[list[Sample], list[Sample], list[Sample]]],
    parts: Parts,
    levels: Range,
    settings: Settings,
    folder: Path,
    tell: Callable[[int, float, float], None] = lambda step, train, dev: None,
) -> dict[str, Any]:
    """Train and ask one probe, or read what it found where nothing that it depends on has changed.

    samples: train, dev and test as `encode` gives them; not called where the result is there.
    """
    facts = {
        "version": VERSION,
        "tokenizer": name,
        "fingerprint": tokenizer.spec.fingerprint,
        "levels": str(levels),
        "settings": asdict(settings),
        "data": {part: _content(getattr(parts, part).utterances) for part in ("train", "dev", "test")},
    }
    path = folder / "probes" / f"{slug(f'{name}@{levels}')}.json"
    if path.exists():
        known = read_json(path)
        if {key: known.get(key) for key in facts} == facts:
            return known
    cut = [[Sample(one.codes[levels.first - 1 : levels.last], one.text) for one in part] for part in samples()]
    tables = codebooks(tokenizer, levels.first, levels.last) if settings.tables == "codebook" else None
    found: Alignment = text_alignment(
        *cut,
        sizes=tokenizer.quantizer.sizes[levels.first - 1 : levels.last],
        frame_rate=float(tokenizer.spec.frame_rate),
        settings=settings,
        tables=tables,
        tell=tell,
    )
    machine = {"device": "cuda" if torch.cuda.is_available() else "cpu", "torch": torch.__version__}
    counts = {part: len(some) for part, some in zip(("train", "dev", "test"), cut, strict=True)}
    whole = facts | machine | {"utterances": counts, "alignment": asdict(found)}
    write_json(path, whole)
    return whole


def _content(utterances: Sequence[Utterance]) -> str:
    """Fingerprint of recordings and texts."""
    return hashlib.sha256(" ".join(utterance.content for utterance in utterances).encode()).hexdigest()[:16]


def table(probes: list[dict[str, Any]], heard: Run | None) -> list[dict[str, Any]]:
    """A row a tokenizer and range: both halves; a cell is {"value", "low", "high"}, with "status" where it has none.

    The first row is the original, where something was resynthesised.
    """
    summary = {} if heard is None else {system["name"]: system for system in heard.summary["systems"]}
    rows = [{"tokenizer": "original", "levels": "", **summary["identity"]["cells"]}] if "identity" in summary else []
    for one in probes:
        first, _, last = one["levels"].partition(":")
        cells = summary.get(f"{one['tokenizer']}@{last or first}", {}).get("cells", {}) if first == "1" else {}
        found = one["alignment"]
        rows.append(
            {
                "tokenizer": one["tokenizer"],
                "levels": one["levels"],
                "mi_per_char": found["mi"]["per_char"],
                "probe_wer": found["wer"],
                "probe_cer": found["cer"],
                "gap": {"value": found["dev_loss"] - found["train_loss"]},
                "infeasible": {"value": found["mi"]["infeasible"]},
                **cells,
            }
        )
    return rows


# key -> title, scale, digits
COLUMNS = {
    "mi_per_char": ("MI (nats/char)", 1, 2),
    "probe_wer": ("probe WER %", 100, 1),
    "probe_cer": ("probe CER %", 100, 1),
    "gap": ("dev - train (nats/char)", 1, 2),
    "infeasible": ("infeasible %", 100, 1),
}


def markdown(rows: list[dict[str, Any]], heard: Run | None) -> str:
    """The table as text, with intervals; a dash where there is no value."""
    columns = dict(COLUMNS)
    for metric in [] if heard is None else heard.card["metrics"]:
        if any(metric["name"] in row for row in rows):
            columns[metric["name"]] = (metric["title"], metric["scale"], metric["digits"])
    lines = ["| tokenizer | levels | " + " | ".join(title for title, _, _ in columns.values()) + " |"]
    lines.append("|---|---|" + "---:|" * len(columns))
    for row in rows:
        cells = (_cell(row.get(key), scale, digits) for key, (_, scale, digits) in columns.items())
        lines.append(f"| {row['tokenizer']} | {row['levels'] or '-'} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(cell: dict[str, Any] | None, scale: float, digits: int) -> str:
    if not cell or cell.get("value") is None:
        return "-"
    value = f"{scale * cell['value']:.{digits}f}"
    if cell.get("low") is None or cell.get("high") is None:
        return value
    return f"{value} [{scale * cell['low']:.{digits}f}, {scale * cell['high']:.{digits}f}]"


def write(folder: Path, rows: list[dict[str, Any]], probes: list[dict[str, Any]], heard: Run | None) -> str:
    """slmtok.json and slmtok.md; returns the latter."""
    text = markdown(rows, heard)
    write_json(folder / "slmtok.json", {"rows": rows, "probes": probes})
    with replacing(folder / PAGE) as part:
        part.write_text(text)
    return text
