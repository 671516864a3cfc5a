"""RUN/report.html: all of a run in one file that opens from disk and fetches nothing.

The table with the published one beside it, quality against bit rate and levels, comparisons, use of the codebooks, and
the clips that each system codes best, middling and worst, to be heard beside their originals.
"""

import base64
import csv
import io
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from senone import __version__
from senone.eval import charts, player, tables
from senone.eval.listen import RATED
from senone.eval.metrics import Column
from senone.eval.page import Html, join, render, tag
from senone.eval.rows import Run, read_json, replacing
from senone.eval.units import EvalError, Interval

LIMIT = 25_000_000  # bytes of the whole page
MAIN = ("pesq_wb", "visqol", "stoi")  # what best and worst are judged by, where nobody says
NOTES = {  # what heads say when pointed at
    "kbps": "bits of codes or packets over seconds, nominally",
    "file_kbps": "of what was really written",
    "entropy_kbps": "what an ideal coder of each level by itself would need",
    "token_rate": "frames a second times levels",
    "utilisation": "codes that occur, of all there are",
    "delay": "samples at 16 kHz by which the decoded wave was measured to lag",
    "speed": "seconds of sound over seconds of coding and decoding, one thread",
    "memory_mb": "at its peak",
    "opus": "the rate at which Opus does as well, by the metric that clips are judged by",
}
MOST_SCORES = 1_500_000  # bytes of scores.csv inside the page
Facts = Sequence[tables.Fact]
Phones = Mapping[str, Sequence[Interval]]  # of utterances, by id


def write(run: Run, *, by: str | None = None, phones: Phones | None = None, limit: int = LIMIT) -> Path:
    """Write RUN/report.html and return its path.

    by: the metric that names best, median and worst clips (the first measured of PESQ-WB, ViSQOL, STOI).
    phones: where known, for a plane of phones. limit: bytes; to keep it, sound is coded again, then left out.
    Raises EvalError for a metric that was not measured, or a folder that cannot be read or written.
    """
    columns = [charts.column(metric) for metric in run.card["metrics"]]
    judge = _judge(columns, by)
    sections = [
        ("table", "Table", _table(run, columns, judge)),
        ("rates", "Bit rate", charts.rates(run, columns)),
        ("levels", "Levels", charts.levels(run, columns)),
        ("pairs", "Comparisons", _pairs(run, columns, judge)),
        ("codes", "Codes", charts.codes(run)),
        ("planes", "Speakers and phones", charts.planes(run, phones or {})),
        ("rated", "Listening test", _rated(run)),
        ("card", "Run card", _card(run, columns)),
    ]
    room = limit - sum(len(body.encode()) for _, _, body in sections) - 100_000  # of style, script and head
    heard = player.listening(run, columns, judge, room)
    if (over := len(heard.encode()) - room) > 0:  # what stands around the clips is only known with them
        heard = player.listening(run, columns, judge, room - over)
    sections.insert(-2, ("listen", "Listening", heard))
    sections = [section for section in sections if section[2]]
    text = render(f"Speech tokenizers: {run.folder.resolve().name}", "report.js", _body(run, judge, sections))
    with replacing(run.folder / "report.html") as part:
        part.write_text(text, encoding="utf-8")
    return run.folder / "report.html"


def _judge(columns: Sequence[Column], by: str | None) -> Column | None:
    """The metric to judge clips by. Raises EvalError for one that was not measured."""
    found = {column.name: column for column in columns}
    if by is not None and by not in found:
        raise EvalError(f"'{by}' was not measured; the run has {', '.join(found) or 'no metrics'}")
    return next((found[name] for name in (by, *MAIN, *found) if name in found), None)


