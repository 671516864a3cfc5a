"""The report and its parts, on a small run that is made here."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from senone.eval import bags, charts, clips, plots, report
from senone.eval.page import Html, tag
from senone.eval.rows import ORIGINAL, Row, Run, slug
from senone.eval.units import EvalError

RATE = 16000
CLIP = Path(__file__).parents[2] / "examples" / "clip.flac"
METRICS = [
    {"name": "pesq_wb", "title": "PESQ-WB", "better": "higher", "digits": 2, "licence": "ITU", "fingerprint": "p1"},
    {"name": "stoi", "title": "STOI", "better": "higher", "fingerprint": "s1"},
    {
        "name": "wer_tiny",
        "title": "WER",
        "better": "lower",
        "digits": 1,
        "scale": 100,
        "ratio": True,
        "fingerprint": "w1",
    },
    {"name": "utmos", "title": "UTMOS", "better": "higher", "digits": 2, "fingerprint": "u1"},
]
SYSTEMS = {"toy@1": 1, "toy@2": 2, "toy@3": 3, "opus:9k": None, 'odd "name" <b>': None}
NASTY = "<script>alert('x')</script> & \"so\" on"


def make_run(folder: Path, utterances: int = 9, seconds: float = 1.5) -> Path:
    """A run folder: pieces of the bundled clip by three speakers, coded by noise that falls as levels rise."""
    rng = np.random.default_rng(0)
    wave, rate = soundfile.read(CLIP, dtype="float32")
    assert rate == RATE
    size = round(seconds * RATE)
    names = [f"speaker{n % 3}/utt-{n:02}" for n in range(utterances)]
    card = {
        "command": "senone eval codec toy --data <DIR>",
        "seed": 0,
        "metrics": METRICS,
        "utterances": [
            {"id": name, "speaker": f"s{n % 3}", "seconds": seconds, "text": NASTY, "content": f"c{n}", "path": name}
            for n, name in enumerate(names)
        ],
        "systems": [
            {"name": name, "fingerprint": f"f{n}", "levels": levels, "sizes": [16] * (levels or 0), "frame_rate": 50.0,
             "kbps": 0.2 * levels if levels else 9.0 + n, "causal": True, "delay_samples": 0}
            for n, (name, levels) in enumerate(SYSTEMS.items())
        ],
    }  # fmt: skip
    rows, bits = [], {}
    for system in card["systems"]:
        noise = 0.1 / (system["levels"] or 5)
        for n, name in enumerate(names):
            start = n * size // 2 % (len(wave) - size)
            piece = wave[start : start + size]
            for who, sound in ((ORIGINAL, piece), (system["name"], piece + noise * rng.standard_normal(size))):
                path = folder / "audio" / slug(who) / f"{slug(name)}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, np.clip(sound, -1, 1), RATE, "PCM_16")
            common = {"utterance": name, "speaker": f"s{n % 3}", "seconds": seconds, "system": system["name"],
                      "system_fingerprint": system["fingerprint"], "content": f"c{n}"}  # fmt: skip
            value = 4.5 - 20 * noise - 0.01 * (n * 4 % 9)
            rows += [
                Row(metric="pesq_wb", metric_fingerprint="p1", value=value, **common),
                Row(metric="stoi", metric_fingerprint="s1", value=1 - noise, **common),
                Row(metric="wer_tiny", metric_fingerprint="w1", value=float(n % 2), weight=7.0, **common),
                Row(
                    metric="utmos", metric_fingerprint="u1", value=None, status="na", error="no weights here", **common
                ),
            ]
            if system["levels"]:
                # the first level knows nothing of the speaker, the others do
                own = 5 * (n % 3)
                voice = [rng.integers(0, 16, 75), rng.integers(own, own + 5, 75), rng.integers(0, 3, 75) + n % 3]
                bits.setdefault(system["name"], {})[slug(name)] = np.stack(voice[: system["levels"]]).astype(np.int16)
    (folder / "codes").mkdir()
    for name, arrays in bits.items():
        np.savez(folder / "codes" / f"{slug(name)}.npz", **arrays)
    (folder / "rows.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps(card))
    (folder / "summary.json").write_text(json.dumps(summary(card, rows)))
    (folder / "table.csv").write_text("system,pesq_wb\ntoy@1,2.5\n")
    return folder


def summary(card: dict, rows: list[Row]) -> dict:
    systems = []
    for system in card["systems"]:
        cells = {}
        for metric in card["metrics"]:
            mine = [
                r for r in rows if r.system == system["name"] and r.metric == metric["name"] and r.value is not None
            ]
            cells[metric["name"]] = {"value": None, "n": 0, "of": len(card["utterances"]), "status": "na"}
            if mine:
                values = np.array([r.value for r in mine], float)
                value = values.sum() / sum(r.weight for r in mine) if metric.get("ratio") else values.mean()
                spread = values.std() / 3
                cells[metric["name"]] |= {
                    "value": value,
                    "low": value - spread,
                    "high": value + spread,
                    "n": len(mine),
                    "status": "ok",
                }
        entropy = 0.8 * system["kbps"] if system["levels"] else None
        rate = 50 * system["levels"] if system["levels"] else None
        used = 0.5 if rate else None
        rates = {"kbps": system["kbps"], "entropy_kbps": entropy, "token_rate": rate, "utilisation": used}
        systems.append({"name": system["name"], "cells": cells, **rates})
    pair = {"a": "toy@3", "b": "toy@1", "metric": "pesq_wb", "difference": 1.3, "low": 1.2, "high": 1.4, "p": 0.0001,
            "p_holm": 0.0004, "win_rate": 1.0}  # fmt: skip
    return {"systems": systems, "pairs": [pair]}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run.open(make_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def page(run) -> "Page":
    phones = {f"utt-{n:02}": [(0.0, 0.7, "AH0"), (0.7, 1.1, "S"), (1.1, 1.5, "IY1")] for n in range(9)}
    return Page(report.write(run, phones=phones).read_text())


class Page(HTMLParser):
    """What a page holds: elements with their attributes, rows of the table by their cells, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.elements, self.tables, self.words = text, [], {}, []
        self.table, self.row, self.cell = None, None, None
        self.feed(text)

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.elements.append((name, attributes))
        if name == "table":
            self.table = self.tables.setdefault(attributes.get("id") or len(self.tables), [])
        elif name == "tr" and self.table is not None:
            self.row = {"class": attributes.get("class"), "cells": []}
            self.table.append(self.row)
        elif name in ("td", "th") and self.row is not None:
            self.cell = {"value": attributes.get("data-value"), "text": "", "title": attributes.get("title")}
            self.row["cells"].append(self.cell)

    def handle_endtag(self, name):
        if name in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self.cell is not None:
            self.cell["text"] += data

    def all(self, name: str) -> list[dict]:
        return [attributes for kind, attributes in self.elements if kind == name]


