"""The frame around every metric: scores, reasons, fingerprints, and the process of its own."""

import inspect
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from senone.eval import child
from senone.eval.metrics import METRICS, PRESETS, RATE, Column, Item, Plain, Score, Unmeasurable, digest, measure

COLUMN = Column("toy", "Toy", "higher")


def noise(seconds=1.0, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


# the frame


def test_every_name_makes_a_metric_of_that_name():
    for name in METRICS:
        metric = METRICS.get(name)()
        column = metric.column
        assert column.name == name and column.title and column.licence and column.source, name
        assert metric.fingerprint.startswith(name), name
        assert ("senone.eval.signal" in METRICS.entries[name] and name != "visqol") != column.heavy, name
    assert len({METRICS.get(name)().column.title for name in METRICS}) == len(list(METRICS))


def test_the_page_has_every_metric_with_its_licence():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", page, re.MULTILINE))
    assert list(rows) == list(METRICS)
    for name, row in rows.items():
        column = METRICS.get(name)().column
        assert column.title in row and column.licence in row, name


def test_presets_hold_known_names():
    assert all(name in METRICS for names in PRESETS.values() for name in names)
    assert PRESETS["table1"] == ("wer_hubert", "stoi", "pesq_wb", "pesq_nb", "spk_sim", "utmos")
    assert not any(METRICS.get(name)().column.heavy for name in PRESETS["quick"])


@pytest.mark.parametrize(
    ("function", "status", "error"),
    [
        (lambda item: 1 / 0, "error", "ZeroDivisionError: division by zero"),
        (lambda item: float("nan"), "error", "toy gave nan"),
        (lambda item: (1.0, float("inf")), "error", "toy gave 1.0"),
        (lambda item: [][0], "error", "IndexError"),
    ],
)
def test_what_goes_wrong_is_no_number(function, status, error):
    score = measure(Plain(COLUMN, function), Item(noise(), noise()))
    assert score.value is None and score.status == status and error in score.error and "\n" not in score.error


def test_values_weights_and_reasons():
    def too_short(item):
        raise Unmeasurable("too_short", "it is short")

    item = Item(noise(), noise())
    assert measure(Plain(COLUMN, lambda item: (3, 7)), item) == Score(3.0, 7.0)
    assert measure(Plain(COLUMN, lambda item: 3), item) == Score(3.0)
    assert measure(Plain(COLUMN, too_short), item) == Score(None, 1.0, "too_short", "it is short")


def test_waves_that_cannot_be():
    metric = Plain(COLUMN, lambda item: 1)
    bad = noise()
    bad[7] = np.nan
    assert "NaN" in measure(metric, Item(noise(), bad)).error
    assert "shapes (16000,) and (8000,)" in measure(metric, Item(noise(), noise(0.5))).error
    assert measure(metric, Item(noise()[:0], noise()[:0])).status == "too_short"
    assert measure(metric, Item(noise(), noise())).status == "ok"


def test_what_is_missing_is_na_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SENONE_METRICS", str(tmp_path))
    item = Item(noise(), noise())
    score = measure(Plain(COLUMN, lambda item: 1, packages=("no-such-package",)), item)
    assert score == Score(None, status="na", error="no-such-package is not installed: pip install no-such-package")
    metric = Plain(replace(COLUMN, source="example.org"), lambda item: 1, files=("w.pt",))
    score = measure(metric, item)
    assert score.status == "na" and "w.pt is not in" in score.error and "example.org" in score.error
    missing = metric.fingerprint
    assert missing == "toy 1 w.pt:missing"
    (tmp_path / "w.pt").write_bytes(b"weights")
    assert measure(metric, item).value == 1 and metric.fingerprint != missing


def test_digest_of_a_folder_follows_its_files(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    first = digest(tmp_path)
    (tmp_path / "b").write_bytes(b"2")
    assert digest(tmp_path) != first and digest(tmp_path / "no") == "missing"


# the process of its own


def echo(wave, kind="sum", wait=0.0):
    """What the child calls here."""
    if kind == "die":
        os.kill(os.getpid(), 11)
    if kind == "exit":
        os._exit(3)
    if kind == "raise":
        raise RuntimeError("no\nmore")
    if kind == "reason":
        raise Unmeasurable("no_speech", "nothing there")
    print("C code prints where it likes")
    time.sleep(wait)
    return float(wave.sum())


@pytest.fixture(scope="module")
def helper(tmp_path_factory):
    """`echo`, in a module that the child can import."""
    folder = tmp_path_factory.mktemp("child")
    source = "import os, time\nfrom senone.eval.child import Unmeasurable\n" + inspect.getsource(echo)
    (folder / "senone_test_helper.py").write_text(source)
    sys.path.insert(0, str(folder))
    import senone_test_helper

    runner = child.Child()

    def call(*waves, seconds=60, **options):
        return runner(senone_test_helper.echo, *waves, seconds=seconds, **options)

    call.runner = runner
    yield call
    runner.stop()
    sys.path.remove(str(folder))


def test_child_answers_and_survives_what_is_raised(helper):
    assert helper(np.ones(100_000, np.float32)) == 100_000
    for kind, status, sentence in (("raise", "error", "RuntimeError: no"), ("reason", "no_speech", "nothing there")):
        with pytest.raises(Unmeasurable) as caught:
            helper(noise(), kind=kind)
        assert (caught.value.status, str(caught.value)) == (status, sentence)
    assert helper(np.ones(5, np.float32)) == 5


@pytest.mark.parametrize(("kind", "sentence"), [("die", "SIGSEGV"), ("exit", "exit code 3")])
def test_child_that_crashes_is_replaced(helper, kind, sentence):
    with pytest.raises(Unmeasurable, match=sentence) as caught:
        helper(noise(), kind=kind)
    assert caught.value.status == "crashed"
    assert helper(np.ones(5, np.float32)) == 5


def test_child_that_hangs_is_ended(helper):
    with pytest.raises(Unmeasurable, match="longer than 1 s") as caught:
        helper(noise(), wait=60, seconds=1)
    assert caught.value.status == "error"
    assert helper(np.ones(5, np.float32)) == 5


def test_child_that_dies_between_two_questions_is_replaced(helper):
    assert helper(np.ones(5, np.float32)) == 5
    os.kill(helper.runner.process.pid, 9)
    helper.runner.process.wait()
    with pytest.raises(Unmeasurable, match="SIGKILL"):
        helper(noise())
    assert helper(np.ones(5, np.float32)) == 5


def test_interrupted_child_is_not_asked_again(helper, monkeypatch):
    def interrupted(process, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(child, "_ask", interrupted)
        helper(noise())
    assert helper.runner.process is None
    assert helper(np.ones(5, np.float32)) == 5


def test_child_imports_no_torch():
    code = "import sys, senone.eval.child; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
