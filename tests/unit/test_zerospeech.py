"""sWUGGY and sBLIMP: answers worked out by hand, in the official folders' form; stand-ins that say what they are."""

import csv
import math
import random
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
import torch

from senone import Audio
from senone.eval.standins import build, count, nonwords, phones
from senone.eval.units import EvalError
from senone.eval.zerospeech import (
    Judged,
    Share,
    files,
    judge,
    read_gold,
    score,
    synthetic,
    tokens_of,
    write_scores,
)
from senone.lm import LanguageModel, LMError
from senone.models.bigram import Bigram
from senone.models.units import MFCC, Units

LEXICAL = "filename,id,voice,frequency,word,phones,length,correct".split(",")
SYNTACTIC = "filename,id,voice,type,subtype,transcription,correct".split(",")
# id -> (count, length), and what each voice says of word and non-word; by hand: 3/4, 1/2, 1, 1/8
WORDS = {
    "1": (0, 4, [(2, 1), (2, 1), (2, 1), (1, 2)]),
    "2": (1, 4, [(1, 1), (1, 1), (1, 1), (1, 1)]),
    "3": (5, 5, [(0, -1), (-1, -2), (3, 2), (0.5, 0)]),
    "4": (100, 5, [(0, 1), (0, 1), (0, 1), (1, 1)]),
}


