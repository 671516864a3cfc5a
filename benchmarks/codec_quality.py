"""Measure codecs side by side on real speech:  python benchmarks/codec_quality.py [SYSTEM ...] --data DIR --out RUN

SYSTEM: see peers.py; without any, everything that issue "the first codec" compares. Every score is one line of
RUN/scores.jsonl, kept by (utterance, fingerprint of the system, metric), so a run that stops goes on where it was and
a run with more systems measures only these. RUN/audio holds what was decoded, RUN/table.md and table.csv the result:
means over utterances (word error and bit rates: ratios of sums) with 95 % bootstrap intervals, and the differences to
one system, paired by utterance.
"""

import argparse
import csv
import io
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
from metrics import METRICS, RATE, Metric, NotApplicable
from peers import PeerError, System, system

from senone.errors import SenoneError

DEFAULT = [
    "identity", "opus:6k", "opus:9k", "opus:12k", "amrwb:6.6", "codec2:3200", "lyra:3.2", "lyra:6", "lyra:9.2",
    "spectral-mini@1", "spectral-mini@4", "spectral-mini", "soundstream-mini@6", "soundstream-mini@12",
]  # fmt: skip
DRAWS = 10000


@dataclass(frozen=True)
class Utterance:
    path: str
    speaker: str
    seconds: float
    text: str


@dataclass(frozen=True)
class Row:
    """One score. value and weight are null where the metric does not apply; then status says why."""

    utterance: str
    speaker: str
    system: str
    fingerprint: str
    metric: str
    version: str
    value: float | None
    weight: float | None
    status: str = "ok"

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.utterance, self.fingerprint, self.metric, self.version


def read_data(folder: Path) -> list[Utterance]:
    """Utterances of DIR/manifest.tsv, speaker by speaker in turn: any first N hold as many speakers as can be."""
    with open(folder / "manifest.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    turns: dict[str, int] = {}
    order = []
    for row in rows:
        turn = turns[row["speaker"]] = turns.get(row["speaker"], -1) + 1
        order.append((turn, Utterance(row["path"], row["speaker"], float(row["seconds"]), row["text"])))
    return [utterance for _, utterance in sorted(order, key=lambda pair: pair[0])]


cached_system = cache(system)


def measure(name: str, utterance: Utterance, data: str, run: str, metrics: list[str]) -> list[Row]:
    """Decode one utterance with one system, unless that was done before, and score it. Runs in a worker."""
    codec = cached_system(name)
    reference, rate = soundfile.read(Path(data, utterance.path), dtype="float32")
    if rate != RATE or reference.ndim != 1:
        raise PeerError(f"{utterance.path} is not {RATE} Hz mono")
    file = audio_file(run, codec.fingerprint, utterance.path)

    def row(metric: str, version: str, value: float | None, weight: float | None, status: str = "ok") -> Row:
        return Row(utterance.path, utterance.speaker, name, codec.fingerprint, metric, version, value, weight, status)

    rows = []
    if not file.exists() or "kbps" in metrics:
        decoded, bits = codec.code(reference)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.stem}.{os.getpid()}.part.flac")
        soundfile.write(part, decoded[codec.delay :], RATE, "PCM_16")
        os.replace(part, file)
        rows.append(row("kbps", "1", bits / 1000, len(reference) / RATE))
    decoded, _ = soundfile.read(file, dtype="float32")
    common = min(len(reference), len(decoded))
    for metric in metrics:
        if metric == "kbps":
            continue
        this = METRICS[metric]
        try:
            if this.waveform and not codec.waveform:
                raise NotApplicable("no waveform match")
            value, weight = this.score(reference[:common], decoded[:common], utterance.text)
            if not np.isfinite(value):
                raise NotApplicable(f"{value}")
            rows.append(row(metric, this.version, value, weight))
        except NotApplicable as reason:
            rows.append(row(metric, this.version, None, None, str(reason)))
    return rows


def audio_file(run: str | Path, fingerprint: str, utterance: str) -> Path:
    """Where the decoded utterance is kept."""
    return Path(run, "audio", fingerprint, f"{Path(utterance).stem}.flac")


def read_rows(path: Path) -> dict[tuple[str, ...], Row]:
    """Scores of former runs; a last line that was torn off is dropped."""
    rows: dict[tuple[str, ...], Row] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                row = Row(**json.loads(line))
            except (ValueError, TypeError):
                continue
            rows[row.key] = row
    return rows


def interval(values: np.ndarray, weights: np.ndarray, groups: list[str]) -> tuple[float, float]:
    """95 % percentile bootstrap of sum(values) / sum(weights), whole groups (speakers) drawn with replacement."""
    names = sorted(set(groups))
    index = np.array([names.index(group) for group in groups])
    value, weight = (np.bincount(index, x, len(names)) for x in (values, weights))
    draws = _draws(len(names))
    low, high = np.percentile(draws @ value / (draws @ weight), [2.5, 97.5])
    return float(low), float(high)


