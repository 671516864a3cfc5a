"""From rows to what is told of them: RUN/summary.json.

systems: for each its rates, delay, codebook statistics, and a cell for each metric: value, low and high (95 %), n of
how many, and status. A cell without 99 % of its scores has no value. pairs: differences of systems on the same
utterances. warnings: sentences.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from senone.eval import codebooks, stats
from senone.eval.rows import DELAY, KBPS, NO_PHASE, Row, Run, read_json, slug

COVERAGE = 0.99  # of the scores, for a cell to have a value
# Samples of delay that change STOI, and around the median for clips to agree on it; envelopes tell less than waves.
MATTERS, AGREE = {True: 20, False: 160}, {True: 16, False: 80}
MOST = 0.8  # of the clips have to agree: what a codec does to speech at its worst has no delay
MOST_PAIRS = 2000

Found = dict[tuple[str, str], list[Row]]


def of(run: Run, seed: int = 0, against: str | None = None) -> dict[str, Any]:
    """The summary of a run. against: compare every system with this one only. Values are as in rows, not scaled."""
    utterances = run.card["utterances"]
    names = [utterance["id"] for utterance in utterances]
    drawn, unit = stats.units([utterance["speaker"] for utterance in utterances], names)
    places = {name: n for n, name in enumerate(names)}
    planned = {metric["name"]: metric["planned"] for metric in run.card["metrics"]}
    found: Found = {}
    for row in sorted(run.rows, key=lambda row: (row.system, row.metric, row.utterance)):
        if places[row.utterance] < planned.get(row.metric, len(names)):  # a former run may have measured more
            found.setdefault((row.system, row.metric), []).append(row)
    table = Table(found, places, unit, seed)
    systems = [_system(run, codec, table) for codec in run.card["systems"]]
    _equivalents(systems, run.card["metrics"])
    return {
        "unit": drawn,
        "draws": stats.DRAWS,
        "seed": seed,
        "against": against,
        "systems": systems,
        "pairs": _pairs(run, table, against),
        "warnings": _warnings(run, systems),
    }


class Table:
    """Scores by system and metric as vectors over utterances: zero, with weight zero, where there is none."""

    def __init__(self, found: Found, places: dict[str, int], unit: np.ndarray, seed: int) -> None:
        self.found, self.places, self.unit, self.seed = found, places, unit, seed

    def rows(self, system: str, metric: str) -> list[Row]:
        return self.found.get((system, metric), [])

    def vectors(self, system: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Values and weights, (utterance,)."""
        values, weights = np.zeros((2, len(self.places)))
        for row in self.rows(system, metric):
            if row.value is not None:
                values[self.places[row.utterance]], weights[self.places[row.utterance]] = row.value, row.weight
        return values, weights

    def intervals(self, columns: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """(2, column): bounds of sum(values) / sum(weights)."""
        if not columns:
            return np.zeros((2, 0))
        values, weights = (stats.totals(self.unit, np.stack(side, 1)) for side in zip(*columns, strict=True))
        return stats.intervals(values, weights, self.seed)


def _system(run: Run, codec: dict[str, Any], table: Table) -> dict[str, Any]:
    name, metrics = codec["name"], run.card["metrics"]
    columns = [_weighted(metric, *table.vectors(name, metric["name"])) for metric in metrics]
    bounds = table.intervals(columns)
    cells = {
        metric["name"]: _cell(table.rows(name, metric["name"]), metric["planned"], column, bounds[:, n])
        for n, (metric, column) in enumerate(zip(metrics, columns, strict=True))
    }
    kilobits, seconds = (vector.sum() for vector in table.vectors(name, KBPS))
    late = [row.value for row in table.rows(name, DELAY) if row.value is not None]
    speeds = read_json(run.folder / "speed.json") if (run.folder / "speed.json").exists() else {}
    speed = speeds.get(codec["fingerprint"], {}).get(name, {})
    return {
        "name": name,
        "kbps": codec["kbps"],
        "file_kbps": float(kilobits / seconds) if seconds else None,
        "levels": codec["levels"],
        "frame_rate": codec["frame_rate"],
        "token_rate": codec["token_rate"],
        "latency": codec["latency"],
        "delay": float(np.median(late)) if late else None,
        "delay_steady": bool(late) and _steady(late, AGREE[codec["waveform"]]),
        "delay_removed": _removed(run, codec, late),
        "speed": speed.get("real_time"),
        "memory_mb": speed.get("memory_mb"),
        **_books(run, codec),
        "cells": cells,
    }


def _weighted(metric: dict[str, Any], values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A metric that is no ratio is the mean over utterances, whatever the weights."""
    return (values, weights) if metric["ratio"] else (values, (weights > 0).astype(float))


def _cell(rows: list[Row], planned: int, column: tuple[np.ndarray, np.ndarray], bounds: np.ndarray) -> dict[str, Any]:
    good = sum(row.value is not None for row in rows)
    weight = column[1].sum()
    cell: dict[str, Any] = {"value": None, "low": None, "high": None, "n": good, "of": planned, "status": "ok"}
    if good >= COVERAGE * planned and weight > 0:
        return cell | {"value": column[0].sum() / weight, "low": float(bounds[0]), "high": float(bounds[1])}
    reasons = Counter((row.status, row.error) for row in rows if row.value is None)
    if not reasons:
        return cell | {"status": "not measured"}
    status, error = reasons.most_common(1)[0][0]
    return cell | {"status": "coverage" if good else status, "error": error}


def _books(run: Run, codec: dict[str, Any]) -> dict[str, Any]:
    """Statistics of the codebooks over the utterances of the card."""
    codes = run.codes(codec["name"]) if codec["sizes"] else {}
    mine = [codes[slug(u["id"])] for u in run.card["utterances"] if slug(u["id"]) in codes]
    if not mine:
        return {"entropy_kbps": None, "utilisation": None, "books": []}
    books = [codebooks.statistics(counts) for counts in codebooks.count(mine, codec["sizes"])]
    return {
        "entropy_kbps": codebooks.entropy_bitrate(books, codec["frame_rate"]) / 1000,
        "utilisation": sum(book.utilisation for book in books) / len(books),
        "expected_utilisation": sum(book.expected for book in books) / len(books),
        "books": [
            {
                "size": book.size,
                "frames": book.frames,
                "utilisation": book.utilisation,
                "expected": book.expected,
                "entropy": book.entropy,
                "perplexity": book.perplexity,
                "dead": book.dead,
            }
            for book in books
        ],
    }


def _equivalents(systems: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> None:
    """`opus`: at how many kb/s Opus has the same score, by metric, where the run holds two of its rates or more."""
    for metric in metrics:
        cells = [(system, system["cells"][metric["name"]]["value"]) for system in systems]
        ladder = [(s["kbps"], value) for s, value in cells if s["name"].startswith("opus:") and value is not None]
        for system, value in cells:
            rate = None if value is None else stats.equivalent(ladder, value, metric["better"] == "higher")
            system.setdefault("opus", {})[metric["name"]] = rate


def _pairs(run: Run, table: Table, against: str | None) -> list[dict[str, Any]]:
    """Differences a - b over the utterances that both have, with p corrected over all of them."""
    names = [codec["name"] for codec in run.card["systems"]]
    pairs = [(a, against) for a in names if a != against] if against else list(combinations(names, 2))
    found, columns = [], []
    for metric in run.card["metrics"]:
        vectors = {name: table.vectors(name, metric["name"]) for name in names}
        for a, b in pairs:
            (x, wx), (y, wy) = vectors[a], vectors[b]
            both = (wx > 0) & (wy > 0)
            if both.sum() < 2 or len(found) >= MOST_PAIRS:
                continue
            weights = wx if metric["ratio"] else np.ones(len(wx))
            columns.append((np.where(both, x - y, 0), np.where(both, weights, 0)))
            wins = stats.win_rate(x[both], y[both], metric["better"] == "higher")
            difference = columns[-1][0].sum() / columns[-1][1].sum()
            found.append({"a": a, "b": b, "metric": metric["name"], "difference": difference, "n": int(both.sum()),
                          "win_rate": wins})  # fmt: skip
    if not found:
        return []
    bounds = table.intervals(columns)
    p = stats.sign_flips(stats.totals(table.unit, np.stack([values for values, _ in columns], 1)), table.seed).tolist()
    tested = zip(found, bounds.T.tolist(), p, stats.holm(p), strict=True)
    return [pair | {"low": low, "high": high, "p": p, "p_holm": q} for pair, (low, high), p, q in tested]


def _removed(run: Run, codec: dict[str, Any], late: list[float]) -> float:
    """Samples that were taken off before measuring (the median, where every utterance has its own)."""
    known = {"none": 0, "known": codec["delay_samples"]}
    return float(known.get(run.card["alignment"], np.median(late) if late else 0))


def _steady(late: list[float], near: int) -> bool:
    return bool((np.abs(np.array(late) - np.median(late)) <= near).mean() >= MOST)


def _warnings(run: Run, systems: list[dict[str, Any]]) -> list[str]:
    said = []
    for system, codec in zip(systems, run.card["systems"], strict=True):
        if codec["missing"]:
            said.append(f"{system['name']} is n/a: {codec['missing']}")
        rest = (system["delay"] or 0) - system["delay_removed"]
        if system["delay_steady"] and abs(rest) >= MATTERS[codec["waveform"]]:
            said.append(
                f"{system['name']} runs {abs(rest):g} samples {'late' if rest > 0 else 'early'}, "
                "which lowers STOI and SI-SDR; --align estimate takes it out"
            )
    why: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # reason -> metrics and systems, in order
    for system, codec in zip(systems, run.card["systems"], strict=True):
        for name, cell in system["cells"].items():
            if cell["value"] is None and cell.get("error") not in (None, "", NO_PHASE) and not codec["missing"]:
                metrics, names = why.setdefault(cell["error"], ({}, {}))
                metrics[name], names[system["name"]] = None, None
    for reason, (metrics, names) in why.items():
        of = "" if len(names) == len(systems) else f" of {', '.join(names)}"
        said.append(f"{', '.join(metrics)}{of}: {reason}")
    return said
