"""The report's sections that are pictures: bit rate, levels, codebooks, and the planes of speakers and phones."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from senone.eval import bags, codebooks, plots, tables
from senone.eval.metrics import Column
from senone.eval.page import Html, join, tag
from senone.eval.plots import Point
from senone.eval.rows import Run, slug
from senone.eval.units import UNLABELLED, EvalError, Interval, phones_at

RATED = re.compile(
    r"(.+?)(?::(?:nb)?[\d.]+[kC]?)?(?:@\d+)?"
)  # opus:12k, spectral-mini@4: points of opus, spectral-mini
SPREAD = 500  # dots on a plane, at most
Phones = Mapping[str, Sequence[Interval]]


def column(metric: Mapping[str, Any]) -> Column:
    """The Column that a run card describes. Raises EvalError where it describes none."""
    known = {field.name for field in fields(Column)}
    try:
        return Column(**{key: value for key, value in metric.items() if key in known})
    except TypeError:
        raise EvalError(f"run.json describes a metric without name, title or better: {dict(metric)}") from None


def shown(column: Column, value: float, sign: str = "") -> str:
    """A value as tables print it; sign: "+" for one with its sign in any case."""
    return f"{column.scale * value:{sign}.{column.digits}f}".replace("-", "−")


def title(column: Column) -> str:
    """A column's title with its unit, where the scale is one."""
    per_cent = column.scale == 100 and "%" not in column.title
    return column.title + (" %" if per_cent else "")


def family(system: str) -> str:
    """The name of a system without its rate and its number of levels: what one line joins."""
    match = RATED.fullmatch(system)
    return match[1] if match else system


def styles(run: Run) -> dict[str, tuple[str, str]]:
    """Colour and marker of each family, in the order of the card, the same in every picture."""
    names = dict.fromkeys(family(system["name"]) for system in run.card["systems"])
    return {name: plots.style(index) for index, name in enumerate(names)}


def rates(run: Run, columns: Sequence[Column]) -> Html:
    """Each metric against kb/s, with intervals, and how far an ideal entropy coder would move each point."""
    if why := plots.missing():
        return tag("p", why, class_="warn")
    figures = []
    for column in columns:
        series: dict[str, list[Point]] = {}
        for system in run.summary["systems"]:
            point = _point(system, column, system.get("kbps") or system.get("file_kbps"), system.get("entropy_kbps"))
            if point:
                series.setdefault(family(system["name"]), []).append(point)
        if not series:
            continue
        grey = [
            Point(row["kbps"], column.scale * row[column.name], title=f"{name}, reported: {row['kbps']:.2f} kb/s")
            for name, row in tables.published()
            if row.get(column.name) is not None and row.get("kbps")
        ]
        figures.append(
            _figure(column, plots.lines(series, styles(run), x="kb/s", y=title(column), log=True, reported=grey))
        )
    if not figures:
        return Html()
    note = (
        "Vertical bars are 95 % intervals. A dotted line to the left ends at the entropy of the codes: what an ideal "
        "coder without memory would need (SoundStream, figure 7a). Grey crosses are published figures. Point at a mark "
        "for its numbers."
    )
    return join([tag("p", note, class_="small soft"), _legend(run), tag("div", *figures, class_="grid")])


def levels(run: Run, columns: Sequence[Column]) -> Html:
    """Each metric against the number of levels, of what was measured at several."""
    if plots.missing():
        return Html()
    counts = {system["name"]: _levels_of(system) for system in run.card["systems"]}
    several = {name: [s for s in counts if family(s) == name and counts[s]] for name in styles(run)}
    several = {name: mine for name, mine in several.items() if len({counts[s] for s in mine}) > 1}
    figures = []
    for column in columns:
        series: dict[str, list[Point]] = {}
        for system in run.summary["systems"]:
            name = family(system["name"])
            point = _point(system, column, counts.get(system["name"])) if name in several else None
            if point:
                series.setdefault(name, []).append(point)
        if series:
            figures.append(_figure(column, plots.lines(series, styles(run), x="levels", y=title(column))))
    if not figures:
        return Html()
    note = "The same codes, decoded from their first levels only."
    return join([tag("p", note, class_="small soft"), _legend(run, several), tag("div", *figures, class_="grid")])


