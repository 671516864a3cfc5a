"""The arithmetic behind the tables of benchmarks/, and known answers of the metrics where their packages are here."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

ABSENT = "the metric packages are not installed: benchmarks/requirements.txt"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def voice(seconds: float = 3.0, seed: int = 0) -> np.ndarray:
    """Something like speech: a buzz of moving pitch and loudness, with pauses."""
    time_ = np.arange(round(seconds * 16000)) / 16000
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(3 * time_)) / 16000
    buzz = sum(np.sin(k * phase) / k for k in range(1, 30))
    noise = np.random.default_rng(seed).standard_normal(len(time_))
    return (0.05 * (buzz + 0.1 * noise) * np.clip(np.sin(2 * np.pi * 1.3 * time_), 0, 1)).astype(np.float32)


def rows(pairs, system="a", speakers=None):
    from codec_quality import Row

    speakers = speakers or [f"s{i}" for i in range(len(pairs))]
    return [
        Row(f"u{i}", speakers[i], system, system, "wer", "1", value, weight) for i, (value, weight) in enumerate(pairs)
    ]


def test_word_error_rate_is_of_the_corpus_not_the_mean_of_utterances():
    from codec_quality import summary

    score = summary(rows([(1, 2), (1, 3)]))  # .4 of the corpus; the mean of 1/2 and 1/3 is .41667
    assert score is not None and score[0] == pytest.approx(0.4) and score[3] == 2


def test_what_does_not_apply_enters_no_mean():
    from codec_quality import Row, summary

    missing = Row("u9", "s9", "a", "a", "wer", "1", None, None, "silence")
    assert summary([*rows([(1, 2), (1, 3)]), missing]) == summary(rows([(1, 2), (1, 3)]))
    assert summary([missing]) is None


def test_interval_covers_the_truth_and_is_the_same_twice():
    from codec_quality import interval

    draw, hits = np.random.default_rng(1), 0
    values, groups = draw.standard_normal(40), [str(i) for i in range(40)]
    first = interval(values, np.ones(40), groups)
    for _ in range(100):
        low, high = interval(draw.standard_normal(40), np.ones(40), groups)
        hits += low <= 0 <= high
    assert 87 <= hits < 100
    assert interval(values, np.ones(40), groups) == first


def test_interval_draws_whole_speakers():
    from codec_quality import interval

    values, speakers = np.repeat([0.0, 1.0, 2.0, 3.0], 25), np.repeat(list("abcd"), 25).tolist()
    alone = interval(values, np.ones(100), [str(i) for i in range(100)])
    together = interval(values, np.ones(100), speakers)
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


def test_differences_are_paired():
    from codec_quality import summary

    hard = np.random.default_rng(0).standard_normal(30) * 5
    a, b = rows([(x + 0.1, 1) for x in hard]), rows([(x, 1) for x in hard], "b")[:20]
    score, mine = summary(a, b), summary(a)
    assert score is not None and mine is not None
    assert score[:3] == pytest.approx((0.1, 0.1, 0.1)) and score[3] == 20 and mine[2] - mine[1] > 1


def test_si_sdr_knows_its_answers():
    from metrics import NotApplicable, sisdr

    draw = np.random.default_rng(0)
    clean = draw.standard_normal(16000)
    noise = draw.standard_normal(16000)
    clean, noise = clean - clean.mean(), noise - noise.mean()
    noise -= clean * (noise @ clean) / (clean @ clean)
    noise *= np.sqrt((clean @ clean) / (noise @ noise))
    for gain in (0.1, 1.0, -2.0):
        assert sisdr(clean, gain * (clean + noise / 10) + 0.3, "")[0] == pytest.approx(20)
    with pytest.raises(NotApplicable):
        sisdr(clean, clean, "")


def test_child_survives_a_crash_and_a_hang():
    from metrics import Child, NotApplicable

    child = Child()
    with pytest.raises(NotApplicable, match="crashed"):
        child(os._exit, 3, seconds=30)
    assert child(abs, -3.0, seconds=30) == 3.0
    with pytest.raises(NotApplicable, match="too slow"):
        child(time.sleep, 60, seconds=0.2)
    with pytest.raises(NotApplicable, match="ValueError"):
        child(int, "x", seconds=30)
    child.process.kill()


def test_first_utterances_are_of_all_speakers(tmp_path):
    from codec_quality import read_data

    lines = [f'{speaker}{i}.flac\t{speaker}\t1.0\ta "quote\t-' for speaker in "abc" for i in range(3)]
    (tmp_path / "manifest.tsv").write_text("path\tspeaker\tseconds\ttext\tsplit\n" + "\n".join(lines) + "\n")
    data = read_data(tmp_path)
    assert [u.path[:2] for u in data] == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]
    assert data[0].text == 'a "quote'


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    import codec_quality

    (tmp_path / "data").mkdir()
    lines = ["path\tspeaker\tseconds\ttext\tsplit"]
    for i in range(3):
        soundfile.write(tmp_path / "data" / f"{i}.flac", voice(1.0, seed=i), 16000)
        lines.append(f"{i}.flac\ts{i}\t1.0\thello\ttest")
    (tmp_path / "data" / "manifest.tsv").write_text("\n".join(lines) + "\n")

    def run(*more):
        command = ["x", "identity", "--data", f"{tmp_path}/data", "--out", f"{tmp_path}/run", "--jobs", "1"]
        monkeypatch.setattr(sys, "argv", [*command, "--metrics", "sisdr", *more])
        codec_quality.main()
        return (tmp_path / "run" / "scores.jsonl").read_text()

    run("--limit", "2")
    file = tmp_path / "run" / "scores.jsonl"
    whole = file.read_text().splitlines()
    assert {json.loads(line)["metric"] for line in whole} == {"kbps", "sisdr"} and len(whole) == 4
    file.write_text("\n".join(whole)[:-9])  # the last line torn off
    after = [json.loads(line) for line in run().splitlines() if line.endswith("}")]
    assert len(after) == 6 and len({(row["utterance"], row["metric"]) for row in after}) == 6
    assert "| identity | 256.00 | 256.00 " in (tmp_path / "run" / "table.md").read_text()
    assert run() == file.read_text()


def test_unknown_systems_are_named():
    from peers import PeerError, system

    with pytest.raises(PeerError, match="6.7"):
        system("amrwb:6.7")
    with pytest.raises(PeerError, match="3.2, 6, 9.2"):
        system("lyra:7")


def test_a_model_of_ours_is_a_system(tmp_path):
    import torch
    from peers import system

    from senone.models.soundstream import Config, SoundStream

    torch.manual_seed(0)
    small = Config(16000, encoder_filters=2, decoder_filters=2, dim=8, levels=3, size=16)
    SoundStream(small).save_pretrained(tmp_path / "model")
    two, three = (system(f"{tmp_path}/model{end}") for end in ("@2", ""))
    wave = voice(0.5)[:7777]
    decoded, bits = two.code(wave)
    assert decoded.shape == wave.shape and two.kbps == pytest.approx(0.4)
    assert 25 * 2 * 4 < bits < 25 * 2 * 4 + 8 * 100  # of the file: codes, header and checksums
    assert three.code(wave)[1] == bits + 25 * 4 + 4 and two.fingerprint != three.fingerprint  # in whole bytes


def test_mixtures_have_the_ratio_asked_for(tmp_path):
    from codec_quality import Utterance
    from denoise import mixtures

    soundfile.write(tmp_path / "a.flac", voice(), 16000)
    soundfile.write(tmp_path / "n.flac", np.random.default_rng(0).standard_normal(9000) * 0.1, 16000)
    (tmp_path / "manifest.tsv").write_text("path\tspeaker\tseconds\ttext\tsplit\nn.flac\train\t1\t\tdev\n")
    utterance = Utterance("a.flac", "s", 3.0, "")
    for _, clean, noisy in mixtures([utterance], tmp_path, tmp_path, "dev", 5.0):
        ratio = np.square(clean).sum() / np.square(noisy - clean).sum()
        assert 10 * np.log10(ratio) == pytest.approx(5, abs=1e-3) and np.abs(noisy).max() < 1


def test_identity_has_the_known_scores():
    pytest.importorskip("pesq", reason=ABSENT)
    pytest.importorskip("pystoi", reason=ABSENT)
    from metrics import child, pesq, stoi

    wave = voice()
    assert pesq(wave, wave, "")[0] == pytest.approx(4.6438885, abs=1e-5)
    assert stoi(wave, wave, "")[0] == pytest.approx(1, abs=1e-9)
    child.process.kill()


def test_words_are_counted_in_normal_form(monkeypatch):
    pytest.importorskip("jiwer", reason=ABSENT)
    pytest.importorskip("whisper_normalizer", reason=ABSENT)
    import asr
    import metrics

    class Hears:
        def transcribe(self, wave):
            return "Doctor Smith's color, um, IS twenty one."

    monkeypatch.setattr(asr, "moonshine", lambda folder: Hears())
    wave = voice(1.0)
    assert metrics.wer(wave, wave, "dr smith is colour was 21") == (1.0, 6.0)
