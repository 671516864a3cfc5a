"""Runs: what is measured, kept, measured again, and what is told of it."""

import dataclasses
import json
import sys
import types
from math import log2
from pathlib import Path

import numpy as np
import pytest
import soundfile

from senone.errors import SenoneError
from senone.eval import bench, corpus, systems, tables
from senone.eval.bench import Plan
from senone.eval.metrics import METRICS, RATE, Column, Plain, Score, Unmeasurable
from senone.eval.pool import over_processes
from senone.eval.rows import Book, Row, Run, read_rows, slug
from senone.eval.tables import published
from senone.eval.units import EvalError

ROOT = Path(__file__).parents[2]
SPEECH, _ = soundfile.read(ROOT / "examples" / "clip.flac", dtype="float32")
GOLDEN = {  # STOI, PESQ-WB, PESQ-NB
    "identity": (1.0, 4.64389, 4.54864),
    "pcm:8k": (0.99575, 3.52921, 4.54794),
    "spectral-mini@4": (0.84900, 1.50784, 1.95110),
}
CRASHING = f"""
import os
from senone.hub import user_class
MyCodec = user_class("{ROOT}/examples/mycodec.py:MyCodec")
class Careful(MyCodec):
    def METHOD(self, x, state=None):
        if CONDITION:
            EXPLODE
        return super().METHOD(x, state)
"""


@pytest.fixture(autouse=True)
def _fresh():
    for kept in (systems.system, systems._encoder, bench.metric):
        kept.cache_clear()


@pytest.fixture
def clips(tmp_path) -> Path:
    """Six stretches of real speech, of three speakers, one of them loud, with transcripts for two."""
    folder = tmp_path / "clips"
    for n in range(6):
        wave = SPEECH[8000 * n : 8000 * n + 20000 + 100 * n]
        wave = 0.5 * wave / np.abs(wave).max() * (1.9 if n == 3 else 1)
        (folder / f"s{n % 3}").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"s{n % 3}" / f"{n}.wav", wave, RATE, "PCM_16")
    (tmp_path / "said.txt").write_text("0 she had your\ns1/1\tdark suit\n")
    return folder


def run(clips, folder, names=("identity",), metrics=("stoi", "si_sdr"), jobs=0, **more):
    keys = {field.name for field in dataclasses.fields(Plan)} & more.keys()
    plan = Plan(tuple(names), tuple(metrics), **{key: more.pop(key) for key in keys})
    return bench.run(plan, corpus.read(clips), folder, jobs=jobs, speed=False, **more)


def cells(found: Run, system: str) -> dict:
    return next(one for one in found.summary["systems"] if one["name"] == system)["cells"]


def test_identity_has_the_scores_it_must(clips, tmp_path):
    found = run(clips, tmp_path / "run")
    assert [row.value for row in found.rows if row.metric == "stoi"] == pytest.approx([1] * 6, abs=1e-9)
    assert {row.value for row in found.rows if row.metric == "si_sdr"} == {100}
    (system,) = found.summary["systems"]
    assert system["delay"] == 0 and system["file_kbps"] == pytest.approx(256) and not found.summary["warnings"]
    assert cells(found, "identity")["stoi"] | {"value": 1, "low": 1, "high": 1} == {
        "value": 1, "low": 1, "high": 1, "n": 6, "of": 6, "status": "ok"
    }  # fmt: skip
    for utterance in found.card["utterances"]:
        pair = [soundfile.read(found.audio(name, utterance["id"]))[0] for name in ("original", "identity")]
        assert np.array_equal(*pair) and len(pair[0]) == round(RATE * utterance["seconds"])


