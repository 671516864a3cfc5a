"""Everything a user can get wrong: status 2, one sentence that names the thing, no traceback, nothing left behind."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture
def refused(senone, tmp_path):
    """Call senone in the hope of one sentence with these parts in it."""

    def call(*words: str | Path, says: tuple[str, ...], stdin: bytes = b"", left: bool = False) -> None:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = senone(*words, stdin=stdin)
        assert code == 2 and not out, err
        assert err.startswith("senone: ") and err.count("\n") == 1 and "Traceback" not in err
        assert all(part in err for part in says), err
        assert left or sorted(tmp_path.rglob("*")) == before

    return call


@pytest.fixture
def codes(senone, model, recording, tmp_path) -> Path:
    assert senone("encode", recording, "-o", tmp_path / "x.sno", "-m", model).code == 0
    return tmp_path / "x.sno"


def _sound(path: Path, *samples: float) -> Path:
    soundfile.write(path, np.array(samples, np.float32), 8000, subtype="FLOAT")
    return path


def test_missing_file(refused, model, tmp_path):
    for verb in (("encode", "no.wav", "-o", tmp_path / "x.sno"), ("resynth", "no.wav", tmp_path / "x.wav")):
        refused(*verb, "-m", model, says=("no.wav", "No such file"))
    refused("decode", "no.sno", "-o", tmp_path / "x.wav", "-m", model, says=("no.sno", "No such file"))
    refused("info", "no.sno", says=("no.sno", "No such file"))
    refused("manifest", "nowhere", "-o", tmp_path / "x.jsonl", says=("nowhere", "is not a folder"))


def test_empty_file(refused, model, tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "empty.sno").touch()
    refused("encode", tmp_path / "empty.wav", "-o", tmp_path / "x.sno", "-m", model, says=("empty.wav is empty",))
    refused("encode", "-", "-o", tmp_path / "x.sno", "-m", model, says=("standard input is empty",))
    refused("decode", tmp_path / "empty.sno", "-o", tmp_path / "x.wav", "-m", model, says=("empty.sno is empty",))
    refused("decode", "-", "-o", tmp_path / "x.wav", "-m", model, says=("standard input is empty",))


def test_text_renamed(refused, model, tmp_path):
    for name in ("text.wav", "text.sno"):
        (tmp_path / name).write_text("no sound at all, whatever the name says")
    refused("encode", tmp_path / "text.wav", "-o", tmp_path / "x.sno", "-m", model, says=("text.wav is not audio",))
    refused("decode", tmp_path / "text.sno", "-o", tmp_path / "x.wav", "-m", model, says=("text.sno is not a .sno",))


def test_zero_samples(refused, model, tmp_path):
    source = _sound(tmp_path / "none.wav")
    refused("encode", source, "-o", tmp_path / "x.sno", "-m", model, says=("none.wav holds no samples",))
    refused("resynth", source, tmp_path / "x.wav", "-m", model, says=("none.wav holds no samples",))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(refused, model, tmp_path, bad):
    late = _sound(tmp_path / "late.wav", *[0.1] * 100_000, bad)  # found when half of the output is written
    refused("encode", late, "-o", tmp_path / "x.sno", "-m", model, says=("late.wav holds NaN or infinite",))
    refused("resynth", late, tmp_path / "x.wav", "-m", model, says=("late.wav holds NaN or infinite",))


def test_unknown_model(refused, recording, tmp_path):
    hint = ("unknown model 'soundstream-16'", "did you mean 'soundstream-16k'?")
    refused("encode", recording, "-o", tmp_path / "x.sno", "-m", "soundstream-16", says=hint)
    refused("info", "soundstream-16", says=hint)
    refused("check", "soundstream-16", says=hint)
    refused("train", "soundstreem", "data=x", says=("unknown system 'soundstreem'", "did you mean 'soundstream'?"))
    refused("check", "mine.py:Codec", says=("mine.py does not exist",))


def test_wrong_levels(refused, model, recording, tmp_path):
    words = ("encode", recording, "-o", tmp_path / "x.sno", "-m", model)
    for levels in (0, 4, -1):
        refused(*words, f"--levels={levels}", says=("levels must be 1 to 3", f"got {levels}"))
    refused(*words, "--kbps", 0.1, says=("0.1 kb/s is not enough",))
    refused(*words, "--kbps", 1, "--levels", 1, says=("--levels or --kbps",))


def test_codes_of_another_model(refused, models, codes, tmp_path):
    other = models / "b"
    refused("decode", codes, "-o", tmp_path / "x.wav", "-m", other, says=("x.sno is of another model", "fingerprint"))


def test_truncated_codes_are_decoded_as_far_as_they_go(refused, model, codes, tmp_path):
    whole = codes.read_bytes()
    codes.write_bytes(whole[: len(whole) // 2])
    words = ("decode", codes, "-o", tmp_path / "x.wav", "-m", model)
    lost = ("x.sno is cut off in block 2", "first 2.00 s are whole", "what followed is lost")
    refused(*words, says=lost, left=True)
    assert soundfile.info(tmp_path / "x.wav").duration == 2.0
    (tmp_path / "x.wav").unlink()
    codes.write_bytes(whole[:50])
    refused(*words, says=("x.sno is cut off in block 1", "nothing of it is whole"))


def test_info_of_truncated_codes_says_so(senone, codes):
    codes.write_bytes(codes.read_bytes()[:-3])
    code, out, err = senone("info", codes)
    assert code == 2 and b"32000 samples, 4.00 s" in out and "cut off in block 3" in err


def test_unwritable_output(refused, model, recording, codes, tmp_path):
    (tmp_path / "folder.sno").mkdir()
    (tmp_path / "folder.wav").mkdir()
    for place, reason in (("no/x", "No such file"), ("folder", "Is a directory")):
        for words, suffix in ((("encode", recording), ".sno"), (("decode", codes), ".wav")):
            out = tmp_path / f"{place}{suffix}"
            refused(*words, "-o", out, "-m", model, says=(f"cannot write {out}", reason))
    refused("decode", codes, "-o", tmp_path / "x.doc", "-m", model, says=("x.doc", "unknown audio suffix '.doc'"))
    refused("manifest", recording.parent, "-o", tmp_path / "no/x.jsonl", says=("cannot write", "no/x.jsonl"))


def test_full_disk(refused, model, recording, codes, tmp_path, monkeypatch):
    if Path("/dev/full").exists():
        refused("encode", recording, "-o", "/dev/full", "-m", model, says=("cannot write /dev/full: No space left",))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    refused("decode", codes, "-o", tmp_path / "x.wav", "-m", model, says=("x.wav: No space left on device",))
    monkeypatch.setattr("os.replace", full)
    refused("encode", recording, "-o", tmp_path / "y.sno", "-m", model, says=("y.sno: No space left on device",))


def test_unknown_config_key(refused, model, recording, tmp_path):
    shutil.copytree(model, tmp_path / "odd")
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"levelz": 3}))
    hint = ("unknown config key", "levelz'; did you mean 'levels'?")
    words = ("encode", recording, "-o", tmp_path / "x.sno", "-m", tmp_path / "odd")
    refused(*words, says=("config.json", *hint))
    refused("train", "soundstream", f"data={recording.parent}", "model.levelz=4", "-o", tmp_path / "run", says=hint)


def test_a_model_that_cannot_denoise(refused, recording, tmp_path):
    mine = Path(__file__).parents[2] / "examples" / "mycodec.py"
    words = ("resynth", recording, tmp_path / "x.wav", "-m", f"{mine}:MyCodec", "--denoise")
    refused(*words, says=("MyCodec takes no condition 'denoise'",))


def test_usage(senone):
    for words in (("encode",), ("encode", "x.wav"), ("fly",), ("encode", "x.wav", "-o", "y", "--levels", "two")):
        code, _, err = senone(*words)
        assert code == 2 and "Usage: senone" in err and "Traceback" not in err