def _body(run: Run, judge: Column | None, sections: Sequence[tuple[str, str, Html]]) -> Html:
    utterances = run.card["utterances"]
    speakers = {utterance.get("speaker") for utterance in utterances}
    seconds = sum(utterance["seconds"] for utterance in utterances)
    said = (
        f"{_count(len(run.card['systems']), 'system')}, {_count(len(utterances), 'utterance')} of "
        f"{_count(len(speakers), 'speaker')}, {seconds / 60:.1f} minutes of speech"
    )
    answers = tag("ul", *(tag("li", answer) for answer in _answers(run, judge)))
    links = (tag("a", title, href=f"#{name}") for name, title, _ in sections)
    theme = tag("button", "Dark / light", id="theme", type="button")
    head = tag("header", tag("h1", "Speech tokenizers, measured"), tag("p", said, class_="lead"), answers, class_="top")
    bodies = (tag("section", tag("h2", title), body, id=name) for name, title, body in sections)
    foot = tag("footer", f"Written by senone {__version__}. This page is complete: it loads nothing.")
    return join([head, tag("nav", tag("div", *links, theme), aria_label="Sections"), tag("main", *bodies), foot])


def _answers(run: Run, judge: Column | None) -> Iterable[str]:
    """What a rate of a system is worth, in rates of Opus."""
    for system in run.summary["systems"]:
        rate = _with_opus(system, judge)["opus"]
        if judge and rate is not None and system.get("kbps") and not system["name"].startswith("opus:"):
            own = f"{system['name']} at {system['kbps']:.3g} kb/s"
            yield f"By {judge.title}, {own} is as good as Opus at {rate:.3g} kb/s."


# the table


def _table(run: Run, columns: Sequence[Column], judge: Column | None) -> Html:
    systems = [_with_opus(system, judge) for system in run.summary["systems"]]
    facts = [*tables.FACTS, tables.Fact("opus", "as Opus, kb/s", 1)]
    facts = [fact for fact in facts if any(system.get(fact.name) is not None for system in systems)]
    first = [fact for fact in facts if fact.name == "kbps"]  # then metrics: they are what one came for
    rest = [fact for fact in facts if fact not in first]
    heads = [
        _head("system", ascending=True),
        *map(_fact_head, first),
        *map(_metric_head, columns),
        *map(_fact_head, rest),
    ]
    lines = [_line(system, first, columns, rest) for system in systems]
    published = _published(first, columns, rest)
    body = tag("tbody", *lines, *published)
    table = tag("table", tag("thead", tag("tr", *heads)), body, class_="sortable", id="systems")
    boxes = [_box("intervals", "95 % intervals")]
    boxes += [_box("reported", "Published figures (Llasa, Table 1), in grey")] if published else []
    drawn = run.summary.get("unit", "utterance")
    note = (
        f"↑ higher is better, ↓ lower is better. Intervals: bootstrap over {drawn}s. A score that could not be had is "
        "in no mean, and a cell with less than 99 % of its scores has no value."
    )
    if published:
        note += (
            " Published figures were measured by others on all 2,620 utterances of LibriSpeech test-clean: "
            "compare them with care, and never with another data set."
        )
    controls = tag("div", *boxes, *_downloads(run), class_="bar")
    warnings = tag("ul", *(tag("li", text) for text in run.summary.get("warnings") or []), class_="warn small")
    table = tag("div", table, class_="scroll")
    return join([controls, table, tag("p", note, class_="small soft"), warnings, _reasons(run, columns)])


def _head(title: str, arrow: str = "", note: str = "", ascending: bool = False) -> Html:
    first = "ascending" if ascending or arrow == "↓" else "descending"
    text = join([title, Html("&nbsp;"), tag("span", arrow, aria_hidden="true")]) if arrow else join([title])
    return tag("th", tag("button", text, type="button"), scope="col", data_first=first, title=note or None)


def _fact_head(fact: tables.Fact) -> Html:
    return _head(fact.title, note=NOTES.get(fact.name, ""))


def _metric_head(column: Column) -> Html:
    return _head(charts.title(column), "↑" if column.better == "higher" else "↓")


def _line(system: Mapping[str, Any], first: Facts, columns: Sequence[Column], rest: Facts) -> Html:
    cells = (_cell(column, (system.get("cells") or {}).get(column.name)) for column in columns)
    return tag("tr", tag("th", system["name"], scope="row"), *_facts(system, first), *cells, *_facts(system, rest))


def _facts(system: Mapping[str, Any], facts: Facts) -> Iterable[Html]:
    return (_number(system.get(fact.name), fact.digits, fact.scale) for fact in facts)


