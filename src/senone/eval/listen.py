"""A listening test of one's own run: a page after MUSHRA (ITU-R BS.1534), and what its raters said.

Each clip is heard beside its reference under numbers: every system, the reference once more, and low-pass anchors if
wanted. The page does not know which is which; RUN/listen.key.json does. Raters are screened as SoundStream's were
(2107.03312, section V-B).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from senone.eval import clips
from senone.eval.page import Html, join, render, tag
from senone.eval.rows import ORIGINAL, Run, read_json, replacing, write_json
from senone.eval.units import EvalError

FORMAT = "senone-listen-1"
PAGE, KEY, RATED = "listen.html", "listen.key.json", "listen.json"
REFERENCE = "hidden reference"
HIGH = 90  # the score that a reference deserves
MISSED, PRAISED = 0.2, 0.5  # shares of ratings above which a rater is dropped
DRAWS = 10000
HOW = (
    "For each clip, hear the reference, then rate how close to it each numbered sound is, from 0 (bad) to 100 "
    "(excellent). One of them is the reference itself: it deserves 100. You may hear everything as often as you like; "
    "a change goes on at the same place. Go on once you have heard and rated all."
)
EDGE = 200.0  # Hz of an anchor's transition


@dataclass(frozen=True)
class Rated:
    """What raters made of a system. mean and its 95 % interval (over raters; None with one rater) from 0 to 100."""

    system: str
    mean: float
    low: float | None
    high: float | None
    ratings: int
    raters: int


@dataclass(frozen=True)
class Result:
    """Scores of the systems, best first, and the raters that were dropped, each with the reason."""

    systems: list[Rated]
    dropped: dict[str, str]


def write(
    run: Run, *, systems: Sequence[str] = (), count: int = 10, anchors: Sequence[float] = (), seed: int = 0
) -> Path:
    """Write RUN/listen.html and RUN/listen.key.json; returns the page's path.

    systems: which ones (all that decoded). count: clips, of as many speakers as can be, chosen by `seed`.
    anchors: cut-off frequencies in Hz of low-pass copies of the reference.
    Raises EvalError for unknown systems, or where no clip was decoded by all of them.
    """
    names = list(systems) or [
        name for name in _names(run) if any(run.audio(name, u).exists() for u in _utterances(run))
    ]
    for name in names:
        if name not in _names(run):
            raise EvalError(f"the run has no system '{name}'; it has {', '.join(_names(run))}")
    chosen = _chosen(run, names, count, seed)
    if not names or not chosen:
        raise EvalError(f"{run.folder} has no utterance that all of {', '.join(names) or 'its systems'} decoded")
    page = _digest(seed, *names, *chosen, *anchors)
    trials, key, sounds = [], {}, []
    for utterance in chosen:
        wave, rate = clips.read(run.audio(ORIGINAL, utterance))
        waves = {REFERENCE: wave} | {f"low-pass {hz / 1000:g} kHz": lowpass(wave, rate, hz) for hz in anchors}
        waves |= {name: clips.decoded(run, name, utterance)[0] for name in names}
        tokens = {name: _digest(page, utterance, name) for name in waves}
        reference = _digest(page, utterance)
        trials.append(
            {"name": _digest(page, "clip", utterance), "reference": reference, "stimuli": sorted(tokens.values())}
        )
        key |= {token: {"system": name, "utterance": utterance} for name, token in tokens.items()}
        for name, token in (*tokens.items(), (None, reference)):
            source = clips.uri(waves[name or REFERENCE][: len(wave)], rate)
            sounds.append(tag("audio", src=source, preload="none", data_token=token))
    plan = {"format": FORMAT, "page": page, "clips": trials}
    text = render("Listening test", "listen.js", _body(plan, sorted(sounds, key=_token), len(key) // len(trials)))
    write_json(run.folder / KEY, {"format": FORMAT, "page": page, "stimuli": key})
    with replacing(run.folder / PAGE) as part:
        part.write_text(text, encoding="utf-8")
    return run.folder / PAGE


def score(run: Run, sources: Iterable[Path], seed: int = 0) -> Result:
    """Collect what raters saved, screen them, and write RUN/listen.json.

    sources: files, or folders of .json files. Two files of one rater: the later one counts. Raises EvalError naming a
    file that is of another page or damaged.
    """
    if not (run.folder / KEY).exists():
        raise EvalError(f"{run.folder} has no {KEY}: senone eval listen writes it, with the page")
    key = read_json(run.folder / KEY)
    files = [file for source in sources for file in (sorted(source.glob("*.json")) if source.is_dir() else [source])]
    said = [_ratings(file, key) for file in files]
    if not said:
        raise EvalError("there are no ratings: give the files that raters saved")
    raters = {name: ratings for name, ratings in said}
    result = rate(raters, seed)
    write_json(run.folder / RATED, {"systems": [asdict(one) for one in result.systems], "dropped": result.dropped})
    return result


def rate(raters: Mapping[str, Sequence[tuple[str, float]]], seed: int = 0) -> Result:
    """Screen raters, each with (system, score) pairs, and average: 95 % bootstrap intervals, raters drawn anew."""
    dropped = {name: why for name, ratings in raters.items() if (why := screened(ratings))}
    kept = [ratings for name, ratings in raters.items() if name not in dropped]
    systems = []
    for system in dict.fromkeys(system for ratings in kept for system, _ in ratings):
        mine = [[value for name, value in ratings if name == system] for ratings in kept]
        sums, counts = (
            np.array([sum(values) for values in mine], float),
            np.array([len(values) for values in mine], float),
        )
        low = high = None
        if len(kept) > 1:
            draws = np.random.default_rng(seed).multinomial(len(kept), np.full(len(kept), 1 / len(kept)), DRAWS)
            drawn = draws @ counts
            low, high = np.percentile((draws @ sums)[drawn > 0] / drawn[drawn > 0], [2.5, 97.5]).tolist()
        systems.append(Rated(system, sums.sum() / counts.sum(), low, high, int(counts.sum()), int((counts > 0).sum())))
    return Result(sorted(systems, key=lambda one: -one.mean), dropped)


def screened(ratings: Sequence[tuple[str, float]]) -> str:
    """Why a rater is dropped; empty if not: the reference below 90 in over 20 % of cases, or others above 90 in over
    half."""
    reference = [value for system, value in ratings if system == REFERENCE]
    others = [value for system, value in ratings if system != REFERENCE]
    missed = sum(value < HIGH for value in reference)
    if missed > MISSED * len(reference):
        return f"gave the hidden reference less than {HIGH} in {missed} of {len(reference)} cases"
    praised = sum(value > HIGH for value in others)
    if praised > PRAISED * len(others):
        return f"gave more than {HIGH} to what is not the reference in {praised} of {len(others)} cases"
    return ""


def lowpass(wave: Float32[np.ndarray, "samples"], rate: int, hz: float) -> Float32[np.ndarray, "samples"]:
    """Without what is above `hz`, the phase as it is. Raises EvalError for a frequency that the wave cannot hold."""
    if not EDGE < hz < rate / 2:
        raise EvalError(f"an anchor must be between {EDGE:g} and {rate / 2:g} Hz, got {hz:g}")
    spectrum = np.fft.rfft(wave)
    at = np.fft.rfftfreq(len(wave), 1 / rate)
    gain = 0.5 + 0.5 * np.cos(np.pi * ((at - hz) / EDGE + 0.5).clip(0, 1))
    return np.fft.irfft(spectrum * gain, len(wave)).astype(np.float32)


def _names(run: Run) -> list[str]:
    return [system["name"] for system in run.card["systems"]]


def _utterances(run: Run) -> list[str]:
    return [utterance["id"] for utterance in run.card["utterances"]]


def _chosen(run: Run, names: Sequence[str], count: int, seed: int) -> list[str]:
    """Utterances that everyone decoded, each speaker's next one in turn."""
    order = np.random.default_rng(seed).permutation(len(run.card["utterances"]))
    turns: dict[str, int] = {}
    found = []
    for utterance in (run.card["utterances"][n] for n in order):
        if all(run.audio(name, utterance["id"]).exists() for name in (ORIGINAL, *names)):
            turn = turns[utterance["speaker"]] = turns.get(utterance["speaker"], -1) + 1
            found.append((turn, utterance["id"]))
    return [name for _, name in sorted(found, key=lambda pair: pair[0])][:count]