def sound_of(element: dict) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(base64.b64decode(element["src"].partition(",")[2])))


def test_the_page_refers_to_nothing_outside(page):
    outside = ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
    for name, attributes in page.elements:
        for key in outside:
            if key in attributes:
                assert attributes[key].startswith(("data:", "#")), (name, attributes[key][:80])
    assert "@import" not in page.text and "http://" not in page.text and "https://" not in page.text
    assert {place[:1] for place in re.findall(r"url\([\"']?([^)]*)", page.text)} <= {"#"}
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len({*names})
    targets = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    assert len(targets) >= 7 and {*targets} <= {*names}


def test_the_table_holds_every_system_and_metric(page, run):
    heads, *rows = page.tables["systems"]
    titles = [cell["text"].split("\xa0")[0] for cell in heads["cells"]]
    ours = [row for row in rows if row["class"] is None]
    assert [row["cells"][0]["text"] for row in ours] == list(SYSTEMS)
    for row, system in zip(ours, run.summary["systems"], strict=True):
        cells = dict(zip(titles, row["cells"], strict=True))
        assert float(cells["kb/s"]["value"]) == system["kbps"]
        for title, name in (("PESQ-WB", "pesq_wb"), ("STOI", "stoi"), ("WER %", "wer_tiny")):
            assert float(cells[title]["value"]) == system["cells"][name]["value"]
        assert (cells["UTMOS"]["text"], cells["UTMOS"]["value"]) == ("n/a", "")
        assert cells["WER %"]["text"].startswith(f"{100 * system['cells']['wer_tiny']['value']:.1f}")
    assert len({len(row["cells"]) for row in rows}) == 1