def _with_opus(system: Mapping[str, Any], judge: Column | None) -> dict[str, Any]:
    """Its facts, with one rate of Opus in place of one for each metric."""
    return {**system, "opus": (system.get("opus") or {}).get(judge.name) if judge else None}


def _number(value: float | None, digits: int, scale: float = 1.0) -> Html:
    if value is None:
        return tag("td", "–", data_value="", class_="none")
    return tag("td", f"{scale * value:,.{digits}f}", data_value=value)


def _cell(column: Column, cell: Mapping[str, Any] | None) -> Html:
    if cell is None or cell.get("value") is None:
        cell = cell or {"status": "not measured"}
        part = tag("small", f"{cell['n']} of {cell['of']}", class_="warn") if cell.get("n") else ""
        return tag("td", "n/a", part, data_value="", class_="none", title=cell.get("error") or cell["status"])
    low, high, n, of = (cell.get(key) for key in ("low", "high", "n", "of"))
    extra = []
    if low is not None and high is not None:
        extra.append(tag("small", f"[{charts.shown(column, low)}, {charts.shown(column, high)}]", class_="interval"))
    if n is not None and of is not None and n < of:
        extra.append(tag("small", f"{n} of {of}", class_="warn"))
    return tag("td", charts.shown(column, cell["value"]), *extra, data_value=cell["value"])


def _published(first: Facts, columns: Sequence[Column], rest: Facts) -> list[Html]:
    """Rows of the published table, where it has a column that was measured by the same model."""
    names = {column.name for column in columns}
    rows = []
    for name, row in tables.published():
        if names & row.keys():
            head = tag("th", f"{name} ", tag("small", "reported"), scope="row")
            cells = (_number(row.get(column.name), 2, column.scale) for column in columns)
            rows.append(tag("tr", head, *_facts(row, first), *cells, *_facts(row, rest), class_="reported"))
    return rows


def _reasons(run: Run, columns: Sequence[Column]) -> Html:
    """Why values are missing, each reason once, with how often."""
    titles = {column.name: column.title for column in columns}
    counts = Counter(
        (titles.get(row.metric, row.metric), row.status, row.error or "no reason given")
        for row in run.rows
        if row.status != "ok"
    )
    if not counts:
        return Html()
    lines = (
        tag("tr", tag("th", title, scope="row"), tag("td", status), tag("td", times), tag("td", why))
        for (title, status, why), times in sorted(counts.items())
    )
    heads = (tag("th", text, scope="col") for text in ("metric", "status", "scores", "reason"))
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines), class_="texts")
    return tag(
        "details", tag("summary", f"{sum(counts.values())} scores have no value"), tag("div", table, class_="scroll")
    )


def _box(name: str, text: str) -> Html:
    return tag("label", tag("input", type="checkbox", checked=True, data_toggle=name), " ", text)


def _download(name: str, data: bytes) -> Html:
    source = "data:text/csv;charset=utf-8;base64," + base64.b64encode(data).decode()
    return tag("a", f"Download {name}", href=source, download=name, class_="button")


def _downloads(run: Run) -> list[Html]:
    """table.csv, and every score as scores.csv where that is not too much for a page."""
    table = run.folder / "table.csv"
    links = [_download(table.name, table.read_bytes())] if table.exists() else []
    names = ["utterance", "speaker", "seconds", "system", "metric", "value", "weight", "status"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in run.rows)
    data = out.getvalue().encode()
    if len(data) < MOST_SCORES:
        return [*links, _download("scores.csv", data)]
    return [*links, tag("span", f"All {len(run.rows):,} scores are in the run's rows.jsonl", class_="small soft")]


# comparisons


def _pairs(run: Run, columns: Sequence[Column], judge: Column | None) -> Html:
    """One block per metric: differences of systems, paired by utterance."""
    pairs = run.summary.get("pairs") or []
    blocks = [
        (c, [pair for pair in pairs if pair["metric"] == c.name and pair["difference"] is not None]) for c in columns
    ]
    blocks = [(column, mine) for column, mine in blocks if mine]
    if not blocks:
        return Html()
    options = (tag("option", column.title, value=column.name, selected=column == judge) for column, _ in blocks)
    select = tag("label", "Metric ", tag("select", *options, data_blocks="pairs"))
    note = (
        "First minus second, paired by utterance, with 95 % intervals; p by Holm's correction over all comparisons of "
        "this run; wins: share of utterances on which the first is better, ties half. In bold: p below 0.05."
    )
    tables = (
        tag("div", _pair_table(column, mine), class_="scroll tall", data_block="pairs", data_name=column.name)
        for column, mine in blocks
    )
    return join([tag("p", note, class_="small soft"), tag("div", select, class_="bar"), *tables])


