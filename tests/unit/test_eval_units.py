"""Purity and PNMI against counting by hand, known extremes and scikit-learn; phones on the frame clock."""

import gzip
import sys
from collections import Counter
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch

from senone import Audio
from senone.eval.corpus import Utterance
from senone.eval.stability import DISTURBANCES, stability
from senone.eval.unitbench import Spoken, measure
from senone.eval.units import EvalError, Rates, entropy, joint, phones_at, quality, rates, runs, unstressed
from senone.models.units import MFCC, Units


def brute(pairs):
    """The definitions, by dictionaries: phone purity, cluster purity, PNMI, perplexity."""
    both = Counter(pair for phones, units in pairs for pair in zip(phones, units, strict=True))
    n = sum(both.values())
    phone, unit = Counter(), Counter()
    for (y, z), count in both.items():
        phone[y] += count
        unit[z] += count
    shared = sum(c / n * log(c * n / (phone[y] * unit[z])) for (y, z), c in both.items())
    h_phone, h_unit = (-sum(c / n * log(c / n) for c in each.values()) for each in (phone, unit))
    right = sum(max(c for (_, z), c in both.items() if z == k) for k in unit) / n
    pure = sum(max(c for (y, _), c in both.items() if y == k) for k in phone) / n
    return right, pure, shared / h_phone, exp(h_unit)


def draw(seed, phones=4, units=6, lengths=(7, 1, 30)):
    rng = np.random.default_rng(seed)
    return [(["abcdefgh"[i] for i in rng.integers(0, phones, n)], rng.integers(0, units, n).tolist()) for n in lengths]


@pytest.mark.parametrize("seed", range(20))
def test_equals_counting_by_hand(seed):
    pairs = draw(seed)
    got = quality(pairs)
    assert (got.phone_purity, got.cluster_purity, got.pnmi, got.perplexity) == pytest.approx(brute(pairs), abs=1e-12)
    assert got.frames == 38


def test_a_case_on_paper():
    """Phones aabb, units 0012: unit 0 is a, 1 and 2 are b: all is known of the phone, b is split."""
    got = quality([("aabb", [0, 0, 1, 2])])
    assert (got.phone_purity, got.cluster_purity, got.units, got.phones) == (1.0, 0.75, 3, 2)
    assert got.pnmi == pytest.approx(1.0, abs=1e-12) and got.perplexity == pytest.approx(exp(1.5 * log(2)))
    assert (got.unit_run, got.phone_run) == (4 / 3, 2.0)


def test_the_same_labelling_is_perfect():
    pairs = [(phones, ["abcd".index(y) * 7 for y in phones]) for phones, _ in draw(0)]
    got = quality(pairs)
    assert (got.phone_purity, got.cluster_purity) == (1, 1) and got.pnmi == pytest.approx(1, abs=1e-12)


def test_one_unit_for_all_tells_nothing():
    phones = "aaab"
    got = quality([(phones, [5] * 4)])
    assert (got.phone_purity, got.cluster_purity, got.pnmi, got.perplexity, got.bias) == (0.75, 1, 0, 1, 0)
    assert quality([("aaaa", [1, 2, 3, 4])]).pnmi == 0  # nothing to know: no division by zero


def test_independent_labels_share_nothing_but_the_bias():
    every = [(y, z) for y in "abc" for z in range(4)]
    assert quality([([y for y, _ in every], [z for _, z in every])]).pnmi == pytest.approx(0, abs=1e-12)
    got = [quality(draw(seed, 8, 30, lengths=(4000,))) for seed in range(30)]
    assert np.mean([q.pnmi for q in got]) == pytest.approx(np.mean([q.bias for q in got]), rel=0.1)


def test_mutual_information_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for seed in range(5):
        pairs = draw(seed, 5, 9, lengths=(200, 300))
        phones, units = ([label for pair in pairs for label in pair[k]] for k in (0, 1))
        got = quality(pairs)
        h_phone = entropy(np.unique(phones, return_counts=True)[1])
        assert got.pnmi * h_phone == pytest.approx(metrics.mutual_info_score(phones, units), abs=1e-12)
        assert got.pnmi == pytest.approx(metrics.homogeneity_score(phones, units), abs=1e-12)
        assert joint([np.array(phones)], [np.array(units)]).sum(0).tolist() == np.bincount(units).tolist()