def codes(run: Run) -> Html:
    """One block per family, of its system with most levels: use of codes by rank, and a table of levels."""
    blocks, names = [], []
    for system in _widest(run):
        found = _codes_of(run, system)
        if not found or not system.get("sizes"):
            continue
        counts = codebooks.count(found.values(), system["sizes"])
        counts = [level for level in counts if level.any()]
        if counts:
            silhouettes = _silhouettes(run, list(found.items()), len(counts))
            blocks.append(_codes_block(system, counts, silhouettes))
            names.append(system["name"])
    if not blocks:
        return Html()
    select = tag("label", "System ", tag("select", *(tag("option", name) for name in names), data_blocks="codes"))
    note = (
        "Left: how often the codes of a level are used, by rank; flat at 1 would be even use; a line ends where the "
        "codes begin that were never used. Expected: the share of codes that as many even draws would have met, which "
        "is less than all where data are few. Speakers: how well a level by itself tells speakers apart (silhouette "
        "of the bags of codes; 0 is not at all)."
    )
    parts = (tag("div", block, data_block="codes", data_name=name) for name, block in zip(names, blocks, strict=True))
    return join([tag("p", note, class_="small soft"), tag("div", select, class_="bar"), *parts])


def planes(run: Run, phones: Phones) -> Html:
    """Bags of codes on a plane: utterances by speaker, and where phones are known, phones; first level and the rest."""
    if plots.missing():
        return Html()
    blocks, names = [], []
    for system in _widest(run):
        found = _codes_of(run, system)
        depth = min((len(item) for item in found.values()), default=0)
        parts = [("level 1", slice(0, 1)), (f"levels 2 to {depth}", slice(1, depth))]
        parts = parts[: 2 if depth > 2 else 1] if depth != 2 else [parts[0], ("level 2", slice(1, 2))]
        figures = []
        for what, (items, labels) in (("speaker", _spoken(run, found)), ("phone", _phoned(run, found, system, phones))):
            if len(items) < bags.FEWEST or len({*labels}) < 2:
                continue
            figures += [_plane(items, labels, what, *part) for part in parts]
        if figures:
            blocks.append(tag("div", *figures, class_="grid"))
            names.append(system["name"])
    if not blocks:
        return Html()
    note = (
        "One dot is an utterance, or a phone of a speaker: the bag of its codes, time pooled away (SpeechTokenizer, "
        "figure 4, with codes in place of their embeddings). Levels that carry the voice put dots of one speaker "
        "together; the silhouette says how much, before anything is flattened: 1 fully, 0 not at all."
    )
    select = tag("label", "System ", tag("select", *(tag("option", name) for name in names), data_blocks="planes"))
    shown = (tag("div", block, data_block="planes", data_name=name) for name, block in zip(names, blocks, strict=True))
    return join([tag("p", note, class_="small soft"), tag("div", select, class_="bar"), *shown])


def _point(system: Mapping[str, Any], column: Column, x: float | None, low_x: float | None = None) -> Point | None:
    cell = (system.get("cells") or {}).get(column.name) or {}
    if x is None or x <= 0 or cell.get("value") is None:
        return None
    value, low, high = (None if cell.get(key) is None else column.scale * cell[key] for key in ("value", "low", "high"))
    assert value is not None
    between = "" if low is None or high is None else f" [{low:.{column.digits}f}, {high:.{column.digits}f}]"
    said = f"{system['name']}: {column.title} {value:.{column.digits}f}{between} at {x:.3g}"
    return Point(x, value, low, high, low_x if low_x and low_x < x else None, said)


def _figure(column: Column, picture: Html) -> Html:
    better = "↑ higher is better" if column.better == "higher" else "↓ lower is better"
    return tag("figure", tag("strong", column.title), picture, tag("figcaption", better))


def _legend(run: Run, only: Iterable[str] | None = None) -> Html:
    known = styles(run)
    names = [name for name in known if only is None or name in only]
    return tag(
        "ul", *(tag("li", tag("i", style=f"background:{known[name][0]}"), name) for name in names), class_="legend"
    )


def _levels_of(system: Mapping[str, Any]) -> int | None:
    value = system.get("levels")
    return len(system["sizes"]) if value is None and system.get("sizes") else value


