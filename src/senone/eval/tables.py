"""A run as a table: in the terminal, as CSV, Markdown and LaTeX; and the published table, to stand beside it."""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

from senone.eval.rows import Run, replacing

# Llasa (2502.04128), Table 1: LibriSpeech test-clean, 2,620 utterances. name, tokens/s, codebook size (one, or one for
# each level), levels, frames/s, WER %, STOI, PESQ-WB, PESQ-NB, SPK-SIM, UTMOS.
PUBLISHED = """\
Ground Truth,,,,,1.96,1.00,4.64,4.55,1.00,4.09
DAC,600,1024,12,50,2.00,0.95,4.01,4.15,0.95,4.00
EnCodec,600,1024,8,75,2.15,0.94,2.77,3.18,0.89,3.09
EnCodec,150,1024,2,75,4.90,0.85,1.56,1.94,0.60,1.58
DAC,100,1024,2,50,13.27,0.73,1.13,1.40,0.32,1.29
SpeechTokenizer,100,1024,2,50,3.92,0.77,1.25,1.59,0.36,2.28
Mimi,100,2048,8,12.5,2.96,0.91,2.25,2.80,0.73,3.56
X-codec,100,1024,2,50,2.49,0.86,2.33,2.88,0.72,4.21
BigCodec,80,8192,1,80,2.76,0.93,2.68,3.27,0.84,4.11
WavTokenizer,75,4096,1,75,3.98,0.90,2.13,2.63,0.65,3.79
Mimi,75,2048,6,12.5,3.61,0.89,1.99,2.51,0.65,3.38
EnCodec,75,1024,1,75,28.92,0.77,1.23,1.48,0.25,1.25
DAC,50,1024,1,50,74.55,0.62,1.06,1.20,0.08,1.25
SpeechTokenizer,50,1024,1,50,5.01,0.64,1.14,1.30,0.17,1.27
Mimi,50,2048,4,12.5,4.89,0.85,1.64,2.09,0.50,3.03
StableCodec,50,15625,2,25,5.12,0.91,2.24,2.91,0.62,4.23
SemantiCodec,50,32768/8192,2,25,6.89,0.84,1.66,2.18,0.58,2.71
X-codec,50,1024,1,50,3.42,0.83,1.84,2.38,0.52,4.05
WavTokenizer,40,4096,1,40,11.20,0.85,1.62,2.06,0.48,3.57
X-codec2,50,65536,1,50,2.47,0.92,2.43,3.04,0.82,4.13
"""
MEASURED_BY = ("wer_hubert", "stoi", "pesq_wb", "pesq_nb", "spk_sim", "utmos")  # the same models, so the same columns

PERCEIVED = ("pesq_wb", "visqol")  # by which a system is said to be worth Opus at some rate


@dataclass(frozen=True)
class Fact:
    """A column that is no metric. name: key in the summary; digits, scale: as of a metric's column."""

    name: str
    title: str
    digits: int
    scale: float = 1.0


FACTS = (
    Fact("kbps", "kb/s", 2),
    Fact("file_kbps", "kb/s in file", 2),
    Fact("entropy_kbps", "entropy kb/s", 2),
    Fact("token_rate", "tokens/s", 1),
    Fact("utilisation", "codes used %", 1, 100),
    Fact("delay", "delay", 0),
    Fact("speed", "× real time", 1),
    Fact("memory_mb", "MB", 0),
)


def published() -> list[tuple[str, dict[str, float]]]:
    """Table 1 of Llasa as reported: name, and values as in rows (word error rates as shares), with kbps, token_rate."""
    return [_published(line.split(",")) for line in PUBLISHED.splitlines()]


def _published(cells: Sequence[str]) -> tuple[str, dict[str, float]]:
    name, token_rate, sizes, levels, frame_rate, *scores = cells
    found: dict[str, float] = dict(zip(MEASURED_BY, map(float, scores), strict=True))
    found["wer_hubert"] /= 100
    if token_rate:
        books = [int(size) for size in sizes.split("/")]
        books = books if len(books) > 1 else books * int(levels)
        bits = float(frame_rate) * sum(map(log2, books))
        found |= {"token_rate": float(token_rate), "levels": float(levels), "frame_rate": float(frame_rate)}
        found["kbps"] = bits / 1000
    return name, found