def test_neither_the_names_of_units_nor_the_order_of_utterances_matter():
    pairs = draw(3)
    renamed = [(phones, [10**6 - 3 * z for z in units]) for phones, units in reversed(pairs)]
    a, b = quality(pairs), quality(renamed)
    assert vars(a) == pytest.approx(vars(b), abs=1e-12)


def test_runs_end_with_the_utterance():
    assert [runs(np.array(x)) for x in ([], [1], [1, 1], [1, 2, 2, 1])] == [0, 1, 1, 3]
    got = quality([("aab", [1, 1, 1]), ("bba", [1, 1, 2])])
    assert (got.unit_run, got.phone_run) == (6 / 3, 6 / 4)


def test_unlabelled_frames_are_left_out():
    assert quality([(["", "a", "", "b"], [9, 0, 9, 1])]) == quality([("ab", [0, 1])])
    with pytest.raises(EvalError, match="no frame has a phone"):
        quality([(["", ""], [1, 2])])
    with pytest.raises(EvalError, match="no frame"):
        quality([])


def test_other_lengths_are_refused():
    with pytest.raises(EvalError, match="utterance 1 has phones for 2 frames and units for 3"):
        quality([("a", [1]), ("ab", [1, 2, 3])])


def test_phones_on_the_frame_clock():
    """Centres at 10, 30, 50, ... ms; a border belongs to what starts there; gaps and the end have no phone."""
    phones = [(0.0, 0.03, "sil"), (0.03, 0.0501, "AH0"), (0.0899, 0.11, "T")]
    assert phones_at(phones, 7, 320, 16000) == ["sil", "AH", "AH", "", "T", "", ""]
    assert phones_at(reversed(phones), 7, 320, 16000) == phones_at(phones, 7, 320, 16000)
    assert phones_at(phones, 4, 160, 16000) == ["sil", "sil", "sil", "AH"]
    assert phones_at([], 2, 320, 16000) == ["", ""] and phones_at(phones, 0, 320, 16000) == []


@pytest.mark.parametrize("hop,rate", [(320, 16000), (160, 16000), (480, 24000), (441, 22050)])
def test_the_frame_clock_against_a_loop(hop, rate):
    """In whole milliseconds, where most centres of 20 ms frames meet a border."""
    rng = np.random.default_rng(hop)
    borders = np.unique(rng.integers(0, 100, 40)) * 10
    phones = [(a / 1000, b / 1000, f"p{i}x") for i, (a, b) in enumerate(zip(borders, borders[1:], strict=False))]
    for t, got in enumerate(phones_at(phones, 60, hop, rate)):
        centre = 1000 * (2 * t + 1) * hop  # in units of 1 / (2 rate) milliseconds
        match = [f"p{i}x" for i, a in enumerate(borders[:-1]) if a * 2 * rate <= centre < borders[i + 1] * 2 * rate]
        assert got == (match[0] if match else "")


def test_intervals_that_make_no_sense_are_refused():
    with pytest.raises(EvalError, match="'b' ends at 0.1 s, before it starts at 0.2 s"):
        phones_at([(0.2, 0.1, "b")], 5, 320, 16000)
    with pytest.raises(EvalError, match="'a' and 'b' overlap at 0.1 s"):
        phones_at([(0.0, 0.2, "a"), (0.1, 0.3, "b")], 5, 320, 16000)


def test_stress_is_a_trailing_digit():
    assert [unstressed(x) for x in ("AH0", "ER1", "sil", "s2", "1")] == ["AH", "ER", "sil", "s", "1"]


def test_rates_by_hand():
    """0 0 1 1 2 2 3 3 of 1024 at 50 Hz: 500 b/s in name, 100 in entropy (spec D.3), half the tokens without runs."""
    got = rates([np.array([[0, 0, 1, 1, 2, 2, 3, 3]])], (1024,), 50)
    assert got == Rates(50, 500, 100, 25, 50)
    # two levels: 8 frames in two utterances; a frame repeats if both levels do; the border is no repetition
    rows = [np.array([[0, 0, 0, 1], [5, 5, 6, 6]]), np.array([[1, 1, 1, 1], [6, 6, 7, 7]])]
    got = rates(rows, (2, 8, 4), 25)
    assert (got.token_rate, got.bitrate) == (50, 100) and got.entropy_bitrate == pytest.approx(
        25 * (0.954434 + 1.5), abs=1e-4
    )
    kept = [[0, 0, 1, 1, 1], [5, 6, 6, 6, 7]]  # frames 0, 2, 3 and 0, 2
    bits = sum(entropy(np.unique(row, return_counts=True)[1]) / log(2) for row in kept)
    assert got.run_rate == pytest.approx(50 * 5 / 8) and got.run_bitrate == pytest.approx(25 * 5 / 8 * bits)
    with pytest.raises(EvalError, match="no codes"):
        rates([np.zeros((1, 0), int)], (4,), 50)


