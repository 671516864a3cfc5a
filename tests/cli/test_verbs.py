"""What each verb does when all is well."""

import io
import json
import sys

import pytest
import soundfile

from senone.bitstream import read
from senone.codes import concat
from senone.testing import Law


def test_every_verb_has_examples(senone):
    for verb in ("encode", "decode", "resynth", "stream", "swap", "info", "check", "train", "manifest"):
        code, out, _ = senone(verb, "--help")
        assert code == 0 and f"senone {verb} " in out.decode().split("Examples:")[1]


def test_encode_takes_levels_or_a_bit_rate(senone, model, recording, tmp_path):
    out, kept = tmp_path / "x.sno", {}
    for words, levels in (((), 3), (("--levels", 2), 2), (("--kbps", 0.41), 2), (("--entropy",), 3)):
        assert senone("encode", recording, "-o", out, "-m", model, *words) == (0, b"", "")
        with read(out) as reader:
            kept[words] = concat(list(reader))
            assert reader.levels == levels and reader.samples == 40080 and reader.lost is None
    assert all(kept[()].data[:, : codes.data.shape[1]].equal(codes.data) for codes in kept.values())


def test_decode_gives_the_length_back_in_every_format(senone, model, recording, tmp_path):
    assert senone("encode", recording, "-o", tmp_path / "x.sno", "-m", model).code == 0
    for suffix in ("wav", "flac", "ogg"):
        assert senone("decode", tmp_path / "x.sno", "-o", tmp_path / f"x.{suffix}", "-m", model) == (0, b"", "")
        info = soundfile.info(tmp_path / f"x.{suffix}")
        assert (info.frames, info.samplerate, info.channels) == (40080, 8000, 1)


@pytest.mark.parametrize("words", [(), ("--entropy",), ("--levels", "2"), ("--kbps", "0.2")])
def test_encode_then_decode_is_resynth_bit_for_bit(senone, model, recording, tmp_path, words):
    assert senone("encode", recording, "-o", tmp_path / "x.sno", "-m", model, *words).code == 0
    assert senone("decode", tmp_path / "x.sno", "-o", tmp_path / "x.wav", "-m", model).code == 0
    rates = () if words == ("--entropy",) else words
    assert senone("resynth", recording, tmp_path / "y.wav", "-m", model, *rates).code == 0
    assert (tmp_path / "x.wav").read_bytes() == (tmp_path / "y.wav").read_bytes()


def test_pipes_carry_what_files_carry(senone, model, recording, tmp_path):
    assert senone("encode", recording, "-o", tmp_path / "x.sno", "-m", model).code == 0
    assert senone("decode", tmp_path / "x.sno", "-o", tmp_path / "x.wav", "-m", model).code == 0
    code, codes, _ = senone("encode", "-", "-o", "-", "-m", model, stdin=recording.read_bytes())
    assert code == 0 and codes == (tmp_path / "x.sno").read_bytes()
    _, wave, _ = senone("decode", "-", "-o", "-", "-m", model, stdin=codes)
    assert wave[44:] == (tmp_path / "x.wav").read_bytes()[44:] and len(wave) == 44 + 2 * 40080
    assert senone("resynth", "-", "-", "-m", model, stdin=recording.read_bytes()).out == wave
    assert senone("encode", "-", "-o", "-", "-m", model, stdin=wave).code == 0  # its endless header is read as well


def test_denoise_reaches_the_model(senone, model, recording, tmp_path, monkeypatch):
    from senone.models.soundstream import SoundStream

    flags, analyse = set(), SoundStream.analyse
    monkeypatch.setattr(
        SoundStream,
        "analyse",
        lambda self, wave, state=None, denoise=False: (flags.add(denoise), analyse(self, wave, state, denoise))[1],
    )
    assert senone("resynth", recording, tmp_path / "x.wav", "-m", model, "--denoise").code == 0
    assert flags == {True}
    assert senone("resynth", recording, tmp_path / "x.wav", "-m", model).code == 0
    assert flags == {True, False}


def test_info_of_a_model_and_of_a_file(senone, model, recording, tmp_path):
    code, out, _ = senone("info", model)
    facts = dict(line.split(maxsplit=1) for line in out.decode().splitlines())
    assert code == 0 and facts["latency"].startswith("20 ms") and facts["frames"].startswith("50 a second")
    assert "--levels 2   0.4 kb/s" in out.decode()
    assert senone("encode", recording, "-o", tmp_path / "x.sno", "-m", model, "--levels", 2).code == 0
    data = (tmp_path / "x.sno").read_bytes()
    for words, stdin in (((tmp_path / "x.sno",), b""), (("-",), data)):
        code, out, _ = senone("info", *words, stdin=stdin)
        assert code == 0 and facts["fingerprint"] in out.decode()
        for part in ("2 of 3 levels, packed, 3 blocks", "40080 samples, 5.01 s", f"{len(data)} bytes"):
            assert part in out.decode()


@pytest.mark.parametrize("ok", [True, False])
def test_check_prints_a_line_per_law(senone, model, monkeypatch, ok):
    lines = [Law("length", True, "12 lengths"), Law("batch", ok, "row 1 of\n lengths [1, 2]")]
    monkeypatch.setattr("senone.testing.laws", lambda tokenizer, hours: iter(lines))
    code, out, err = senone("check", model)
    assert code == (0 if ok else 1) and not err
    assert out.decode().splitlines() == [
        "ok     length     12 lengths",
        f"{'ok    ' if ok else 'BROKEN'} batch      row 1 of lengths [1, 2]",
    ]


def test_manifest_lists_a_folder(senone, recording, tmp_path):
    (recording.parent / "not.wav").write_text("sound")
    code, out, err = senone("manifest", recording.parent, "-o", tmp_path / "x.jsonl")
    (recording.parent / "not.wav").unlink()
    assert code == 0 and not out and "not.wav" in err and f"1 recordings in {tmp_path}" in err
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    assert str(recording) in line and json.loads(line)["duration"] == pytest.approx(5.01)


def test_train_passes_its_words_on(senone, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("senone.train.run", lambda *words: seen.append(words) or words[2] / "model")
    code, out, _ = senone("train", "soundstream", "data=x", "recipe=mini", "model.levels=4", "-o", tmp_path)
    assert code == 0 and out.decode() == f"{tmp_path / 'model'}\n"
    assert seen == [("soundstream", ["data=x", "recipe=mini", "model.levels=4"], tmp_path)]


def test_a_terminal_sees_progress(senone, model, recording, tmp_path, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert senone("resynth", recording, tmp_path / "x.wav", "-m", model).code == 0
    assert "resynth" in terminal.getvalue() and "s of sound" in terminal.getvalue()