def write(run: Run, reported: bool = False) -> None:
    """RUN/table.csv, table.md and table.tex. reported: with the published table, marked as such."""
    for name, text in (("csv", _csv(run)), ("md", markdown(run, reported)), ("tex", latex(run, reported))):
        with replacing(run.folder / f"table.{name}") as part:
            part.write_text(text, encoding="utf-8")


def show(run: Run, reported: bool = False, printer: Callable[[str], None] = print) -> None:
    """The table on a terminal, then what has to be known to read it. Elsewhere than on a terminal: as Markdown."""
    terminal = sys.stdout.isatty()
    if terminal:
        _rich(run, reported)
    else:
        printer(_markdown_table(run, reported))
    for line in notes(run, plain=terminal):
        printer(line)


def markdown(run: Run, reported: bool = False) -> str:
    """The table, the differences where all are to one system, and the notes."""
    parts = [_markdown_table(run, reported)]
    if run.summary["against"]:
        parts.append(_differences(run))
    return "\n\n".join([*parts, "\n".join(notes(run))]) + "\n"


def latex(run: Run, reported: bool = False) -> str:
    """A tabular for booktabs: values with the half width of their intervals."""
    heads, lines, grey = _grid(run, reported, plain=True)
    body = [" & ".join(map(_tex, line)) + r" \\" for line in [heads, *lines]]
    if grey:
        body += [r"\midrule", *(" & ".join(map(_tex, line)) + r" \\" for line in grey)]
    columns = "l" + "r" * (len(heads) - 1)
    top = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule", *body[1:]]
    return "\n".join([*top, r"\bottomrule", r"\end{tabular}"]) + "\n"


def notes(run: Run, plain: bool = False) -> list[str]:
    """How to read the table, with or without brackets, and the warnings."""
    data, card = run.card["data"], run.card
    planned = sorted({metric["planned"] for metric in card["metrics"]})
    heard = f"{data['utterances']} utterances of {data['speakers']} speakers, {data['seconds'] / 60:.1f} minutes"
    fewer = [m["title"] for m in card["metrics"] if m["planned"] < data["utterances"]]
    mark = "After ±: half of the" if plain else "In brackets:"
    said = [f"{heard}. {mark} 95 % bootstrap interval over {run.summary['unit']}s. Delay: {card['alignment']}."]
    if fewer:
        said.append(f"On the first {planned[0]} only: {', '.join(fewer)}.")
    said += [f"Warning: {sentence}." for sentence in run.summary["warnings"]]
    for system in run.summary["systems"]:
        rates = {name: rate for name, rate in system["opus"].items() if name in PERCEIVED and rate is not None}
        if rates and not system["name"].startswith("opus:"):
            titles = {metric["name"]: metric["title"] for metric in card["metrics"]}
            what = ", ".join(f"{rate:.1f} kb/s by {titles[name]}" for name, rate in rates.items())
            said.append(f"{system['name']} is worth Opus at {what}.")
    return said


def cell(found: dict[str, Any] | None, metric: dict[str, Any], sign: str = "", plain: bool = False) -> str:
    """`value [low, high]`, with n of how many where some are missing; plain: `value ± half the interval`."""
    if not found or found["value"] is None:
        n, of = (found or {}).get("n", 0), (found or {}).get("of", 0)
        return f"– ({n}/{of})" if n else "n/a" if (found or {}).get("status") == "na" else "–"
    digits, scale = metric["digits"], metric["scale"]
    value, low, high = (f"{scale * found[key]:{sign}.{digits}f}" for key in ("value", "low", "high"))
    if plain:
        return f"{value} ± {scale * (found['high'] - found['low']) / 2:.{digits}f}"
    short = f" ({found['n']}/{found['of']})" if found.get("n", 0) < found.get("of", 0) else ""
    return f"{value} [{low}, {high}]{short}"


