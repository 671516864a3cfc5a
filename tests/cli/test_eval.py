"""senone eval codec and pairs: from recordings to a table, what is wrong in one sentence, and kill -9."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch

from senone.audio import Audio
from senone.eval import bench, systems

SPEECH = Audio.read(Path(__file__).parents[2] / "examples" / "clip.flac").mono().resample(16000).wave
QUIET = ("--jobs", 0, "--no-speed", "--no-report")


@pytest.fixture(autouse=True)
def _fresh():
    for kept in (systems.system, systems._encoder, bench.metric):
        kept.cache_clear()


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for n in range(4):
        Audio(SPEECH[:, 9000 * n : 9000 * n + 20000], 16000).save(folder / f"{n}.wav")
    return folder


def test_the_verbs_have_examples(senone):
    for verb in ("codec", "pairs"):
        code, out, _ = senone("eval", verb, "--help")
        assert code == 0 and f"senone eval {verb} " in out.decode().split("Examples:")[1]


def test_codec_measures_systems_side_by_side(senone, model, clips, tmp_path):
    out = tmp_path / "run"
    words = (
        "eval",
        "codec",
        model,
        "pcm:8k",
        "identity",
        "--levels",
        "1,3",
        "--data",
        clips,
        "--metrics",
        "stoi,si_sdr",
    )
    code, text, err = senone(*words, "-o", out, *QUIET)
    assert (code, err) == (0, "")
    lines = [line.split(" | ") for line in text.decode().splitlines() if line.startswith("| ")]
    assert [line[0][2:] for line in lines] == ["system", f"{model}@1", f"{model}@3", "pcm:8k", "identity"]
    stoi = next(k for k, title in enumerate(lines[0]) if "STOI" in title)
    assert lines[4][stoi] == "1.000 [1.000, 1.000]" and lines[2][1] == "0.60" and lines[3][1] == "128.00"
    card = json.loads((out / "run.json").read_text())
    assert (
        card["command"].startswith("senone eval codec") and card["alignment"] == "known" and card["versions"]["torch"]
    )
    assert (out / "table.md").read_text().splitlines()[0] == text.decode().splitlines()[0]
    assert {path.name for path in out.iterdir()} == {
        "audio", "codes", "rows.jsonl", "run.json", "summary.json", "table.csv", "table.md", "table.tex"
    }  # fmt: skip
    before = (out / "rows.jsonl").read_bytes()
    assert senone(*words, "-o", out, *QUIET)[1] == text and (out / "rows.jsonl").read_bytes() == before


def test_a_page_is_written_and_systems_are_timed(senone, clips, tmp_path):
    words = ("eval", "codec", "pcm:8k", "identity", "--data", clips, "--limit", 2, "--metrics", "stoi", "--jobs", 0)
    code, out, err = senone(*words, "-o", tmp_path / "run")
    assert code == 0 and str(tmp_path / "run" / "report.html") in err and (tmp_path / "run" / "report.html").exists()
    speed = next(iter(json.loads((tmp_path / "run" / "speed.json").read_text()).values()))["pcm:8k"]
    assert speed["real_time"] > 1 and 50 < speed["memory_mb"] < 5000 and "× real time" in out.decode()


def test_pairs_scores_anyones_audio(senone, clips, tmp_path):
    for name in ("same", "soft"):
        (tmp_path / name).mkdir()
        for path in clips.iterdir():
            wave = Audio.read(path).wave * (1 if name == "same" else 0.5)
            Audio(wave + (0 if name == "same" else 0.01) * torch.randn(wave.shape), 16000).save(
                tmp_path / name / f"{path.stem}.flac"
            )
    sides = ("--ref", clips, "--deg", tmp_path / "same", "--deg", tmp_path / "soft")
    code, out, err = senone(
        "eval", "pairs", *sides, "--metrics", "stoi", "-o", tmp_path / "run", "-j", 0, "--no-report"
    )
    assert (code, err) == (0, "")
    same, soft = (line.split(" | ") for line in out.decode().splitlines()[2:4])
    assert same[-1] == "1.000 [1.000, 1.000] |" and 0.5 < float(soft[-1].split()[0]) < 1
    (tmp_path / "soft" / "2.flac").unlink()
    code, out, err = senone("eval", "pairs", *sides, "-o", tmp_path / "run2", "-j", 0)
    assert code == 2 and not out and not (tmp_path / "run2").exists()
    assert err == f"senone: {tmp_path}/soft has no '2'; there are 4 originals and 3 files in {tmp_path}/soft\n"
    Audio(SPEECH, 16000).save(tmp_path / "same" / "9.wav")
    code, _, err = senone("eval", "pairs", *sides, "-o", tmp_path / "run2", "-j", 0)
    assert code == 2 and "'9' of" in err and "has no original; there are 4 originals and 5 files" in err


def test_what_cannot_be_read_is_told_of_and_the_others_go_on(senone, clips, tmp_path):
    (clips / "broken.flac").write_bytes(b"fLaC, it says")
    code, out, err = senone(
        "eval", "codec", "identity", "--data", clips, "--metrics", "stoi", "-o", tmp_path / "r", *QUIET
    )
    assert code == 2 and err.count("\n") == 1 and "broken.flac" in err and "4 utterances" in out.decode()


def test_what_is_not_installed_is_not_an_error(senone, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    words = (
        "eval",
        "codec",
        "opus:6k",
        "identity",
        "--data",
        clips,
        "--metrics",
        "stoi",
        "-o",
        tmp_path / "run",
        *QUIET,
    )
    code, out, err = senone(*words)
    assert (code, err) == (0, "") and "| opus:6k | 6.00 |" in out.decode() and "n/a" in out.decode()
    assert "opus:6k is n/a: opusenc is not installed: apt-get install opus-tools" in out.decode()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("identity", "--preset", "tabel1"), "unknown preset 'tabel1'; did you mean 'table1'?"),
        (("identity", "--metrics", "stoy"), "unknown metric 'stoy'; did you mean 'stoi'?"),
        (("identity", "--metrics", "+stoi,-pesk"), "unknown metric 'pesk'"),
        (("identity", "--align", "knwon"), "unknown alignment 'knwon'; did you mean 'known'?"),
        (("opus", "--levels", "1"), "unknown model 'opus'"),
        (("spectral-mini", "--levels", "1,x"), "--levels must be numbers separated by commas, got '1,x'"),
        (("identity", "--against", "opus:6k"), "--against names 'opus:6k', which is not measured"),
        (("identity", "--data", "nowhere"), "nowhere"),
        (("identity", "--text", "nowhere.txt"), "cannot read nowhere.txt"),
        (("identity", "--out", "/proc/nowhere"), "cannot write /proc/nowhere"),
    ],
)
def test_what_is_wrong_is_one_sentence(senone, clips, tmp_path, words, sentence):
    start = ("eval", "codec", "--data", clips, "-o", tmp_path / "run", "--metrics", "stoi", *QUIET)
    code, out, err = senone(*start, *words)
    assert code == 2 and not out and sentence in err and err.startswith("senone: ") and err.count("\n") == 1


def test_kill_9_loses_nothing(clips, tmp_path):
    """Killed in the middle and called again, a run has the very scores of one that was left alone."""
    for n in range(4, 12):
        (clips / f"{n}.wav").write_bytes((clips / f"{n % 4}.wav").read_bytes())
    slow = "cmd:sleep 0.1; cp {in} {out}"

    def call(out: Path, jobs: int) -> list:
        words = ["eval", "codec", slow, "pcm:8k", "--data", clips, "--metrics", "stoi,estoi,si_sdr", "-o", out]
        return [sys.executable, "-m", "senone", *map(str, words), "--jobs", f"{jobs}", "--no-speed", "--no-report"]

    subprocess.run(call(tmp_path / "whole", 1), check=True, capture_output=True)
    process = subprocess.Popen(call(tmp_path / "killed", 1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = tmp_path / "killed" / "rows.jsonl"
    for _ in range(12000):  # two minutes, on a busy machine
        time.sleep(0.01)
        if rows.exists() and rows.read_bytes().count(b"\n") > 40:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = rows.read_bytes()
    assert 40 < done.count(b"\n") < 120 and not (tmp_path / "killed" / "summary.json").exists()
    rows.write_bytes(done + done[:77])  # and a line that was torn
    subprocess.run(call(tmp_path / "killed", 1), check=True, capture_output=True)
    whole, killed = (sorted((tmp_path / name / "rows.jsonl").read_text().splitlines()) for name in ("whole", "killed"))
    assert whole == killed and len(whole) == 12 * 2 * 5
    assert rows.read_bytes().startswith(done)
    for name in ("summary.json", "table.csv", "table.md"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    for path in (tmp_path / "whole" / "audio").rglob("*.flac"):
        other = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        assert (soundfile.read(path)[0] == soundfile.read(other)[0]).all()