@cache
def _draws(count: int) -> np.ndarray:
    """How often each of `count` groups is drawn, DRAWS times; the same in every cell of a table."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS).astype(float)


def summary(rows: list[Row], others: list[Row] | None = None) -> tuple[float, float, float, int] | None:
    """(score, low, high, n) of one system and metric; with `others`, of the difference to these, paired."""
    theirs = {row.utterance: row.value for row in others or [] if row.value is not None}
    good = [row for row in rows if row.value is not None and (others is None or row.utterance in theirs)]
    if not good:
        return None
    values = np.array([row.value for row in good], float) - [theirs.get(row.utterance, 0) for row in good]
    weights = np.array([row.weight for row in good], float)
    return values.sum() / weights.sum(), *interval(values, weights, units(good)), len(good)


def units(rows: list[Row]) -> list[str]:
    """What the bootstrap draws: speakers where there are 20 or more, else utterances."""
    speakers = [row.speaker for row in rows]
    return speakers if len(set(speakers)) >= 20 else [row.utterance for row in rows]


def tables(systems: list[System], rows: list[Row], metrics: list[str], planned: dict[str, int], against: str):
    """The result as Markdown and as CSV."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.fingerprint, row.metric), []).append(row)
    base = next((codec for codec in systems if codec.name == against), None)
    output = io.StringIO()
    sheet = csv.writer(output, lineterminator="\n")
    sheet.writerow(["system", "kbps", "metric", "score", "low", "high", "n", "planned", "difference", "low", "high"])
    lines, deltas = [], []
    heads = ["system", "kb/s", "kb/s in file", *(METRICS[m].title for m in metrics)]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for codec in systems:
        size = summary(found.get((codec.fingerprint, "kbps"), []))
        cells, changes = [codec.name, f"{codec.kbps:.2f}", f"{size[0]:.2f}" if size else "–"], [codec.name]
        for metric in metrics:
            this, mine = METRICS[metric], found.get((codec.fingerprint, metric), [])
            theirs = found.get((base.fingerprint, metric), []) if base else []
            score, change = summary(mine), summary(mine, theirs) if codec is not base else None
            cells.append(cell(score, this, planned[metric]))
            changes.append(cell(change, this, planned[metric], sign="+"))
            if score:
                values = [*(score[:3]), score[3], planned[metric], *(change[:3] if change else ["", "", ""])]
                scaled = [v * this.scale if isinstance(v, float) else v for v in values]
                sheet.writerow([codec.name, f"{codec.kbps:.3f}", metric, *scaled])
        lines.append("| " + " | ".join(cells) + " |")
        if codec is not base:
            deltas.append("| " + " | ".join(changes) + " |")
    counts = ", ".join(f"{METRICS[m].title} {planned[m]}" for m in metrics)
    lines += ["", f"Utterances: {counts}; a cell with fewer says (n). In brackets: 95 % bootstrap interval."]
    if base and deltas:
        heads = [f"minus {against}", *(METRICS[m].title for m in metrics)]
        lines += ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *deltas]
    return "\n".join(lines) + "\n", output.getvalue()


def cell(score: tuple[float, float, float, int] | None, metric: Metric, planned: int, sign: str = "") -> str:
    if score is None:
        return "–"
    value, low, high = (f"{x * metric.scale:{sign}.{metric.digits}f}" for x in score[:3])
    return f"{value} [{low}, {high}]" + (f" ({score[3]})" if score[3] < planned else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", default=DEFAULT, metavar="SYSTEM")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--metrics", default=",".join(METRICS), help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="only the first N utterances, all speakers in turn")
    parser.add_argument("--heavy", type=int, default=40, help="utterances for the slow metrics (default %(default)s)")
    parser.add_argument("--against", default="opus:6k", help="differences to this system (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    metrics = options.metrics.split(",")
    if wrong := [metric for metric in metrics if metric not in METRICS]:
        parser.error(f"unknown metric '{wrong[0]}'; known: {', '.join(METRICS)}")
    try:
        run(options, metrics)
    except (SenoneError, OSError) as error:
        sys.exit(f"codec_quality: {error}")


def run(options: argparse.Namespace, metrics: list[str]) -> None:
    utterances = read_data(options.data)[: options.limit]
    systems = [cached_system(name) for name in options.systems]
    planned = {m: min(len(utterances), options.heavy) if METRICS[m].heavy else len(utterances) for m in metrics}
    options.out.mkdir(parents=True, exist_ok=True)
    scores = options.out / "scores.jsonl"
    rows = read_rows(scores)
    tasks = []
    for number, utterance in enumerate(utterances):  # system after system, so that an early stop leaves fair pairs
        for codec in systems:
            wanted = [("kbps", "1")] + [(m, METRICS[m].version) for m in metrics if number < planned[m]]
            todo = [m for m, version in wanted if (utterance.path, codec.fingerprint, m, version) not in rows]
            if todo:
                tasks.append((codec.name, utterance, str(options.data), str(options.out), todo))
    with open(scores, "a") as file:
        if file.tell() and not scores.read_text().endswith("\n"):
            file.write("\n")  # after a line that was torn off
        for done, new in enumerate(scored(tasks, options.jobs), 1):
            file.write("".join(json.dumps(asdict(row)) + "\n" for row in new))
            file.flush()
            rows |= {row.key: row for row in new}
            if sys.stderr.isatty() or done % 100 == 0 or done == len(tasks):
                print(f"\r{done}/{len(tasks)}", end="\n" if done == len(tasks) else "", file=sys.stderr, flush=True)
    names = {utterance.path for utterance in utterances}
    shown = [row for row in rows.values() if row.utterance in names]
    table, sheet = tables(systems, shown, metrics, planned, options.against)
    for name, text in (("table.md", table), ("table.csv", sheet)):
        part = options.out / f"{name}.part"
        part.write_text(text)
        part.replace(options.out / name)
    print(table)


def scored(tasks: list[tuple], jobs: int):
    """The rows of every task, as they come."""
    if jobs <= 1 or len(tasks) < 2:
        yield from (measure(*task) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(measure, *task) for task in tasks]):
            yield future.result()


if __name__ == "__main__":
    main()