def hum(*tones, seconds=0.4):
    t = np.arange(round(seconds * 16000)) / 16000
    wave = np.concatenate([0.3 * np.sin(2 * np.pi * tone * t) for tone in tones])
    return Audio(
        torch.from_numpy(wave + 0.003 * np.random.default_rng(0).standard_normal(len(wave))).float()[None], 16000
    )


def hearing(*tones):
    """MFCC units with a centroid in the middle of each tone."""
    units = Units.of(MFCC(), len(tones))
    z = units.analyse(hum(*tones).wave[None])[0][0].T
    units.quantizer.centroids.copy_(z[20 :: len(z) // len(tones)][: len(tones)])
    return units


def test_stability_counts_what_changed():
    """Against a loop over the definition: units of the disturbed recording, brought back with the fewest edits."""
    units, audio = hearing(200, 700, 2500), hum(200, 2500, 700)
    got = stability(units, [audio])
    assert set(got) == set(DISTURBANCES) and all(len(each) == 1 for each in got.values())
    clean = units.encode(audio).data[0, 0].tolist()
    later = units.encode(Audio(audio.wave[:, 320:], 16000)).data[0, 0].tolist()
    table = np.zeros((len(clean) + 1, len(later) + 1), int)
    for i in range(len(clean) + 1):
        for j in range(len(later) + 1):
            ways = [table[i - 1, j] + 1] if i else []
            ways += [table[i, j - 1] + 1] if j else []
            ways += [table[i - 1, j - 1] + (clean[i - 1] != later[j - 1])] if i and j else []
            table[i, j] = min(ways, default=0)
    assert got["offset"][0] == table[-1, -1] / len(clean) >= 2 / 120  # two frames are not there any more
    assert got["gain"][0] < 0.1 and got["noise"][0] < 0.2 and got["shift"][0] < 0.1
    assert stability(units, [audio]) == got
    still = hearing(700)
    assert stability(still, [audio]) | {"offset": [2 / 120]} == dict.fromkeys(DISTURBANCES, [0.0]) | {
        "offset": [2 / 120]
    }
    with pytest.raises(EvalError, match="no recordings to disturb"):
        stability(units, [])
    with pytest.raises(EvalError, match="a recording of 100 samples is too short"):
        stability(units, [Audio(torch.randn(1, 100), 16000)])


def test_all_of_it_on_units_that_hear_the_phones(tmp_path):
    """Three speakers say three hums in every order that two neighbours of H allow: units tell them all apart."""
    spoken = []
    for speaker in range(3):
        for k, middle in enumerate((200, 700, 200, 700)):
            file = tmp_path / f"{speaker}-{k}.wav"
            hum(1500 + 10 * speaker, middle * (1 + speaker / 100), 2500).save(file)
            phones = [(0.0, 0.4, "H"), (0.4, 0.8, f"{'AE'[middle == 700]}1"), (0.8, 1.2, "I")]
            spoken.append(Spoken(Utterance(file.stem, str(file), f"s{speaker}", 1.2, None, ""), phones))
    units, heard = hearing(1500, 200, 700, 2500), []
    got = measure(units, spoken, disturbed=2, heard=heard.append)
    assert (got.utterances, got.seconds, got.used) == (12, pytest.approx(14.4), 4) and sum(heard) == got.seconds
    assert got.quality is not None and got.quality.pnmi > 0.9 and got.quality.phones == 4
    assert got.early is not None and got.late is not None and max(got.early, got.late) < got.quality.pnmi
    assert got.abx is not None and (got.abx.within, got.abx.across, got.abx.segments) == (0, 0, 12)
    assert got.expected == pytest.approx(4) and got.stability is not None and got.rates.bitrate == 200
    for on in ("features", "tokens"):
        assert measure(units, spoken, on=on, disturbed=0).abx == got.abx
    deaf = measure(hearing(700), spoken, disturbed=0)
    assert deaf.abx is not None and (deaf.abx.within, deaf.abx.across) == (0.5, 0.5) and deaf.stability is None
    mute = measure(units, [Spoken(item.utterance) for item in spoken], disturbed=0)
    assert mute.quality is mute.abx is mute.early is None and mute.rates == got.rates
    for wrong, says in (({"on": "waves"}, "ABX is of one of"), ({"levels": 2}, "levels must be 1 to 1")):
        with pytest.raises(Exception, match=says):
            measure(units, spoken, **wrong)
    with pytest.raises(EvalError, match="there are no utterances"):
        measure(units, [])


@pytest.fixture
def benchmark_units(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import units

    return units


def test_a_hundred_utterances_of_two_speakers_are_measured(benchmark_units):
    uses = benchmark_units.held_out()
    test, dev = ({name for name, use in uses.items() if use == what} for what in ("test", "dev"))
    assert len(test) == 100 and len(dev) == 160 and len(uses) == 260
    assert Counter(name.split("-")[0] for name in test) == {"4406": 50, "5652": 50}


def test_training_hears_nobody_who_is_measured(benchmark_units, data, tmp_path):
    from senone.data.manifest import read

    benchmark_units.write(tmp_path / "train.tsv", benchmark_units.heard(data))
    cuts = read(tmp_path / "train.tsv")
    assert not {cut.speaker for cut in cuts} & {"ls4406", "ls5652"} and {"ls4088", "ls8226"} <= {
        c.speaker for c in cuts
    }
    assert Path(cuts[0].path).is_absolute() and all(Path(cut.path).exists() for cut in cuts[::100])
    kept_out = sum(cut.speaker in ("ls4406", "ls5652") for cut in read(data / benchmark_units.LIBRISPEECH, None))
    assert kept_out == len(benchmark_units.held_out())


def test_alignments_of_librispeech_cover_the_recordings(benchmark_units, data):
    spoken = benchmark_units.librispeech(data, "test")
    assert len(spoken) == 100 and {item.utterance.speaker for item in spoken} == {"ls4406", "ls5652"}
    for item in spoken[::10]:
        assert item.phones[0][0] == 0 and item.phones[-1][1] == pytest.approx(item.utterance.seconds, abs=0.1)


def test_layers_are_chosen_on_what_is_held_out_for_it(benchmark_units, tmp_path, monkeypatch, capsys):
    """Three hums that three clusters find; phones in time fit better than those out of it."""
    rng, home = np.random.default_rng(0), tmp_path / benchmark_units.LIBRISPEECH
    (home / "audio").mkdir(parents=True)
    held = tmp_path / "held_out.txt"
    held.write_text("# why\n1-2-0 dev\n1-2-1 dev\n1-2-2 test\n")
    monkeypatch.setattr(benchmark_units, "HELD_OUT", held)
    with gzip.open(home / "alignments.tsv.gz", "wt") as file:
        file.write("utt\ttier\tstart\tend\tlabel\n")
        for name in ("1-2-0", "1-2-1", "1-2-2", "3-4-0"):
            order = rng.permutation([200, 700, 2500])
            hum(*order, seconds=0.5).save(home / "audio" / f"{name}.wav")
            file.writelines(f"{name}\tphones\t{n / 2}\t{n / 2 + 0.5}\tT{tone}x\n" for n, tone in enumerate(order))
    (tmp_path / "train.tsv").write_text(f"path\tseconds\n{benchmark_units.LIBRISPEECH}/audio/3-4-0.wav\t1.5\n")
    options = ["--train", f"{tmp_path}/train.tsv", "--data", f"{tmp_path}", "--clusters", "3"]
    monkeypatch.setattr(sys, "argv", ["units.py", "sweep", "mfcc", *options])
    benchmark_units.main()
    (line,) = capsys.readouterr().out.split("\n\n")[-1].splitlines()[2:]
    values = dict(zip(benchmark_units.COLUMNS, line.strip("| ").split(" | "), strict=True))
    pnmi, early, late = (float(values[key]) for key in ("PNMI", "PNMI early", "late"))
    assert pnmi > 0.9 and pnmi > early and pnmi > late and values["frames"] == "300" and values["K"] == "3"