def _digest(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _token(sound: Html) -> str:
    return sound.rpartition("data-token=")[2]  # in the order of names that say nothing


def _ratings(file: Path, key: Mapping[str, Any]) -> tuple[str, list[tuple[str, float]]]:
    """Rater and (system, score) pairs of one file."""
    found = read_json(file)
    if found.get("format") != FORMAT:
        raise EvalError(f"{file} holds no ratings of a listening page")
    if found.get("page") != key["page"]:
        raise EvalError(f"{file} is of another page than {KEY}")
    try:
        scores = {each["stimulus"]: float(each["score"]) for each in found["ratings"]}
        rater = str(found["rater"])
    except (KeyError, TypeError, ValueError):
        raise EvalError(f"{file} is damaged: it holds no list of ratings") from None
    if scores.keys() != key["stimuli"].keys():
        raise EvalError(f"{file} rates {len(scores)} sounds, not the {len(key['stimuli'])} of the page")
    if not all(0 <= value <= 100 for value in scores.values()):
        raise EvalError(f"{file} has a score that is not from 0 to 100")
    return rater, [(key["stimuli"][token]["system"], value) for token, value in scores.items()]


def _body(plan: Mapping[str, Any], sounds: Sequence[Html], stimuli: int) -> Html:
    theme = tag("button", "Dark / light", id="theme", type="button")
    count = len(plan["clips"])
    name = tag("input", id="rater", class_="name", required=True, maxlength=60)
    begin = tag("button", "Begin", class_="main")
    intro = tag(
        "section",
        tag("p", f"{count} clips, {stimuli} sounds each. Please wear headphones, in a quiet place.", class_="lead"),
        tag("p", HOW),
        tag("form", tag("label", "Your name, or any word ", name), " ", begin, id="begin"),
        tag("p", "It stays on this computer until you send the file that you save at the end.", class_="small soft"),
        id="intro",
    )  # fmt: skip
    scale = tag(
        "div",
        *(tag("span", word) for word in ("bad", "poor", "fair", "good", "excellent")),
        class_="scale",
        aria_hidden="true",
    )
    keys = join(
        [
            "Keys: ",
            tag("kbd", "0"),
            " the reference, ",
            tag("kbd", "1"),
            " … the sounds, ",
            tag("kbd", "← →"),
            " a slider.",
        ]
    )
    reference = tag("button", "Reference", id="reference", class_="main", type="button")
    trial = tag(
        "section",
        tag("progress", id="progress", value=0, max=count, aria_label="Clips done"),
        tag("h2", id="where", tabindex=-1),
        tag("div", reference, tag("span", keys, class_="small soft"), class_="bar"),
        scale,
        tag("div", id="stimuli"),
        tag("div", tag("button", "Next", id="next", class_="main", type="button", disabled=True), class_="bar"),
        id="trial",
        hidden=True,
    )
    end = tag(
        "section",
        tag("h2", "Thank you"),
        tag("p", "Please save your ratings and send the file to whoever gave you this page."),
        tag("div", tag("a", "Save ratings", id="save", class_="button main", href="#end"),
            tag("button", "Another rater", id="again", type="button"), class_="bar"),
        tag("details", tag("summary", "What is in it"), tag("pre", id="result")),
        id="end",
        hidden=True,
    )  # fmt: skip
    row = tag(
        "div",
        tag("button", type="button"),
        tag("input", type="range", min=0, max=100, step=1),
        tag("output"),
        class_="stimulus",
    )
    data = Html(json.dumps(plan).replace("<", "\\u003c"))
    return join([
        tag("header", tag("h1", "Listening test"), theme, class_="top test"),
        tag("main", intro, trial, end, class_="test"),
        tag("template", row, id="row"),
        *sounds,
        tag("script", data, type="application/json", id="plan"),
    ])  # fmt: skip
