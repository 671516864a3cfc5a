"""The report's listening section: clips beside their originals, switched at the same position, with their pictures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from senone.eval import clips, plots
from senone.eval.charts import shown
from senone.eval.metrics import Column
from senone.eval.page import Html, join, tag
from senone.eval.rows import ORIGINAL, Row, Run

KEYS = (("space", "play or pause"), ("x", "original and back"), ("0–9", "a system"), ("← →", "move, on the bar"))


def listening(run: Run, columns: Sequence[Column], judge: Column | None, room: int) -> Html:
    """A player for every clip that is best, median or worst of some system; all systems on it, as far as room is left.

    judge: the metric that says which; room: bytes.
    """
    if judge is None:
        return Html()
    ranks: dict[str, dict[str, str]] = {}  # utterance -> system -> what it is for it
    needed = []
    for system in (system["name"] for system in run.card["systems"]):
        mine = (row for row in run.rows if row.system == system and row.metric == judge.name)
        for utterance, rank in clips.extremes(mine, judge.better == "higher").items():
            if run.audio(system, utterance).exists() and run.audio(ORIGINAL, utterance).exists():
                ranks.setdefault(utterance, {})[system] = f"{rank} {judge.title}"
                needed.append((system, utterance))
    pictures = {} if plots.missing() else _pictures(run, needed, room // 2)
    room -= sum(map(len, pictures.values()))
    names = [system["name"] for system in run.card["systems"]]
    wanted = [(name, utterance) for utterance in ranks for name in names if run.audio(name, utterance).exists()]
    sound, said = clips.embed(run, needed, wanted, room)
    heard = {utterance for _, utterance in sound}
    if not heard:
        return Html()
    scores: dict[tuple[str, str], list[Row]] = {}
    for row in run.rows:
        if row.utterance in heard and row.value is not None:
            scores.setdefault((row.system, row.utterance), []).append(row)
    players = []
    for utterance in run.card["utterances"]:
        if utterance["id"] not in heard:
            continue
        mine = {system: rank for system, rank in ranks[utterance["id"]].items() if (system, utterance["id"]) in sound}
        parts = {name: sound[name, utterance["id"]] for name in (ORIGINAL, *names) if (name, utterance["id"]) in sound}
        shown_scores = {
            name: _scores(columns, scores.get((name, utterance["id"]), [])) for name in parts if name != ORIGINAL
        }
        players.append(_player(utterance, mine, parts, pictures, shown_scores))
    options = (tag("option", name) for name in names if any(name in mine for mine in ranks.values()))
    select = tag("label", "Best, median and worst clip of ", tag("select", *options, id="listen-to"))
    keys = join(["In a clip: ", *(part for key, does in KEYS for part in (tag("kbd", key), f" {does} "))])
    note = f"Chosen by {judge.title}. {said} Spectrograms are in mel bands up to 8 kHz; a click on one moves there."
    controls = tag("div", select, tag("span", keys, class_="small soft"), class_="bar")
    return join([tag("p", note, class_="small soft"), controls, tag("div", *players, class_="clips")])


def _pictures(run: Run, pairs: Iterable[tuple[str, str]], room: int) -> dict[tuple[str, str], str]:
    """Images of (system, utterance): the original once, of each system the decoded and the difference; in `room`."""
    found: dict[tuple[str, str], str] = {}
    originals: dict[str, np.ndarray] = {}
    for system, utterance in pairs:
        decoded, rate = clips.decoded(run, system, utterance)
        if utterance not in originals:
            originals[utterance] = plots.mel(clips.read(run.audio(ORIGINAL, utterance))[0], rate)
        original = originals[utterance]
        mel, top = plots.mel(decoded, rate), float(original.max())
        common = min(mel.shape[1], original.shape[1])
        new = {
            (ORIGINAL, utterance): found.get((ORIGINAL, utterance)) or plots.mel_png(original, top),
            (system, utterance): plots.mel_png(mel, top),
            (_minus(system), utterance): plots.difference_png(original[:, :common], mel[:, :common], top),
        }
        room -= sum(len(image) for pair, image in new.items() if pair not in found)
        if room < 0:
            break
        found |= new
    return found


def _minus(system: str) -> str:
    return f"{system} - {ORIGINAL}"


def _player(
    utterance: Mapping[str, Any],
    ranks: Mapping[str, str],
    sound: Mapping[str, Html],
    pictures: Mapping[tuple[str, str], str],
    scores: Mapping[str, Html],
) -> Html:
    name, seconds = utterance["id"], utterance["seconds"]

    def image(key: str, text: str, of: str | None = None) -> Html:
        if (key, name) not in pictures:
            return Html()
        return tag("img", src=pictures[key, name], alt=text, data_of=of)

    panels = (
        ("Original", [image(ORIGINAL, f"Mel spectrogram of the original of {name}")]),
        ("Decoded", [image(system, f"Mel spectrogram of {name} by {system}", system) for system in sound]),
        ("Decoded − original: red too loud, blue too soft (±30 dB)",
         [image(_minus(system), f"Difference for {system}", system) for system in sound]),
    )  # fmt: skip
    mels = (
        tag("figure", tag("div", *images, tag("i"), class_="mel"), tag("figcaption", title))
        for title, images in panels
        if any(images)
    )
    choices = (tag("button", system, type="button", data_system=system, aria_pressed="false") for system in sound)
    title = tag(
        "h3",
        tag("span", class_="rank"),
        tag("code", name),
        tag("span", utterance.get("speaker") or "", class_="small soft"),
    )
    bar = tag(
        "div",
        tag("button", "Play", type="button", class_="play main"),
        tag(
            "input",
            type="range",
            class_="seek",
            min=0,
            max=seconds,
            step=0.01,
            value=0,
            aria_label=f"Position in {name}",
        ),
        tag("span", class_="time"),
        tag("button", "A / B", type="button", class_="swap", title="original and back (x)"),
        class_="bar",
    )
    return tag(
        "article",
        title,
        tag("p", utterance.get("text") or "", class_="soft"),
        bar,
        tag("div", *choices, class_="choices", role="group", aria_label="What to hear"),
        tag("div", *mels, class_="mels"),
        *(tag("p", score, class_="scores small", data_of=system) for system, score in scores.items()),
        *sound.values(),
        class_="clip",
        data_ranks=json.dumps(dict(ranks)),
        data_seconds=seconds,
    )


def _scores(columns: Sequence[Column], rows: Sequence[Row]) -> Html:
    values = {row.metric: row for row in rows}
    return join(
        tag("span", f"{column.title} ", tag("b", shown(column, _value(column, values[column.name]))))
        for column in columns
        if column.name in values
    )


def _value(column: Column, row: Row) -> float:
    assert row.value is not None
    return row.value / row.weight if column.ratio and row.weight else row.value