def gold(folder, columns, rows, shuffle=0):
    folder.mkdir(parents=True, exist_ok=True)
    random.Random(shuffle).shuffle(rows)
    with open(folder / "gold.csv", "w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    for row in rows:
        (folder / f"{row['filename']}.wav").touch()
    return folder


def words(folder, shuffle=0):
    """The folder, and the score of each of its files."""
    rows, scores = [], {}
    for key, (frequency, length, voices) in WORDS.items():
        for voice, both in zip("ABCD", voices, strict=True):
            for correct, value in zip((1, 0), both, strict=True):
                name = f"w{key}{voice}{correct}"
                # of a non-word, neither count nor length is known to matter
                about = {"frequency": frequency if correct else "", "length": length if correct else 99}
                about |= {"word": "x", "phones": "X", "id": key, "voice": voice, "correct": correct}
                rows.append(about | {"filename": name})
                scores[folder / f"{name}.wav"] = value
    return gold(folder, LEXICAL, rows, shuffle), scores


@pytest.mark.parametrize("shuffle", range(3))
def test_words_by_hand(tmp_path, shuffle):
    """Voices are averaged first, a tie is a half, and the order of the rows means nothing."""
    folder, scores = words(tmp_path / "dev", shuffle)
    pairs = read_gold(folder)
    got = judge(pairs, scores)
    assert len(pairs) == 4 and len(files(pairs)) == 32
    assert got.all.value == pytest.approx((0.75 + 0.5 + 1 + 0.125) / 4) and got.all.count == 4
    assert got.invocab is not None and got.invocab.value == pytest.approx((0.5 + 1 + 0.125) / 3)
    assert {name: (one.value, one.count) for name, one in got.groups.items()} == {
        "oov": (0.75, 1), "1-5": (0.5, 1), "6-20": (1.0, 1), ">100": (0.125, 1)
    }  # fmt: skip
    assert list(got.groups) == ["oov", "1-5", "6-20", ">100"]
    assert {n: one.value for n, one in got.lengths.items()} == {4: 0.625, 5: 0.5625}
    assert got.all.low <= got.all.value <= got.all.high and judge(pairs, scores) == got


def sentences(folder, ids=("1", "2")):
    """Two types with the same ids: a pair is of type, subtype and id."""
    rows, scores = [], {}
    for kind, good in (("agreement", 1.0), ("island", -1.0)):
        for key, voice, correct in ((key, voice, c) for key in ids for voice in "AB" for c in (1, 0)):
            name = f"{kind}{key}{voice}{correct}"
            rows.append(dict(zip(SYNTACTIC, (name, key, voice, kind, "s", "text", correct), strict=True)))
            scores[folder / f"{name}.wav"] = good * correct * (key == "1" or voice == "A")
    return gold(folder, SYNTACTIC, rows, 5), scores


def test_sentences_by_hand(tmp_path):
    folder, scores = sentences(tmp_path / "dev")
    got = judge(read_gold(folder), scores)
    # agreement: 1, and 1 and a tie; island: 0, and 0 and a tie
    assert {name: (one.value, one.count) for name, one in got.groups.items()} == {
        "agreement": (0.875, 2), "island": (0.125, 2)
    }  # fmt: skip
    assert got.all.value == 0.5 and got.invocab is None and not got.lengths


def test_words_without_a_count_are_in_no_band(tmp_path):
    folder, scores = words(tmp_path / "test")
    text = (folder / "gold.csv").read_text().splitlines()
    rows = [line.split(",") for line in text]
    (folder / "gold.csv").write_text(
        "\n".join(",".join([*row[:3], "" if k else row[3], *row[4:]]) for k, row in enumerate(rows))
    )
    got = judge(read_gold(folder), scores)
    assert got.all.value == pytest.approx(0.59375) and got.invocab is None and not got.groups and got.lengths


def test_the_interval_is_of_pairs(tmp_path):
    """Not of their voices: four pairs are as uncertain as four numbers, here those of the words by hand."""
    folder, scores = words(tmp_path / "dev")
    got = judge(read_gold(folder), scores).all
    by_hand = np.random.default_rng(1).choice([0.75, 0.5, 1, 0.125], (20000, 4)).mean(1)
    assert (got.low, got.high) == pytest.approx(np.percentile(by_hand, (2.5, 97.5)), abs=0.02)


@dataclass(frozen=True)
class NoConfig:
    pass


class Even(LanguageModel):
    """Every token is as likely as any other."""

    Config, model_type, vocab = NoConfig, "test_even", 8

    def forward(self, tokens, cache=None):
        return torch.zeros(*tokens.shape, 8), cache


@pytest.fixture
def speech(tmp_path):
    """Hums of one, two and three pieces, and units that hear the pieces."""
    torch.manual_seed(0)
    t = torch.arange(4000) / 16000
    tones = [torch.sin(2 * torch.pi * f * t) for f in (200, 700, 2500)]
    paths = []
    for k in range(1, 4):
        paths.append(tmp_path / f"{k}.wav")
        Audio(0.3 * torch.cat(tones[:k])[None] + 0.001 * torch.randn(1, 4000 * k), 16000).save(paths[-1])
    units = Units.of(MFCC(), 8)
    units.quantizer.centroids.copy_(units.analyse(Audio.read(paths[2]).wave[None])[0][0].T[::9][:8])
    return paths, units


def test_longer_is_worse_unless_it_is_the_mean(speech):
    paths, units = speech
    total, mean = (score(Even(), units, paths, norm=norm, collapse=False) for norm in ("sum", "mean"))
    assert [total[path] for path in paths] == pytest.approx([-math.log(8) * (25 * k - 1) for k in (1, 2, 3)])
    assert [mean[path] for path in paths] == pytest.approx([-math.log(8)] * 3)


def test_scores_are_of_the_tokens_without_their_runs(speech):
    paths, units = speech
    heard = []
    tokens = [tokens_of(units, Audio.read(path)) for path in paths]
    assert all(bool((row[1:] != row[:-1]).all()) for row in tokens) and len(tokens[2]) < 75
    assert len(tokens_of(units, Audio.read(paths[2]), collapse=False)) == 75
    model = Bigram.of([row.tolist() for row in tokens], 8)
    got = score(model, units, paths, norm="sum", heard=heard.append)
    want = [sum(float(model.table[a, b]) for a, b in zip(row, row[1:], strict=False)) for row in tokens]
    assert list(got.values()) == pytest.approx(want, abs=1e-5) and heard == [0.25, 0.5, 0.75]


def test_what_cannot_be_scored_is_named(speech, tmp_path):
    paths, units = speech
    with pytest.raises(LMError, match="for a vocabulary of 2"):
        score(Bigram.of([[0, 1]], 2), units, paths)
    with pytest.raises(EvalError, match="norm must be one of"):
        score(Even(), units, paths, norm="max")
    Audio(torch.zeros(1, 100), 16000).save(tmp_path / "short.wav")
    with pytest.raises(EvalError, match="short.wav is of 1 tokens: too few to score"):
        score(Even(), units, [tmp_path / "short.wav"])


def test_gold_that_is_wrong_is_refused(tmp_path):
    def refused(change, says, write=True):
        folder, _ = words(tmp_path / "dev")
        lines = (folder / "gold.csv").read_text().splitlines()
        (folder / "gold.csv").write_text("\n".join(change(lines)))
        with pytest.raises(EvalError, match=says):
            read_gold(folder)
        shutil.rmtree(folder)

    refused(lambda lines: lines[:-1], "has no twin")
    refused(lambda lines: [*lines, lines[-1]], "is there twice")
    refused(lambda lines: lines[:1], "has no rows")
    refused(lambda lines: [lines[0].replace("voice", "vioce"), *lines[1:]], "has no column 'voice'")
    refused(lambda lines: [lines[0], lines[1][:-1] + "2"], "line 2: correct must be 0 or 1, got '2'")
    refused(lambda lines: [line.replace("w1A1", "gone") for line in lines], "gone.wav does not exist: gold.csv has it")
    with pytest.raises(EvalError, match="gold.csv: No such file"):
        read_gold(tmp_path)


def test_scores_that_are_missing_are_named(tmp_path):
    folder, scores = words(tmp_path / "dev")
    pairs = read_gold(folder)
    for wrong in ({**scores, folder / "w3B0.wav": math.nan}, {k: v for k, v in scores.items() if k.name != "w3B0.wav"}):
        with pytest.raises(EvalError, match="w3B0.wav has no score"):
            judge(pairs, wrong)


def test_scores_are_written_as_the_official_program_takes_them(tmp_path):
    folder, scores = words(tmp_path / "dev")
    write_scores(tmp_path / "lexical" / "dev.txt", {path: value / 3 for path, value in scores.items()})
    lines = [line.split(" ") for line in (tmp_path / "lexical" / "dev.txt").read_text().splitlines()]
    assert {name: float(value) for name, value in lines} == {path.stem: value / 3 for path, value in scores.items()}
    assert isinstance(judge(read_gold(folder), scores).all, Share) and not list(tmp_path.rglob("*.part"))


TEXTS = ["The stranger walked along the narrow street.", "Strangers talked among the wooden planks", "a planet drank"]


def test_words_are_counted_in_lower_case():
    assert count(["The war. THE end", "end"]) == {"the": 2, "war": 1, "end": 2}


@pytest.fixture
def espeak():
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")


def test_non_words_are_one_phone_from_a_word_and_no_word(espeak):
    lexicon = phones(sorted(count(TEXTS)))
    assert lexicon["the"][0] == "D" and len(lexicon) == len(count(TEXTS))
    twins = nonwords(list(lexicon), lexicon, np.random.default_rng(0))
    assert len(twins) > 3 and not set(twins.values()) & set(lexicon.values())
    together = {pair for said in lexicon.values() for pair in zip(said, said[1:], strict=False)}
    for word, twin in twins.items():
        assert sum(a != b for a, b in zip(lexicon[word], twin, strict=True)) == 1
        assert set(zip(twin, twin[1:], strict=False)) <= together


def test_stand_ins_are_read_like_the_official_folders_and_are_labelled(espeak, tmp_path):
    told = []
    folder = build(tmp_path / "set", count(TEXTS), pairs=4, done=told.append)
    assert len(told) == 2 * 4 * 2 * 4 and "not comparable" in (folder / "SYNTHETIC").read_text()
    for name in ("lexical", "syntactic"):
        pairs = read_gold(folder / name / "dev")
        assert len(pairs) == 4 and all(set(pair.files) == set("ABCD") for pair in pairs)
        for right, wrong in pairs[0].files.values():
            a, b = soundfile.read(right)[0], soundfile.read(wrong)[0]
            assert len(a) > 4000 and (len(a) != len(b) or not np.array_equal(a, b))
        assert synthetic(folder / name / "dev")
        got = judge(pairs, {path: float(len(path.name)) for path in files(pairs)})
        assert isinstance(got, Judged) and got.all.value == 0.5
    words_, sentences_ = (read_gold(folder / name / "dev") for name in ("lexical", "syntactic"))
    assert all(pair.group == "1-5" and pair.length for pair in words_)
    assert {pair.group for pair in sentences_} == {"subject_verb", "determiner_noun", "anaphor"}
    with pytest.raises(EvalError, match="is there already"):
        build(folder, count(TEXTS))
    with pytest.raises(EvalError, match="100 pairs need more words"):
        build(tmp_path / "other", count(TEXTS))
    assert [path.name for path in tmp_path.iterdir()] == ["set"] and not synthetic(tmp_path)


def test_without_espeak_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EvalError, match="espeak-ng is not installed: apt-get install espeak-ng"):
        build(tmp_path / "set", count(TEXTS))
    assert not list(tmp_path.iterdir())
