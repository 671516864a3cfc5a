"""The listening test: a page that does not tell, its key, and what becomes of ratings."""

import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile

from senone.eval import listen
from senone.eval.listen import REFERENCE, lowpass, rate, screened
from senone.eval.rows import ORIGINAL, Run, slug
from senone.eval.units import EvalError

RATE = 16000
SYSTEMS = ["toy:1", "toy:2", "behind"]


@pytest.fixture
def run(tmp_path) -> Run:
    """Six utterances by two speakers; "behind" runs 100 samples behind."""
    rng = np.random.default_rng(0)
    names = [f"dir/utt{n}" for n in range(6)]
    for name in names:
        wave = 0.1 * rng.standard_normal(4000)
        late = np.concatenate([np.zeros(100), wave])
        for system, sound in zip((ORIGINAL, *SYSTEMS), (wave, 0.5 * wave, 0.25 * wave, late), strict=True):
            path = tmp_path / "audio" / slug(system) / f"{slug(name)}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, sound, RATE, "PCM_16")
    utterances = [
        {"id": name, "speaker": "ab"[n // 3], "seconds": 0.25, "text": "", "content": "c"}
        for n, name in enumerate(names)
    ]
    systems = [{"name": name, "fingerprint": "f"} for name in SYSTEMS]
    (tmp_path / "run.json").write_text(json.dumps({"systems": systems, "metrics": [], "utterances": utterances}))
    # of "toy:2" every clip has another delay: none is taken out
    late = {"behind": {"delay": 100.0, "delay_steady": True}, "toy:2": {"delay": 50.0, "delay_steady": False}}
    delays = [{"name": name, "delay": None, "delay_steady": False} | late.get(name, {}) for name in SYSTEMS]
    (tmp_path / "summary.json").write_text(json.dumps({"systems": delays}))
    return Run.open(tmp_path)


def plan_of(text: str) -> dict:
    return json.loads(re.findall(r'<script type="application/json" id="plan">(.*?)</script>', text)[0])


def sounds_of(text: str) -> dict[str, np.ndarray]:
    found = re.findall(r'<audio src="data:audio/flac;base64,([^"]+)" preload="none" data-token="(\w+)"', text)
    return {token: soundfile.read(io.BytesIO(base64.b64decode(data)))[0] for data, token in found}


def test_the_page_holds_every_sound_and_no_names(run):
    text = listen.write(run, count=4, anchors=[3500]).read_text()
    plan, sounds = plan_of(text), sounds_of(text)
    key = json.loads((run.folder / "listen.key.json").read_text())
    assert key["page"] == plan["page"] and len(plan["clips"]) == 4
    for word in (*SYSTEMS, REFERENCE, "3.5", "dir/utt", *(slug(name) for name in SYSTEMS)):
        assert word not in re.sub(r"<style>.*?</style>|base64,[^\"]*", "", text, flags=re.DOTALL)
    heard = []
    for clip in plan["clips"]:
        assert {key["stimuli"][token]["system"] for token in clip["stimuli"]} == {
            *SYSTEMS,
            REFERENCE,
            "low-pass 3.5 kHz",
        }
        (utterance,) = {key["stimuli"][token]["utterance"] for token in clip["stimuli"]}
        heard.append(utterance)
        original = soundfile.read(run.audio(ORIGINAL, utterance))[0]
        of = {key["stimuli"][token]["system"]: sounds[token] for token in clip["stimuli"]}
        assert (of[REFERENCE] == original).all() and (sounds[clip["reference"]] == original).all()
        assert (of["behind"] == original).all(), "the delay is taken out"
        assert (of["toy:2"] == soundfile.read(run.audio("toy:2", utterance))[0]).all()
        assert clip["reference"] not in key["stimuli"]
    assert list(sounds) == sorted(sounds), "the order tells nothing"
    assert sorted(int(name[-1]) // 3 for name in heard) == [0, 0, 1, 1], "speakers in turn"


def test_the_same_seed_gives_the_same_page_and_another_another(run):
    first = listen.write(run, count=2).read_text()
    assert listen.write(run, count=2).read_text() == first
    assert plan_of(listen.write(run, count=2, seed=1).read_text())["page"] != plan_of(first)["page"]


def test_systems_can_be_chosen_and_unknown_ones_are_named(run):
    listen.write(run, systems=["toy:2"], count=1)
    key = json.loads((run.folder / "listen.key.json").read_text())
    assert {each["system"] for each in key["stimuli"].values()} == {"toy:2", REFERENCE}
    with pytest.raises(EvalError, match="no system 'toy'; it has toy:1, toy:2, behind"):
        listen.write(run, systems=["toy"])
    for utterance in run.card["utterances"]:
        run.audio("behind", utterance["id"]).unlink()
    with pytest.raises(EvalError, match="no utterance that all of toy:1, behind decoded"):
        listen.write(run, systems=["toy:1", "behind"])


def test_an_anchor_keeps_what_is_below_and_nothing_above():
    t = np.arange(RATE) / RATE
    low, high = (np.sin(2 * np.pi * hz * t).astype(np.float32) for hz in (3300, 3700))
    out = lowpass(low + high, RATE, 3500)
    assert np.abs(out - low).max() < 1e-3
    with pytest.raises(EvalError, match="between 200 and 8000 Hz, got 9000"):
        lowpass(low, RATE, 9000)


@pytest.mark.parametrize(
    ("reference", "others", "why"),
    [
        ([90] * 8 + [89] * 2, [50] * 10, ""),  # 20 % is not more than 20 %
        ([90] * 7 + [89] * 3, [50] * 10, "less than 90 in 3 of 10"),
        ([100] * 10, [91] * 5 + [90] * 5, ""),
        ([100] * 10, [91] * 6 + [90] * 4, "more than 90 to what is not the reference in 6 of 10"),
        ([], [50], ""),
    ],
)
def test_raters_are_screened_as_soundstreams_were(reference, others, why):
    found = screened([(REFERENCE, value) for value in reference] + [("x", value) for value in others])
    assert why in found and bool(found) == bool(why)


def test_means_and_intervals_are_over_those_who_stay():
    rng = np.random.default_rng(0)
    raters = {
        f"r{n}": [(REFERENCE, 100.0)] * 4 + [("a", 60 + 5 * n + rng.normal()) for _ in range(1 + 3 * n)] + [("b", 30.0)]
        for n in range(5)
    }
    raters["deaf"] = [(REFERENCE, 10.0), ("a", 0.0), ("b", 0.0)]
    result = rate(raters)
    assert list(result.dropped) == ["deaf"] and [one.system for one in result.systems] == [REFERENCE, "a", "b"]
    _, a, b = result.systems
    given = [[value for name, value in raters[f"r{n}"] if name == "a"] for n in range(5)]
    assert a.mean == pytest.approx(np.mean(sum(given, []))) and (a.ratings, a.raters) == (35, 5)
    draws = [np.mean(sum((given[n] for n in rng.choice(5, 5)), [])) for _ in range(20000)]
    assert [a.low, a.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.5)
    assert b.mean == b.low == b.high == 30
    alone = rate({"r0": raters["r0"]}).systems[1]
    assert alone.low is None and alone.high is None


def saved(run, rater: str, score) -> dict:
    plan = plan_of((run.folder / "listen.html").read_text())
    key = json.loads((run.folder / "listen.key.json").read_text())["stimuli"]
    ratings = [
        {"clip": clip["name"], "stimulus": token, "score": score(key[token]["system"])}
        for clip in plan["clips"]
        for token in clip["stimuli"]
    ]
    return {"format": plan["format"], "page": plan["page"], "rater": rater, "ratings": ratings}


def test_ratings_are_collected_from_files_and_folders(run, tmp_path):
    listen.write(run, count=3)
    folder = tmp_path / "ratings"
    folder.mkdir()
    score = {REFERENCE: 100, "toy:1": 70, "toy:2": 20, "behind": 50}
    (folder / "one.json").write_text(json.dumps(saved(run, "one", score.get)))
    (folder / "two.json").write_text(json.dumps(saved(run, "two", lambda name: score[name] - 10 * (name == "toy:1"))))
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(saved(run, "bad", lambda name: 95)))
    result = listen.score(run, [folder, bad])
    assert [(one.system, one.mean) for one in result.systems] == [
        (REFERENCE, 100),
        ("toy:1", 65),
        ("behind", 50),
        ("toy:2", 20),
    ]
    assert list(result.dropped) == ["bad"]
    kept = json.loads((run.folder / "listen.json").read_text())
    assert kept["systems"][1]["mean"] == 65 and "more than 90" in kept["dropped"]["bad"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"page": "other"}, "is of another page than listen.key.json"),
        ({"format": "x"}, "holds no ratings"),
        ({"ratings": 7}, "is damaged"),
        ({"ratings": [{"score": 7}]}, "is damaged"),
        ({"ratings": [{"stimulus": "x", "score": None}]}, "is damaged"),
        ({"ratings": [{"stimulus": "x", "score": 3}]}, "rates 1 sounds, not the 4 of the page"),
        ({"ratings": []}, "rates 0 sounds"),
    ],
)
def test_wrong_files_are_named(run, tmp_path, change, sentence):
    listen.write(run, count=1)
    file = tmp_path / "r.json"
    file.write_text(json.dumps(saved(run, "one", lambda name: 50) | change))
    with pytest.raises(EvalError, match=f"r.json {sentence}"):
        listen.score(run, [file])
    file.write_text(json.dumps(saved(run, "one", lambda name: 101)))
    with pytest.raises(EvalError, match="r.json has a score that is not from 0 to 100"):
        listen.score(run, [file])


def test_no_page_or_no_ratings(run, tmp_path):
    with pytest.raises(EvalError, match="has no listen.key.json: senone eval listen"):
        listen.score(run, [tmp_path / "r.json"])
    listen.write(run, count=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvalError, match="no ratings"):
        listen.score(run, [tmp_path / "empty"])