def _pair_table(column: Column, pairs: Sequence[Mapping[str, Any]]) -> Html:
    lines = []
    for pair in pairs:
        low, high, p = pair.get("low"), pair.get("high"), pair.get("p_holm")
        clear = p is not None and p < 0.05
        text = charts.shown(column, pair["difference"], "+")
        between = "–" if low is None or high is None else " to ".join(charts.shown(column, x, "+") for x in (low, high))
        lines.append(
            tag(
                "tr",
                tag("th", f"{pair['a']} − {pair['b']}", scope="row"),
                tag("td", tag("strong", text) if clear else text, data_value=pair["difference"]),
                tag("td", between, data_value="" if low is None else low),
                tag(
                    "td",
                    "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
                    data_value="" if p is None else p,
                ),
                _number(pair.get("win_rate"), 0, 100),
            )
        )
    titles = ("difference", "95 % interval", "p (Holm)", "wins %")
    heads = tag("tr", _head("systems", ascending=True), *(_head(title) for title in titles))
    return tag("table", tag("thead", heads), tag("tbody", *lines), class_="sortable")


# what listeners said


def _rated(run: Run) -> Html:
    """RUN/listen.json, which `senone eval listen RUN --ratings` writes: bars from 0 to 100 with their intervals."""
    if not (run.folder / RATED).exists():
        return Html()
    found = read_json(run.folder / RATED)
    lines = []
    for one in found["systems"]:
        low, high = one["low"], one["high"]
        parts = [tag("i", style=f"width:{one['mean']:.2f}%")]
        if low is not None:
            parts.append(tag("b", style=f"left:{low:.2f}%;width:{high - low:.2f}%"))
        between = "" if low is None else f" [{low:.1f}, {high:.1f}]"
        cells = [tag("td", f"{one['mean']:.1f}{between}"), tag("td", tag("div", *parts, class_="meter"), class_="wide")]
        lines.append(tag("tr", tag("th", one["system"], scope="row"), *cells, tag("td", one["ratings"])))
    heads = tag("tr", *(tag("th", text, scope="col") for text in ("system", "mean [95 %]", "0 to 100", "ratings")))
    table = tag("div", tag("table", tag("thead", heads), tag("tbody", *lines)), class_="scroll")
    dropped = tag("ul", *(tag("li", f"{who} {why}: left out") for who, why in found["dropped"].items()), class_="small")
    note = "A listening test after MUSHRA; raters screened as SoundStream's were, intervals by bootstrap over raters."
    return join([tag("p", note, class_="small soft"), table, dropped])


# the run card


def _card(run: Run, columns: Sequence[Column]) -> Html:
    """All that the numbers depend on: the command first, then metrics with their licences, then everything else."""
    card = run.card
    parts = (
        [tag("pre", card["command"] if isinstance(card["command"], str) else shlex.join(card["command"]))]
        if card.get("command")
        else []
    )
    heads = tag("tr", *(tag("th", text, scope="col") for text in ("metric", "key", "licence", "source")))
    lines = (
        tag(
            "tr",
            tag("th", c.title, scope="row"),
            tag("td", tag("code", c.name)),
            tag("td", c.licence),
            tag("td", c.source),
        )
        for c in columns
    )
    parts.append(tag("div", tag("table", tag("thead", heads), tag("tbody", *lines), class_="texts"), class_="scroll"))
    rest = {key: value for key, value in card.items() if key not in ("command", "utterances", "metrics")}
    text = json.dumps(rest, indent=1, ensure_ascii=False)
    parts.append(tag("details", tag("summary", "Everything else in run.json"), tag("pre", text)))
    return join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
