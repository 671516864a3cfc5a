"""senone eval units, slmtok, lm, standins: three hums that are phones and letters, from files to tables."""

import json
import shutil

import numpy as np
import pytest
import soundfile

TONES = {"A": 200, "B": 700, "C": 2500}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """18 recordings of two speakers, a manifest with text and splits, and alignments of all but the last of them."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    rows, phones = ["path\tspeaker\tseconds\ttext\tsplit"], ["utt\ttier\tstart\tend\tlabel"]
    for k in range(18):
        order = [*rng.permutation(list(TONES)), "A"]
        t = np.arange(6400) / 16000
        wave = np.concatenate([0.3 * np.sin(2 * np.pi * (TONES[x] + 3 * (k % 2)) * t) for x in order])
        soundfile.write(folder / f"u{k}.flac", wave + 0.003 * rng.standard_normal(len(wave)), 16000)
        split = "train" if k < 10 else "dev" if k < 14 else "test"
        rows.append(f"u{k}.flac\ts{k % 2}\t1.6\t{''.join(order)} AB\t{split}")
        if k < 17:
            phones += [f"u{k}\tphones\t{0.4 * n:.1f}\t{0.4 * (n + 1):.1f}\t{x}1" for n, x in enumerate(order)]
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    (folder / "phones.tsv").write_text("\n".join(phones) + "\n")
    (folder / "held_out.txt").write_text("# why\nu0 test\nu1 test\nu2 dev\n")
    return folder


@pytest.fixture
def mfcc(senone, clips, tmp_path):
    assert senone("kmeans", clips, "--encoder", "mfcc", "--clusters", 12, "-o", tmp_path / "mfcc").code == 0
    return tmp_path / "mfcc"


def table(out):
    """Lines of a label and a column a system."""
    head, *lines = out.decode().splitlines()
    cut = next(line for line in lines if line.startswith("utterances"))
    width = len(cut) - len(cut.removeprefix("utterances").lstrip())
    return {line[:width].strip(): line[width:].split() for line in lines}


def test_units_by_all_measures(senone, clips, mfcc, model, tmp_path):
    words = ("eval", "units", mfcc, model, "--data", clips, "--phones", clips / "phones.tsv", "--levels", 1)
    code, out, err = senone(*words, "--disturbed", 2, "-o", tmp_path / "x.json")
    assert code == 0, err
    assert "1 of 18 recordings have no alignment" in err
    told, facts = out.decode(), json.loads((tmp_path / "x.json").read_text())
    assert len(facts["utterances"]) == 17 and facts["command"].startswith("senone eval units")
    one, two = facts["systems"][str(mfcc)], facts["systems"][str(model)]
    assert one["quality"]["pnmi"] > 0.9 and one["quality"]["phones"] == two["quality"]["phones"] == 3
    assert one["early"] > 0.8 < one["late"] and one["abx"]["within"] < 0.1
    assert two["rates"]["bitrate"] == pytest.approx(50 * 4) and one["rates"]["token_rate"] == 100
    line = next(line.split() for line in told.splitlines() if line.startswith("PNMI  "))
    assert line[1:] == [f"{x['quality']['pnmi']:.3f}" for x in (one, two)]
    assert set(one["stability"]) == {"shift", "offset", "gain", "noise"} and "tokens changed %, -6 dB" in told


def test_only_some_of_them(senone, clips, mfcc):
    words = ("eval", "units", mfcc, "--data", clips, "--disturbed", 0)
    count = {}
    for more in ((), ("--only", clips / "held_out.txt"), ("--limit", 5)):
        out = senone(*words, *more).out.decode()
        count[len(more) and more[0]] = int(out.splitlines()[1].split()[1])
        assert "PNMI" not in out and "changed" not in out and "bits a second" in out
    assert count == {0: 18, "--only": 3, "--limit": 5}
    out = senone(*words, "--only", clips / "held_out.txt", "--use", "test").out.decode()
    assert int(out.splitlines()[1].split()[1]) == 2


SMALL = ("--steps", 4, "--width", 8, "--batch", 4, "--check", 2, "--pairs", 4, "--jobs", 0)


def test_slmtok_goes_on_where_it_stopped(senone, clips, mfcc, model, tmp_path):
    out = tmp_path / "run"
    parts = ("--train", clips, "--dev", clips, "--test", clips, "-o", out)
    words = (
        "eval",
        "slmtok",
        mfcc,
        model,
        *parts,
        *SMALL,
        "--levels",
        "1,1:2,2:3",
        "--metrics",
        "si_sdr",
        "--limit",
        3,
    )
    code, told, err = senone(*words)
    assert code == 0, err
    assert err.count("nats a character") == 8  # two looks at each of four probes
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.decode().splitlines()]
    assert [line[1] for line in lines[2:]] == ["-", "1", "1", "1:2", "2:3"] and lines[2][0] == "original"
    column = next(k for k, title in enumerate(lines[0]) if title.startswith("SI-SDR"))
    heard = ["-" if line[column] == "-" else "yes" for line in lines[2:]]
    assert lines[0][2] == "MI (nats/char)" and heard == ["yes", "-", "yes", "yes", "-"]
    assert (out / "slmtok.md").read_bytes() == told
    probes = json.loads((out / "slmtok.json").read_text())["probes"]
    assert [probe["utterances"] for probe in probes] == [{"train": 10, "dev": 4, "test": 4}] * 4
    found = probes[0]["alignment"]
    assert found["mi"]["utterances"] == 4 and found["mi"]["per_char"]["low"] <= found["mi"]["per_char"]["value"]
    assert probes[0]["settings"]["width"] == 8 and found["repeats"] == 1
    card = json.loads((out / "resynthesis" / "run.json").read_text())
    assert len(card["utterances"]) == 3 and [s["name"] for s in card["systems"]] == [
        "identity",
        f"{model}@1",
        f"{model}@2",
    ]
    again = senone(*words)
    assert again.code == 0 and again.out == told and "nats a character" not in again.err
    other = senone(*words, "--lr", "0.01", "--no-resynthesis")
    assert other.code == 0 and other.out != told and b"SI-SDR" not in other.out and "nats a character" in other.err


def test_probes_from_the_codebook(senone, clips, model, tmp_path):
    parts = ("--train", clips, "--dev", clips, "--test", clips, "-o", tmp_path / "run", "--no-resynthesis")
    code, out, err = senone("eval", "slmtok", model, *parts, *SMALL, "--codebook")
    assert code == 0 and out.count(b"\n") == 4, err
    facts = json.loads((tmp_path / "run" / "slmtok.json").read_text())["probes"]
    assert [one["levels"] for one in facts] == ["1", "1:3"] and facts[0]["settings"]["tables"] == "codebook"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two words and two sentences in one voice, the right ones of the tones in their order."""
    folder, rng = tmp_path_factory.mktemp("sLM21"), np.random.default_rng(1)
    for name, head, about in (
        ("lexical", "filename,id,voice,frequency,word,phones,length,correct", "v,7,w,W,3"),
        ("syntactic", "filename,id,voice,type,subtype,transcription,correct", "v,kind,s,text"),
    ):
        place = folder / name / "dev"
        place.mkdir(parents=True)
        rows = [head]
        for pair, (right, wrong) in enumerate((("ABC", "ACB"), ("BCA", "BAC"))):
            for correct, order in ((1, right), (0, wrong)):
                t = np.arange(3200) / 16000
                wave = np.concatenate([0.3 * np.sin(2 * np.pi * TONES[x] * t) for x in order])
                file = place / f"{pair}{correct}.wav"
                soundfile.write(file, wave + 0.003 * rng.standard_normal(len(wave)), 16000)
                rows.append(f"{pair}{correct},{pair},{about},{correct}")
        (place / "gold.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_lm_scores_both_sets(senone, clips, mfcc, sets, tmp_path):
    words = ("eval", "lm", "bigram", "--units", mfcc, "--train", clips, "-o", tmp_path / "lm")
    code, out, err = senone(*words, "--swuggy", sets / "lexical" / "dev", "--sblimp", sets / "syntactic" / "dev")
    assert code == 0, err
    told = out.decode()
    assert "swuggy, mean log-probability, 2 pairs\n" in told and "of 2" in told and "6-20" in told and "kind" in told
    facts = json.loads((tmp_path / "lm" / "lm.json").read_text())
    assert (
        facts["norm"] == "mean"
        and not facts["sets"]["swuggy"]["synthetic"]
        and facts["sets"]["sblimp"]["all"]["count"] == 2
    )
    lines = (tmp_path / "lm" / "swuggy.txt").read_text().splitlines()
    assert len(lines) == 4 and all(len(line.split(" ")) == 2 for line in lines)
    both = [
        senone(*words, "--swuggy", sets / "lexical" / "dev", *more).out for more in (("--norm", "sum"), ("--runs",))
    ]
    assert b"swuggy, sum log" in both[0] and b"of whole runs" in both[1]


def test_a_model_of_ones_own(senone, clips, mfcc, sets, tmp_path):
    """One that likes every token alike gives ties: 50 %."""
    (tmp_path / "even.py").write_text(
        "import torch\nfrom dataclasses import dataclass\nfrom senone import LanguageModel\n"
        "@dataclass(frozen=True)\nclass NoConfig:\n    pass\n"
        "class Even(LanguageModel):\n    Config, model_type, vocab = NoConfig, 'even', 12\n"
        "    def forward(self, tokens, cache=None):\n        return torch.zeros(*tokens.shape, 12), cache\n"
    )
    words = ("eval", "lm", f"{tmp_path}/even.py:Even", "--units", mfcc, "--swuggy", sets / "lexical" / "dev")
    code, out, err = senone(*words)
    assert code == 0, err
    assert "all                   50.0 % [50.0, 50.0] of 2" in out.decode()


def test_stand_ins_say_what_they_are(senone, clips, mfcc, tmp_path):
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    (tmp_path / "words.tsv").write_text(
        "path\tseconds\ttext\na.wav\t1\tThe stranger walked along the narrow street\n"
        "b.wav\t1\tStrangers talked among the wooden planks a planet drank\n"
    )
    code, _, err = senone("eval", "standins", tmp_path / "sets", "--text", tmp_path / "words.tsv", "--pairs", 3)
    assert code == 0 and "3 pairs of words and 3 of sentences, in 4 voices" in err
    words = ("eval", "lm", "bigram", "--units", mfcc, "--train", clips)
    code, out, err = senone(*words, "--swuggy", tmp_path / "sets" / "lexical" / "dev")
    assert code == 0 and b"3 pairs, synthetic stand-ins: not comparable with published figures" in out, err


def test_what_a_user_can_get_wrong(senone, clips, mfcc, model, sets, tmp_path):
    def refused(*words, says):
        code, out, err = senone("eval", *words)
        assert code == 2 and not out and err.count("\n") == 1 and says in err, err

    units = ("units", mfcc, "--data", clips)
    refused(*units, "--phones", tmp_path / "gone.tsv", says="gone.tsv: No such file")
    refused(*units, "--use", "test", says="--use is about the lines of --only")
    refused(*units, "--only", tmp_path / "gone.txt", says="gone.txt: No such file")
    refused(*units, "--only", clips / "held_out.txt", "--use", "train", says="is to be measured")
    refused(*units, "--abx", "waves", says="ABX is of one of")
    refused(*units, "--slicing", "new", says="sliced as one of")
    refused(*units, "--levels", 2, says="levels must be 1 to 1")
    refused("units", "mfc", "--data", clips, says="unknown model 'mfc'")
    parts = ("--train", clips, "--dev", clips, "--test", clips, "-o", tmp_path / "run", *SMALL)
    refused("slmtok", model, *parts, "--levels", "1-3", says="levels are given as 1,1:8,2:8, got '1-3'")
    refused("slmtok", mfcc, *parts, "--levels", "1:2", says="are all beyond the 1 that there are")
    lm = ("lm", "bigram", "--units", mfcc)
    refused(*lm, "--train", clips, says="give --swuggy, --sblimp, or both")
    refused(*lm, "--swuggy", sets / "lexical" / "dev", says="bigram is counted here: give --train")
    refused(*lm, "--train", clips, "--swuggy", sets, says="gold.csv: No such file")
    refused(*lm, "--train", clips, "--swuggy", sets / "lexical" / "dev", "--norm", "max", says="norm must be one of")
    refused("lm", mfcc, "--units", mfcc, "--swuggy", sets / "lexical" / "dev", says="is no language model but a Units")
    refused("standins", tmp_path / "sets", "--text", clips, "--pairs", 50, says="pairs need more words")
    refused("standins", clips, "--text", clips, says="is there already")
    assert not (tmp_path / "run" / "slmtok.json").exists()


def test_every_verb_has_examples(senone):
    for verb in ("units", "slmtok", "lm", "standins"):
        code, out, _ = senone("eval", verb, "--help")
        assert code == 0 and f"senone eval {verb} " in out.decode().split("Examples:")[1]