def test_published_figures_are_grey_rows_under_the_same_models_only(page):
    heads, *rows = page.tables["systems"]
    titles = [cell["text"].split("\xa0")[0] for cell in heads["cells"]]
    grey = {row["cells"][0]["text"]: dict(zip(titles, row["cells"], strict=True)) for row in rows if row["class"]}
    assert all(row["class"] in (None, "reported") for row in rows) and all("reported" in name for name in grey)
    codec = grey["X-codec2 reported"]
    assert [codec[title]["text"] for title in ("PESQ-WB", "STOI", "UTMOS")] == ["2.43", "0.92", "4.13"]
    assert codec["WER %"]["value"] == "", "the WER here is by another model than the published one"
    assert float(codec["kb/s"]["value"]) == pytest.approx(0.8)


def test_without_a_metric_of_theirs_there_are_no_published_figures(tmp_path):
    folder = make_run(tmp_path, 3, 0.5)
    card = json.loads((folder / "run.json").read_text())
    card["metrics"] = [metric for metric in card["metrics"] if metric["name"] == "wer_tiny"]
    (folder / "run.json").write_text(json.dumps(card))
    page = Page(report.write(Run.open(folder)).read_text())
    assert {row["class"] for row in page.tables["systems"]} == {None} and "Published" not in page.text


def test_whiskers_end_at_the_entropy_of_the_codes(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        plots, "lines", lambda series, *_, **options: drawn.append((series, options)) or Html("<svg></svg>")
    )
    charts.rates(run, [charts.column(METRICS[0])])
    ((series, options),) = drawn
    toys = {point.x: point for point in series["toy"]}
    for system in run.summary["systems"][:3]:
        cell, point = system["cells"]["pesq_wb"], toys[system["kbps"]]
        assert (point.y, point.low, point.high) == (cell["value"], cell["low"], cell["high"])
        assert point.low_x == system["entropy_kbps"] < point.x
    assert series["opus"][0].low_x is None and options["log"] and len(options["reported"]) == 19


def test_a_whisker_is_drawn():
    style = {"a": plots.style(0)}
    with_it, without = (
        plots.lines({"a": [plots.Point(2.0, 1.0, low_x=low)]}, style, x="kb/s", y="y", log=True) for low in (1.0, None)
    )
    assert with_it.count("<path") > without.count("<path") and "stroke-dasharray" in with_it


def test_text_of_others_stays_text(page):
    assert NASTY in "".join(page.words) and "<script>alert" not in page.text
    assert 'odd "name" <b>' in "".join(page.words)
    assert [attributes for name, attributes in page.elements if name == "b" and attributes] == []


def test_every_sound_is_there_and_the_same_to_the_sample(page, run):
    sounds = page.all("audio")
    assert {element["data-system"] for element in sounds} == {ORIGINAL, *SYSTEMS}
    stored = {
        soundfile.read(run.audio(system, utterance["id"]))[0].tobytes()
        for system in (ORIGINAL, *SYSTEMS)
        for utterance in run.card["utterances"]
    }
    for element in sounds:
        wave, rate = sound_of(element)
        assert rate == RATE and wave.tobytes() in stored


def test_best_median_and_worst_are_those_of_the_scores(page, run):
    clips_of: dict[str, dict[str, str]] = {}
    ids = [word for word in page.words if word in {u["id"] for u in run.card["utterances"]}]
    players = [attributes for name, attributes in page.elements if name == "article"]
    for name, player in zip(ids, players, strict=True):
        for system, rank in json.loads(player["data-ranks"]).items():
            clips_of.setdefault(system, {})[rank.split()[0]] = name
    for system in SYSTEMS:
        order = sorted((r for r in run.rows if (r.system, r.metric) == (system, "pesq_wb")), key=lambda r: -r.value)
        assert clips_of[system] == {k: order[n].utterance for k, n in (("best", 0), ("median", 4), ("worst", 8))}