def _grid(run: Run, reported: bool, plain: bool = False) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Heads, lines, and the lines of the published table."""
    metrics, systems = run.card["metrics"], run.summary["systems"]
    facts = [fact for fact in FACTS if any(system.get(fact.name) is not None for system in systems)]
    heads = ["system", *(fact.title for fact in facts), *(title(metric) for metric in metrics)]
    lines = [
        [
            system["name"],
            *(_fact(fact, system.get(fact.name)) for fact in facts),
            *(cell(system["cells"].get(metric["name"]), metric, plain=plain) for metric in metrics),
        ]
        for system in systems
    ]
    grey = []
    for name, row in published() if reported and {metric["name"] for metric in metrics} & {*MEASURED_BY} else ():
        scores = (
            f"{metric['scale'] * row[metric['name']]:.2f}" if metric["name"] in row else "–" for metric in metrics
        )
        grey.append([f"{name} (reported)", *(_fact(fact, row.get(fact.name)) for fact in facts), *scores])
    return heads, lines, grey


def title(metric: dict[str, Any]) -> str:
    """A metric's title with its unit."""
    return metric["title"] + (" %" if metric["scale"] == 100 and "%" not in metric["title"] else "")


def _fact(fact: Fact, value: float | None) -> str:
    return "–" if value is None else f"{round(fact.scale * value, fact.digits) + 0.0:.{fact.digits}f}"  # never -0


def _markdown_table(run: Run, reported: bool) -> str:
    heads, lines, grey = _grid(run, reported)
    return "\n".join([_line(heads), "|---" * len(heads) + "|", *map(_line, [*lines, *grey])])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _differences(run: Run) -> str:
    """Every system minus the one that they are compared with, paired by utterance; a star: p < 0.05 (Holm)."""
    metrics, against = run.card["metrics"], run.summary["against"]
    pairs = {(pair["a"], pair["metric"]): pair for pair in run.summary["pairs"]}
    lines = [_line([f"minus {against}", *map(title, metrics)]), "|---" * (1 + len(metrics)) + "|"]
    for system in run.summary["systems"]:
        cells = []
        for metric in metrics:
            pair = pairs.get((system["name"], metric["name"]))
            text = cell({"value": pair["difference"]} | pair if pair else None, metric, sign="+")
            cells.append(text + ("*" if pair and pair["p_holm"] < 0.05 else ""))
        if system["name"] != against:
            lines.append(_line([system["name"], *cells]))
    return "\n".join([*lines, "", "Paired by utterance; *: p < 0.05 after Holm's correction over the whole table."])


def _csv(run: Run) -> str:
    """One line a system and metric, values as shown."""
    output = io.StringIO()
    sheet = csv.writer(output, lineterminator="\n")
    facts = [fact.name for fact in FACTS]
    sheet.writerow(["system", *facts, "metric", "value", "low", "high", "n", "of", "status", "opus_kbps"])
    for system in run.summary["systems"]:
        for metric in run.card["metrics"]:
            found = system["cells"][metric["name"]]
            values = (None if found[k] is None else metric["scale"] * found[k] for k in ("value", "low", "high"))
            counts = (found[key] for key in ("n", "of", "status"))
            rate = system["opus"].get(metric["name"])
            sheet.writerow([system["name"], *map(system.get, facts), metric["name"], *values, *counts, rate])
    return output.getvalue()


def _rich(run: Run, reported: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    heads, lines, grey = _grid(run, reported, plain=True)
    table = Table(box=None, header_style="bold")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=not number)
    for line in lines:
        table.add_row(*(text.replace("[", r"\[") for text in line))
    for line in grey:
        table.add_row(*line, style="bright_black")
    Console().print(table)


def _tex(text: str) -> str:
    names = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
             "×": r"$\times$", "–": "--"}  # fmt: skip
    return "".join(names.get(one, "\\" + one if one in "&%$#_{}" else one) for one in text)