def test_a_run_is_as_told_in_its_folder(clips, tmp_path):
    found = run(clips, tmp_path / "run", ["spectral-mini@2", "pcm:8k"])
    lines = [json.loads(line) for line in (found.folder / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * 2 * 4 and all(line["status"] == "ok" for line in lines)
    assert {line["metric"] for line in lines} == {"kbps", "delay", "stoi", "si_sdr"}
    codes, sizes = found.codes("spectral-mini@2"), found.card["systems"][0]["sizes"]
    assert codes.keys() == {slug(u["id"]) for u in found.card["utterances"]} and len(sizes) == 2
    assert all(one.shape[0] == 2 and one.dtype == np.int16 for one in codes.values()) and not found.codes("pcm:8k")
    system = found.summary["systems"][0]
    counts = np.unique(np.concatenate([one[1] for one in codes.values()]), return_counts=True)[1]
    entropy = -(counts / counts.sum() * np.log2(counts / counts.sum())).sum()
    assert system["books"][1]["entropy"] == pytest.approx(entropy)
    assert system["entropy_kbps"] == pytest.approx(0.05 * sum(book["entropy"] for book in system["books"]))
    assert system["utilisation"] == pytest.approx(np.mean([book["utilisation"] for book in system["books"]]))
    assert system["kbps"] == pytest.approx(1.2) and system["token_rate"] == 100 and len(found.card["cpu"]) > 5
    by = {row.utterance: row.value for row in found.rows if (row.system, row.metric) == ("pcm:8k", "si_sdr")}
    assert cells(found, "pcm:8k")["si_sdr"]["value"] == pytest.approx(np.mean([*by.values()]))
    (pair,) = [pair for pair in found.summary["pairs"] if pair["metric"] == "stoi"]
    assert (pair["a"], pair["b"]) == ("spectral-mini@2", "pcm:8k") and pair["difference"] < 0 and pair["win_rate"] == 0


def test_nothing_is_measured_twice_and_a_new_metric_codes_nothing(clips, tmp_path, monkeypatch):
    first = run(clips, tmp_path / "run", ["pcm:8k"])
    before = (tmp_path / "run" / "rows.jsonl").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(bench, "work", lambda task: pytest.fail("worked"))
        again = run(clips, tmp_path / "run", ["pcm:8k"])
    assert (tmp_path / "run" / "rows.jsonl").read_text() == before and again.summary == first.summary
    monkeypatch.setattr(systems.System, "code", lambda *_: pytest.fail("coded"))
    more = run(clips, tmp_path / "run", ["pcm:8k"], ["stoi", "si_sdr", "estoi"])
    after = (tmp_path / "run" / "rows.jsonl").read_text()
    assert after.startswith(before) and len(after.splitlines()) == len(before.splitlines()) + 6
    assert cells(more, "pcm:8k")["estoi"]["n"] == 6
    fewer = run(clips, tmp_path / "run", ["pcm:8k"], ["stoi"])  # what is there, and was not asked for, is not told
    assert {row.metric for row in fewer.rows} == {"kbps", "delay", "stoi"}
    assert cells(fewer, "pcm:8k").keys() == {"stoi"}


def test_what_changed_is_measured_again(clips, tmp_path):
    (tmp_path / "decoded").mkdir()
    for path in clips.rglob("*.wav"):
        (tmp_path / "decoded" / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / "decoded" / path.parent.name / path.name).write_bytes(path.read_bytes())
    name = f"files:{tmp_path}/decoded"
    assert cells(run(clips, tmp_path / "run", [name]), name)["si_sdr"]["value"] == 100
    systems.system.cache_clear()
    changed = tmp_path / "decoded" / "s0" / "0.wav"
    soundfile.write(changed, np.random.default_rng(0).standard_normal(20000) * 0.1, RATE, "PCM_16")
    found = run(clips, tmp_path / "run", [name])
    values = {row.utterance: row.value for row in found.rows if row.metric == "si_sdr"}
    assert values["s0/0"] < -20 and sorted(values.values())[1:] == [100] * 5
    changed.write_bytes((clips / "s0" / "0.wav").read_bytes())  # back again: the rows are there, the sound is not
    systems.system.cache_clear()
    found = run(clips, tmp_path / "run", [name])
    assert cells(found, name)["si_sdr"]["value"] == 100
    assert np.array_equal(*(soundfile.read(found.audio(one, "s0/0"))[0] for one in ("original", name)))


def test_processes_give_the_same_rows(clips, tmp_path):
    names = ["pcm:8k", "identity", "spectral-mini@1"]
    kept = []
    for jobs in (1, 2):  # 0 may use several threads, which add in another order
        found = run(clips, tmp_path / f"run{jobs}", names, jobs=jobs)
        kept.append((sorted((found.folder / "rows.jsonl").read_text().splitlines()), found.summary))
    assert kept[0] == kept[1] and len(kept[0][0]) == 72


def test_ray_gives_the_same_rows(clips, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    kept = []
    for n, more in enumerate(({"jobs": 0}, {"ray": "local"})):
        found = run(clips, tmp_path / f"run{n}", ["pcm:8k", "spectral-mini@1"], **more)
        kept.append((sorted((found.folder / "rows.jsonl").read_text().splitlines()), found.summary))
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("method", "condition", "explode", "jobs", "status", "error"),
    [
        ("analyse", "x.abs().max() > 0.9", "raise ValueError('too loud')", 0, "error", "ValueError: too loud"),
        ("synthesise", "x.shape[2] > 64", "x = x * float('nan')", 0, "error", "decoded wave holds NaN"),
        ("analyse", "x.abs().max() > 0.9", "os.kill(os.getpid(), 11)", 1, "crashed", "SIGSEGV"),
    ],
)
def test_a_tokenizer_that_fails_on_one_clip_loses_that_clip(
    clips, tmp_path, method, condition, explode, jobs, status, error
):
    text = CRASHING.replace("METHOD", method).replace("CONDITION", condition).replace("EXPLODE", explode)
    (tmp_path / "careful.py").write_text(text)
    name = f"{tmp_path}/careful.py:Careful"
    found = run(clips, tmp_path / "run", [name, "identity"], jobs=jobs)
    lost = [row for row in found.rows if row.status != "ok"]
    assert {row.system for row in lost} == {name} and {row.status for row in lost} == {status}
    assert all(row.value is None and error in row.error for row in lost)
    assert len({row.utterance for row in lost}) == 1 and cells(found, "identity")["stoi"]["n"] == 6
    cell = cells(found, name)["stoi"]
    assert cell["value"] is cell["low"] is None and (cell["n"], cell["of"], cell["status"]) == (5, 6, "coverage")
    assert any(error in sentence for sentence in found.summary["warnings"]) and "– (5/6)" in tables.markdown(found)
    before = len((found.folder / "rows.jsonl").read_text().splitlines())
    run(clips, tmp_path / "run", [name, "identity"], jobs=jobs)
    assert len((found.folder / "rows.jsonl").read_text().splitlines()) == before
    run(clips, tmp_path / "run", [name, "identity"], jobs=jobs, retry=True)
    assert len((found.folder / "rows.jsonl").read_text().splitlines()) == before + 4


def test_a_disk_that_is_full_ends_the_run(clips, tmp_path, monkeypatch):
    def full(*_):
        raise EvalError("cannot write x.flac: No space left on device")

    monkeypatch.setattr(bench, "_keep", full)
    with pytest.raises(SenoneError, match="No space left"):
        run(clips, tmp_path / "run")
    assert not (tmp_path / "run" / "rows.jsonl").read_text()


def test_a_process_that_cannot_start_is_no_fault_of_the_clips(monkeypatch):
    module = types.ModuleType("only_here")
    exec("def work(task): return task", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    assert [*over_processes(module.work, [1, 2], 0)] == [(1, 1), (2, 2)]  # type: ignore[attr-defined]
    with pytest.raises(SenoneError, match="no process can be started: the process was ended with status 1"):
        [*over_processes(module.work, [1, 2], 2)]  # type: ignore[attr-defined]


def test_a_metric_that_fails_is_null_and_in_no_mean(clips, tmp_path, monkeypatch):
    def score(item):
        if np.abs(item.ref).max() > 0.9:
            raise RuntimeError("no\nmore")
        if len(item.ref) == 20000:
            raise Unmeasurable("too_short", "too short for it")
        return 7.0 if len(item.ref) != 20500 else float("inf")

    def count(item):
        return Score(len(item.ref) / 1000, 4.0)

    module = types.ModuleType("fragile")
    module.fragile = lambda: Plain(Column("fragile", "Fragile", "higher"), score)  # type: ignore[attr-defined]
    module.ratio = lambda: Plain(Column("ratio", "Ratio", "lower", ratio=True), lambda item: (2.0, 4.0))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fragile", module)
    for name in ("fragile", "ratio"):
        monkeypatch.setitem(METRICS.entries, name, f"fragile:{name}")
    found = run(clips, tmp_path / "run", ["identity"], ["fragile", "ratio"])
    rows = {row.utterance: row for row in found.rows if row.metric == "fragile"}
    statuses = [rows[f"s{n % 3}/{n}"].status for n in range(6)]
    assert statuses == ["too_short", "ok", "ok", "error", "ok", "error"]
    assert [row.value for row in rows.values() if row.value is not None] == [7, 7, 7]
    cell = cells(found, "identity")["fragile"]
    assert cell["value"] is None and cell["n"] == 3 and cell["status"] == "coverage"
    assert cells(found, "identity")["ratio"]["value"] == 0.5
    assert "NaN" not in (found.folder / "rows.jsonl").read_text() + (found.folder / "summary.json").read_text()


def test_delay_is_told_and_taken_out_on_request(clips, tmp_path):
    late = tmp_path / "late"
    for path in clips.rglob("*.wav"):
        wave, _ = soundfile.read(path)
        (late / path.parent.name).mkdir(parents=True, exist_ok=True)
        soundfile.write(late / path.parent.name / path.name, np.concatenate([np.zeros(320), wave]), RATE, "PCM_16")
    name = f"files:{late}"
    found = run(clips, tmp_path / "run", [name], align="none")
    (system,) = found.summary["systems"]
    assert system["delay"] == 320 and cells(found, name)["stoi"]["value"] < 0.8
    assert [s for s in found.summary["warnings"] if "320 samples late" in s and "--align estimate" in s]
    found = run(clips, tmp_path / "run", [name], align="estimate")
    assert cells(found, name)["stoi"]["value"] == pytest.approx(1, abs=1e-9) and not found.summary["warnings"]
    assert len(found.rows) == 6 * 4  # those without alignment are there still, and not these


def test_delay_that_no_two_clips_share_is_no_delay(clips, tmp_path):
    for n, path in enumerate(sorted(clips.rglob("*.wav"))):
        wave, _ = soundfile.read(path)
        (tmp_path / "odd" / path.parent.name).mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "odd" / path.parent.name / path.name, np.r_[np.zeros(90 * n), wave], RATE, "PCM_16")
    found = run(clips, tmp_path / "run", [f"files:{tmp_path}/odd"])
    assert found.summary["systems"][0]["delay"] == 225 and not found.summary["warnings"]


@pytest.mark.parametrize("ladder", [("opus:6k", "opus:12k", "opus:24k"), ("codec2:1300", "amrwb:6.6", "amrwb:23.85")])
def test_more_bits_are_better(clips, tmp_path, ladder):
    pytest.importorskip("pesq", reason="the extra eval is not installed")
    for name in ladder:
        if systems.system(name).missing:
            pytest.skip(systems.system(name).missing)
    found = run(clips, tmp_path / "run", ladder, ["pesq_wb", "stoi"])
    for metric in ("pesq_wb", "stoi"):
        values = [cells(found, name)[metric]["value"] for name in ladder]
        assert values == sorted(values) and len({*values}) == 3, metric
    assert found.summary["systems"][0]["opus"]["pesq_wb"] == (pytest.approx(6) if ladder[0] == "opus:6k" else None)


def test_a_decoded_wave_that_lacks_its_end_is_an_error(clips, tmp_path):
    for path in clips.rglob("*.wav"):
        wave, _ = soundfile.read(path)
        (tmp_path / "cut" / path.parent.name).mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "cut" / path.parent.name / path.name, wave[:-5000], RATE, "PCM_16")
    found = run(clips, tmp_path / "run", [f"files:{tmp_path}/cut"])
    scores = [row for row in found.rows if row.metric == "stoi"]
    assert {row.status for row in scores} == {"error"} and "15000 samples were decoded of 20000" in scores[0].error


def test_heavy_metrics_hear_the_first_utterances_only(clips, tmp_path, monkeypatch):
    module = types.ModuleType("slow")
    module.slow = lambda: Plain(Column("slow", "Slow", "higher", heavy=True), lambda item: 1.0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slow", module)
    monkeypatch.setitem(METRICS.entries, "slow", "slow:slow")
    assert cells(run(clips, tmp_path / "run", metrics=["slow", "stoi"]), "identity")["slow"]["n"] == 6
    found = run(clips, tmp_path / "run", metrics=["slow", "stoi"], heavy=2)
    assert [cells(found, "identity")[name]["of"] for name in ("slow", "stoi")] == [2, 6]
    assert cells(found, "identity")["slow"]["n"] == 2 and "On the first 2 only: Slow." in tables.notes(found)


def test_rows_of_a_killed_process_are_whole(tmp_path):
    row = Row("a", "s", 1.0, "x", "1", "m", "1", 0.1 + 0.2, content="c")
    with Book(tmp_path) as book:
        book.add([row, row])
        with pytest.raises(SenoneError, match="another process"), Book(tmp_path):
            pass
    path = tmp_path / "rows.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-9])
    assert list(read_rows(path)) == [row]
    with Book(tmp_path) as book:
        assert list(book.rows.values()) == [row] and path.read_bytes() == whole
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(SenoneError, match="rows.jsonl, line 1"):
        list(read_rows(path))
    with pytest.raises(SenoneError, match="holds no run"):
        Run.open(tmp_path)


def test_slugs_are_file_names_and_never_meet():
    names = ["a/b", "a_b", "a b", "opus:6k", "spectral-mini@4", "../x", ".x", "x" * 300, "x" * 301, "é", "", "a"]
    found = [slug(name) for name in names]
    assert len({*found}) == len(names) and slug("a") == "a" and slug("a_b") == "a_b"
    assert all("/" not in one and one[0] != "." and 0 < len(one) < 100 and one.isascii() for one in found)


def test_a_corpus_takes_speakers_in_turn_and_lists_what_is_no_audio(clips, tmp_path):
    (clips / "s0" / "broken.wav").write_bytes(b"RIFF and no more")
    (clips / "s0" / "notes.txt").write_text("not audio")
    found = corpus.read(clips, text=tmp_path / "said.txt")
    assert [u.id for u in found.utterances] == ["s0/0", "s1/1", "s2/2", "s0/3", "s1/4", "s2/5"]
    assert [u.text for u in found.utterances][:3] == ["she had your", "dark suit", None]
    (sentence,) = found.unreadable
    assert "broken.wav" in sentence
    plain = corpus.read(clips)
    assert plain.utterances[0].content != found.utterances[0].content  # another text is another content
    assert plain.utterances[2].content == found.utterances[2].content
    (tmp_path / "list.tsv").write_text("path\tseconds\tspeaker\nclips/s0/0.wav\t1.25\tA\nclips/s0/gone.wav\t1\tA\n")
    listed = corpus.read(tmp_path / "list.tsv")
    assert len(listed.utterances) == 1 and "gone.wav" in listed.unreadable[0]
    for source in (tmp_path / "empty", tmp_path / "list.txt"):
        source.mkdir() if source.name == "empty" else source.write_text("")
        with pytest.raises(SenoneError):
            corpus.read(source)


def test_librispeech_is_read_as_it_comes(tmp_path):
    folder = tmp_path / "test-clean" / "61" / "70968"
    folder.mkdir(parents=True)
    for n in range(2):
        soundfile.write(folder / f"61-70968-000{n}.flac", SPEECH[:8000], RATE)
    (folder / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN\n61-70968-0001 GIVE NOT\n")
    found = corpus.read(tmp_path / "test-clean").utterances
    assert [(u.id, u.speaker, u.text) for u in found] == [
        ("61/70968/61-70968-0000", "61", "HE BEGAN"),
        ("61/70968/61-70968-0001", "61", "GIVE NOT"),
    ]


def test_the_published_table_is_consistent():
    rows = published()
    assert len(rows) == 20 and rows[0] == ("Ground Truth", dict(rows)["Ground Truth"])
    for name, row in rows[1:]:
        assert row["token_rate"] == row["frame_rate"] * row["levels"], name
    rates = {(name, row["token_rate"]): row["kbps"] for name, row in rows[1:]}
    assert rates["X-codec2", 50] == 0.8 and rates["Mimi", 100] == 1.1 and rates["DAC", 600] == 6
    assert rates["StableCodec", 50] == pytest.approx(0.05 * log2(15625)) and rates["SemantiCodec", 50] == 0.7
    assert dict(rows)["Ground Truth"]["wer_hubert"] == pytest.approx(0.0196)


def test_tables_say_the_same_in_every_form(clips, tmp_path):
    found = run(clips, tmp_path / "run", ["pcm:8k", "identity"], against="identity")
    tables.write(found, reported=True)
    text, sheet, tex = ((found.folder / f"table.{kind}").read_text() for kind in ("md", "csv", "tex"))
    value = cells(found, "pcm:8k")["stoi"]["value"]
    assert f"{value:.3f} [" in text and f"{value:.3f}" in tex and f"{value}" in sheet
    assert "minus identity" in text and "X-codec2 (reported)" in text and "0.92" in text
    assert len(sheet.splitlines()) == 1 + 2 * 2 and r"\toprule" in tex and tex.count("\\\\\n") == 1 + 2 + 20
    assert tables._tex(r"a_b & 5 % ±~\x") == r"a\_b \& 5 \% $\pm$\textasciitilde{}\textbackslash{}x"
    assert tables.cell({"value": 0.5, "low": 0.4, "high": 0.7, "n": 1, "of": 1}, {"scale": 100, "digits": 1}) == (
        "50.0 [40.0, 70.0]"
    )


def test_table1_on_ten_clips_is_what_it_was(data, tmp_path):
    """Frozen on a CPU: our code, not the papers'."""
    pytest.importorskip("pesq", reason="the extra eval is not installed")
    whole = corpus.read(data / "librispeech_test_clean")
    ten = dataclasses.replace(whole, utterances=sorted(whole.utterances, key=lambda u: u.seconds)[:10])
    plan = Plan(("identity", "pcm:8k", "spectral-mini@4"), ("stoi", "pesq_wb", "pesq_nb"), align="none")
    found = bench.run(plan, ten, tmp_path / "run", jobs=0, speed=False)
    for system, values in GOLDEN.items():
        cell = cells(found, system)
        assert [cell[name]["value"] for name in plan.metrics] == pytest.approx(values, abs=1e-3), system