def test_figures_say_their_numbers(page):
    words = "".join(page.words)
    assert re.search(r"toy@3: PESQ-WB 3\.7\d \[3\.\d+, 3\.\d+\] at 0\.6", words)
    assert "X-codec2, reported: 0.80 kb/s" in words and "level 2: " in words
    assert "level 1, by speaker" in words and "levels 2 to 3, by phone" in words
    assert len([name for name, _ in page.elements if name == "svg"]) == 3 + 3 + 1 + 4  # rates, levels, codes, planes
    assert "#010203" not in page.text and "#040506" not in page.text


def test_what_has_no_value_says_why(page):
    reasons = [
        row["cells"] for table in page.tables.values() for row in table if row["cells"][-1]["text"] == "no weights here"
    ]
    assert [cell["text"] for cell in reasons[0][:3]] == ["UTMOS", "na", "45"]


def test_downloads_are_the_files(page, run):
    files = {
        a["download"]: base64.b64decode(a["href"].partition(",")[2]).decode() for a in page.all("a") if "download" in a
    }
    assert files["table.csv"] == (run.folder / "table.csv").read_text()
    scores = list(csv.DictReader(io.StringIO(files["scores.csv"])))
    assert len(scores) == len(run.rows)
    assert [float(s["value"]) for s in scores if s["metric"] == "stoi"] == [
        r.value for r in run.rows if r.metric == "stoi"
    ]


@pytest.mark.parametrize(
    ("limit", "kind", "all_there"), [(1_000_000, "audio/ogg", True), (560_000, "audio/ogg", False)]
)
def test_a_page_keeps_its_size(run, limit, kind, all_there):
    path = report.write(run, limit=limit)
    page = Page(path.read_text())
    assert path.stat().st_size <= limit
    sounds = page.all("audio")
    assert sounds and all(kind in element["src"][:20] for element in sounds)
    assert all(len(sound_of(element)[0]) > RATE for element in sounds)
    assert ("did not fit" in "".join(page.words)) != all_there


def test_a_page_keeps_its_size_whatever_stands_around_the_clips(run, monkeypatch):
    plain, rooms = report.player.listening, []

    def wordy(run, columns, judge, room):
        rooms.append(room)
        return plain(run, columns, judge, room) + Html("x" * 300_000)

    monkeypatch.setattr(report.player, "listening", wordy)
    size = report.write(run, limit=10**9).stat().st_size
    limit = size - 100_000
    assert report.write(run, limit=limit).stat().st_size <= limit and len(rooms) == 3


def test_a_page_without_matplotlib_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    page = Page(report.write(run).read_text())
    assert "senone[eval]" in "".join(page.words) and page.all("audio") and not page.all("svg")


def test_a_run_without_sound_or_codes_still_has_its_table(tmp_path):
    folder = make_run(tmp_path, 3, 0.5)
    __import__("shutil").rmtree(folder / "audio")
    __import__("shutil").rmtree(folder / "codes")
    page = Page(report.write(Run.open(folder)).read_text())
    assert len(page.tables["systems"]) > 5 and not page.all("audio")


def test_what_it_refuses(run, tmp_path):
    with pytest.raises(EvalError, match="'mos' was not measured; the run has pesq_wb, stoi, wer_tiny, utmos"):
        report.write(run, by="mos")
    with pytest.raises(EvalError, match="holds no run"):
        Run.open(tmp_path)
    folder = make_run(tmp_path / "new", 3, 0.5)
    next((folder / "audio" / "opus_9k-").parent.glob("opus*/*.flac")).write_bytes(b"no audio")
    with pytest.raises(EvalError, match=r"audio/opus.*flac cannot be read"):
        report.write(Run.open(folder))
    assert not (folder / "report.html").exists() and not list(folder.glob(".report*"))


# parts


def test_extremes():
    def row(name: str, value: float | None) -> Row:
        return Row(name, "s", 1.0, "x", "f", "m", "f", value)

    rows = [row("a", 1.0), row("b", 3.0), row("c", 2.0), row("d", None), row("e", 2.5), row("f", 0.5)]
    assert clips.extremes(rows, higher=True) == {"b": "best", "f": "worst", "c": "median"}
    assert clips.extremes(rows, higher=False) == {"f": "best", "b": "worst", "c": "median"}
    assert clips.extremes(rows[:1], higher=True) == {"a": "best"}
    assert clips.extremes([row("d", None)], higher=True) == {}