def _codes_block(
    system: Mapping[str, Any], counts: Sequence[Int[np.ndarray, "code"]], voices: Sequence[float | None]
) -> Html:
    books = [codebooks.statistics(level) for level in counts]
    titles = (
        "level",
        "size",
        "used %",
        "expected %",
        "never used",
        "entropy, bits",
        "evenness %",
        "perplexity",
        "speakers",
    )
    lines = [
        [f"{n}", f"{b.size:,}", f"{100 * b.utilisation:.1f}", f"{100 * b.expected:.1f}", f"{b.dead:,}",
         f"{b.entropy:.2f}", f"{100 * b.evenness:.1f}", f"{b.perplexity:,.1f}", _signed(voice)]
        for n, (b, voice) in enumerate(zip(books, voices, strict=True), 1)
    ]  # fmt: skip
    rows = (tag("tr", tag("th", line[0], scope="row"), *(tag("td", text) for text in line[1:])) for line in lines)
    heads = tag("tr", *(tag("th", text, scope="col") for text in titles))
    table = tag("div", tag("table", tag("thead", heads), tag("tbody", *rows)), class_="scroll")
    if plots.missing():
        return table
    picture = plots.usage(counts, lambda level: f"level {level + 1}: {books[level].used} of {books[level].size} codes")
    caption = tag("figcaption", f"{system['name']}, {books[0].frames:,} frames; blue is the first level, red the last")
    return tag("div", tag("figure", picture, caption), table, class_="grid beside")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _codes_of(run: Run, system: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Those of the card's utterances, by slug: a former run may have coded more."""
    found = run.codes(system["name"])
    names = (slug(utterance["id"]) for utterance in run.card["utterances"])
    return {name: found[name] for name in names if name in found}


def _widest(run: Run) -> list[Mapping[str, Any]]:
    """Of each family the system with the most levels: its codes hold the others'."""
    best: dict[str, Mapping[str, Any]] = {}
    for system in run.card["systems"]:
        name = family(system["name"])
        if (_levels_of(system) or 0) > (_levels_of(best[name]) or 0 if name in best else 0):
            best[name] = system
    return list(best.values())


def _spoken(run: Run, found: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], list[str]]:
    """Codes and speaker of the utterances whose speaker has said another one as well."""
    mine = [
        (found[slug(u["id"])], u["speaker"])
        for u in run.card["utterances"]
        if slug(u["id"]) in found and u.get("speaker")
    ]
    speakers = [speaker for _, speaker in mine]
    kept = [(item, speaker) for item, speaker in mine if speakers.count(speaker) > 1 and item.shape[1]][:SPREAD]
    return [item for item, _ in kept], [speaker for _, speaker in kept]


def _phoned(
    run: Run, found: Mapping[str, np.ndarray], system: Mapping[str, Any], phones: Phones
) -> tuple[list[np.ndarray], list[str]]:
    """Codes and label of each phone of each speaker, all its frames together."""
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    for utterance in run.card["utterances"]:
        codes = found.get(slug(utterance["id"]))
        known = phones.get(utterance["id"]) or phones.get(Path(utterance["id"]).stem)
        if codes is None or not known or not system.get("frame_rate"):
            continue
        at = np.array(phones_at(known, codes.shape[1], 1, system["frame_rate"]))
        for label in {*at} - {UNLABELLED}:
            parts.setdefault((label, utterance.get("speaker") or ""), []).append(codes[:, at == label])
    keys = sorted(parts)
    keys = [keys[n] for n in np.linspace(0, len(keys) - 1, min(len(keys), SPREAD)).round().astype(int)]
    return [np.concatenate(parts[key], 1) for key in keys], [str(label) for label, _ in keys]


def _plane(items: list[np.ndarray], labels: list[str], what: str, name: str, part: slice) -> Html:
    x = bags.bags(items, part)
    places, method = bags.plane(x)
    score = bags.silhouette(x, labels)
    said = f"{method} of {len(items)} dots" + ("" if score is None else f"; silhouette {score:+.3f}")
    return tag(
        "figure",
        tag("strong", f"{name}, by {what}"),
        plots.scatter(places, labels, what == "phone"),
        tag("figcaption", said),
    )


def _silhouettes(run: Run, found: Sequence[tuple[str, np.ndarray]], depth: int) -> list[float | None]:
    items, speakers = _spoken(run, dict(found))
    if len(items) < bags.FEWEST:
        return [None] * depth
    depths = min(len(item) for item in items)
    return [bags.silhouette(bags.bags(items, slice(n, n + 1)), speakers) if n < depths else None for n in range(depth)]
