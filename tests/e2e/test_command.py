"""The command in processes of its own: start, pipes, interruption, memory."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch

from senone.audio import Audio
from senone.hub import user_class

SENONE = [sys.executable, "-m", "senone"]
VERBS = ["encode", "decode", "resynth", "info", "check", "train", "manifest"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A codec of a user's own, at 8 kHz."""
    source = f"{Path(__file__).parents[2] / 'examples' / 'mycodec.py'}:MyCodec"
    kind = user_class(source)
    folder = tmp_path_factory.mktemp("model")
    kind(kind.Config(sample_rate=8000, dim=8)).save_pretrained(folder)
    return f"{source}@{folder}"


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "in.wav"
    Audio(0.1 * torch.randn(1, 16000 * 5 + 7), 16000).save(path)
    return path


def test_help_answers_at_once_and_imports_no_torch():
    script = "import sys; from senone import cli\ntry: cli.main()\nfinally: print({'torch', 'numpy'} & {*sys.modules})"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(verb in done.stdout for verb in VERBS) and done.stdout.endswith("set()\n") and not done.stderr
    # processor time: how long it waited for its turn is not ours
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7


def test_a_pipeline_of_processes_gives_what_resynth_gives(model, recording, tmp_path):
    senone = f"'{sys.executable}' -m senone"
    line = f"cat {recording} | {senone} encode - -o - -m {model} | {senone} decode - -o - -m {model} > piped.wav"
    subprocess.run(["bash", "-c", f"set -eo pipefail; {line}"], cwd=tmp_path, check=True, timeout=300)
    subprocess.run([*SENONE, "resynth", recording, "file.wav", "-m", model], cwd=tmp_path, check=True)
    piped, _ = soundfile.read(tmp_path / "piped.wav", dtype="int16")
    file, _ = soundfile.read(tmp_path / "file.wav", dtype="int16")
    assert len(file) == 40004 and (piped == file).all()  # 80,007 samples at half the rate


def test_a_closed_pipe_is_quiet(model, recording, tmp_path):
    process = subprocess.Popen(
        [*SENONE, "resynth", recording, "-", "-m", model], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(300) == 1 and process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_interrupted_it_leaves_nothing(model, tmp_path):
    process = subprocess.Popen(
        [*SENONE, "encode", "-", "-o", tmp_path / "x.sno", "-m", model],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's job in the background ignores it
    )
    assert process.stdin is not None and process.stderr is not None
    began = time.monotonic()
    while not (tmp_path / ".x.sno.part").exists() and time.monotonic() - began < 300:
        time.sleep(0.05)  # it has begun, and waits for sound
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130 and b"Traceback" not in process.stderr.read()
    process.stdin.close()
    process.stderr.close()
    assert not list(tmp_path.iterdir())


MEMORY = """
import resource, sys
from senone import cli

model, *sources = sys.argv[1:]
for source in sources:
    for words in (["encode", source, "-o", "x.sno"], ["decode", "x.sno", "-o", "x.wav"]):
        sys.argv = ["senone", *words, "-m", model]
        try:
            cli.main()
        except SystemExit as done:
            assert not done.code
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_duration(model, tmp_path):
    """Twelve minutes, which are 22 MB of samples here, cost less than half of that more than 20 seconds do."""
    for seconds, name in ((20, "short.wav"), (720, "long.wav")):
        Audio(0.1 * torch.randn(1, 8000 * seconds), 8000).save(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, model, "short.wav", "long.wav"], cwd=tmp_path, capture_output=True, text=True
    )
    short, long = (int(line) for line in done.stdout.split())
    assert soundfile.info(tmp_path / "x.wav").frames == 8000 * 720
    assert long - short < 11, done.stdout