def test_families():
    names = ["opus:12k", "speex:nb3", "codec2:700C", "toy@4", "cmd:enc {in}", "hf:dir/mimi@8", "a.py:Class", "identity"]
    families = ["opus", "speex", "codec2", "toy", "cmd:enc {in}", "hf:dir/mimi", "a.py:Class", "identity"]
    assert [charts.family(name) for name in names] == families


def test_bags_and_silhouettes_against_brute_force_and_scikit_learn():
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(1)
    codes = [rng.integers(n % 3, n % 3 + 4, (2, 30 + n)) for n in range(12)]
    x = bags.bags(codes, slice(0, 2))
    for i, j in ((0, 1), (2, 7)):
        parts = []
        for level in range(2):
            p, q = (np.bincount(codes[k][level], minlength=8) / codes[k].shape[1] for k in (i, j))
            parts.append(((np.sqrt(p) - np.sqrt(q)) ** 2).sum())
        assert ((x[i] - x[j]) ** 2).sum() == pytest.approx(sum(parts))
    labels = [f"s{n % 3}" for n in range(11)] + ["alone"]
    assert bags.silhouette(x, labels) == pytest.approx(silhouette_score(x, labels), abs=1e-9)
    assert bags.silhouette(x, ["one"] * 12) is None and bags.silhouette(x, [str(n) for n in range(12)]) is None


@pytest.mark.parametrize("method", ["t-SNE", "PCA"])
def test_a_plane_keeps_what_is_apart_apart(method, monkeypatch):
    if method == "PCA":
        monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    rng = np.random.default_rng(0)
    labels = [str(n % 3) for n in range(30)]
    x = np.eye(5)[[n % 3 for n in range(30)]] + 0.05 * rng.standard_normal((30, 5))
    places, name = bags.plane(x)
    score = bags.silhouette(places, labels)
    assert name == method and places.shape == (30, 2) and score is not None and score > 0.7


def test_a_tone_is_where_it_should_be_and_differences_have_signs():
    import torch

    from senone.features import mel_filters

    t = np.arange(RATE) / RATE
    low, high = (0.5 * np.sin(2 * np.pi * hz * t).astype(np.float32) for hz in (500, 3000))
    bands = (mel_filters(RATE, plots.MEL_FFT, plots.MELS) * torch.linspace(0, RATE / 2, 257)).sum(1)
    centres = (bands / mel_filters(RATE, plots.MEL_FFT, plots.MELS).sum(1)).numpy()
    for wave, hz in ((low, 500), (high, 3000)):
        assert abs(centres[plots.mel(wave, RATE)[:, 50].argmax()] - hz) < 60
    a, b = plots.mel(low, RATE), plots.mel(high, RATE)
    top = float(a.max())
    picture = pixels(plots.difference_png(a, b, top))  # high minus low: too much above, too little below
    row = {hz: plots.MELS - 1 - int(np.abs(centres - hz).argmin()) for hz in (500, 3000)}
    red, _, blue = picture[row[3000], 50].astype(int)
    assert red > blue + 50
    red, _, blue = picture[row[500], 50].astype(int)
    assert blue > red + 50
    same = pixels(plots.difference_png(a, a, top))
    assert same.min() > 230 and (same == same[0, 0]).all()
    assert pixels(plots.mel_png(a, top)).shape == (plots.MELS, a.shape[1], 3)


def pixels(uri: str) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_very_short_sound_has_a_spectrogram():
    assert plots.mel(np.zeros(5, np.float32), RATE).shape[0] == plots.MELS


def test_elements():
    assert tag("p", "a<b", Html("<i>"), class_="x", hidden=True, title=None, data_n=0, data_f=False) == (
        '<p class="x" hidden data-n="0">a&lt;b<i></p>'
    )
    assert tag("img", alt='"') == '<img alt="&quot;">'
