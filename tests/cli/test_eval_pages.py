"""senone eval report, senone eval listen: what they refuse, in one sentence."""

import json

import numpy as np
import pytest
import soundfile

from senone.eval.rows import ORIGINAL, slug


@pytest.fixture
def run(tmp_path):
    """A run of one system and two utterances, without a score."""
    utterances = [{"id": f"u{n}", "speaker": "s", "seconds": 0.5, "text": None, "content": "c"} for n in range(2)]
    systems = [{"name": "opus:6k", "fingerprint": "f", "kbps": 6.0}]
    metrics = [{"name": "stoi", "title": "STOI", "better": "higher", "fingerprint": "m"}]
    card = {"command": "senone eval codec", "systems": systems, "metrics": metrics, "utterances": utterances}
    (tmp_path / "run.json").write_text(json.dumps(card))
    (tmp_path / "summary.json").write_text(json.dumps({"systems": [{"name": "opus:6k", "cells": {}}], "pairs": []}))
    for system in (ORIGINAL, "opus:6k"):
        (tmp_path / "audio" / slug(system)).mkdir(parents=True)
        for utterance in utterances:
            wave = np.random.default_rng(0).uniform(-0.1, 0.1, 8000)
            soundfile.write(tmp_path / "audio" / slug(system) / f"{utterance['id']}.flac", wave, 16000)
    return tmp_path


def test_a_run_without_a_single_score_has_a_report(senone, run):
    done = senone("eval", "report", run)
    assert (done.code, done.out.decode().strip(), done.err) == (0, str(run / "report.html"), "")
    assert "n/a" in (run / "report.html").read_text()


def test_a_listening_page_and_what_was_said_of_it(senone, run, tmp_path):
    done = senone("eval", "listen", run, "--clips", 5)
    assert (done.code, done.out.decode().strip()) == (0, str(run / "listen.html"))
    key = json.loads((run / "listen.key.json").read_text())
    for rater, other in (("good", 40), ("bad", 95)):
        score = {"opus:6k": other, "hidden reference": 100}
        ratings = [{"stimulus": token, "score": score[each["system"]]} for token, each in key["stimuli"].items()]
        said = {"format": key["format"], "page": key["page"], "rater": rater, "ratings": ratings}
        (tmp_path / f"{rater}.json").write_text(json.dumps(said))
    done = senone("eval", "listen", run, "--ratings", tmp_path / "good.json", "--ratings", tmp_path / "bad.json")
    assert done.code == 0 and done.out.decode() == (
        "100.0  hidden reference  (2 ratings by 1)\n 40.0  opus:6k  (2 ratings by 1)\n"
    )
    assert done.err == "senone: bad is left out: gave more than 90 to what is not the reference in 2 of 2 cases\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["report", "nowhere"], "nowhere holds no run: it has no run.json"),
        (["report", "RUN", "--by", "mos"], "'mos' was not measured; the run has stoi"),
        (["report", "RUN", "--phones", "nowhere.ctm"], "nowhere.ctm"),
        (["listen", "nowhere"], "nowhere holds no run"),
        (["listen", "RUN", "--system", "opus"], "the run has no system 'opus'; it has opus:6k"),
        (["listen", "RUN", "--anchor", "9000"], "an anchor must be between 200 and 8000 Hz, got 9000"),
        (["listen", "RUN", "--ratings", "nowhere.json"], "has no listen.key.json"),
    ],
)
def test_bad_input_is_one_sentence(senone, run, words, sentence):
    done = senone("eval", *(run if word == "RUN" else word for word in words))
    assert done.code == 2 and not done.out
    assert sentence in done.err and done.err.count("\n") == 1 and "Traceback" not in done.err
    assert not (run / "report.html").exists() and not (run / "listen.html").exists()


def test_a_damaged_card_or_a_run_that_did_not_end_is_named(senone, run):
    (run / "summary.json").unlink()
    assert "summary.json does not exist" in senone("eval", "report", run).err
    (run / "run.json").write_text("{")
    assert "run.json cannot be read" in senone("eval", "report", run).err


def test_a_folder_that_cannot_be_written_is_named(senone, run):
    (run / "report.html").mkdir()
    done = senone("eval", "report", run)
    assert done.code == 2 and f"cannot write {run / 'report.html'}" in done.err
    assert not [path for path in run.iterdir() if path.name.startswith(".report")]
