"""ABX against golden values of two independent programs, brute force, and known extremes."""

from dataclasses import replace
from itertools import product
from math import acos, pi

import numpy as np
import pytest

from senone.eval.abx import ABX, Segment, abx, between, distances, dtw, frames, prepared, read_items, triphones
from senone.eval.units import EvalError


def golden():
    """The 52 items of specs/abx_golden/gen.py: 3 speakers, 3 phones, 2 contexts, 50 frames a second."""
    rng, segments, features = np.random.default_rng(7), [], {}
    phones, contexts, speakers = ["AA", "IY", "S"], [("B", "T"), ("K", "L")], ["s1", "s2", "s3"]
    of_phone = {p: rng.normal(size=8) for p in phones}
    of_speaker = {s: 0.8 * rng.normal(size=8) for s in speakers}
    of_context = {c: 0.5 * rng.normal(size=8) for c in contexts}
    for speaker, k in product(speakers, range(3)):
        x, t = 0.7 * rng.normal(size=(400, 8)), 5
        for context, phone in product(contexts, phones):
            if (k, phone, speaker) == (2, "S", "s2"):
                continue
            length = int(rng.integers(4, 9))
            x[t : t + length] += of_phone[phone] + of_speaker[speaker] + of_context[context]
            times = round(t * 0.02 + 0.003, 4), round((t + length) * 0.02 - 0.004, 4)
            segments.append(Segment(f"{speaker}-{k}", *times, phone, *context, speaker))
            t += length + 6
        features[f"{speaker}-{k}"] = x[: t + 10].astype(np.float32)
    return segments, features


@pytest.mark.parametrize("slicing,within,across", [("librilight", 0.0717593, 0.2386831), ("exact", 0.073302, 0.231996)])
def test_golden_values(slicing, within, across):
    """Of zerospeech-libriabx2 0.9.8 (Libri-Light's slicing), and of the spec's own program (both)."""
    segments, features = golden()
    found = abx(segments, features.__getitem__, 50, slicing=slicing, group=None, voices=None)
    assert found.within == pytest.approx(within, abs=1e-6) and found.across == pytest.approx(across, abs=1e-6)
    assert (found.segments, found.dropped) == (52, 0)


def path(cost):
    """Libri-Light's own way: fill the table, then go back from the end and count the steps."""
    n, m = cost.shape
    total = np.full((n, m), np.inf)
    for i, j in product(range(n), range(m)):
        ways = [total[i - 1, j - 1] if i and j else np.inf, total[i, j - 1] if j else np.inf]
        ways.append(total[i - 1, j] if i else np.inf)
        total[i, j] = cost[i, j] + (min(ways) if i or j else 0)
    i, j, steps = n - 1, m - 1, 1
    while i and j:
        up, left, both = total[i - 1, j], total[i, j - 1], total[i - 1, j - 1]
        i, j = (i - 1, j - 1) if both <= left and both <= up else (i, j - 1) if left <= up else (i - 1, j)
        steps += 1
    return total[-1, -1] / (steps + i + j)


@pytest.mark.parametrize("levels", [0, 2])
def test_time_warping_equals_going_back_from_the_end(levels):
    """Ragged pairs at once; with few levels of cost, where most paths are equally cheap and only ties decide."""
    rng = np.random.default_rng(levels)
    n, m = rng.integers(1, 9, (2, 200))
    cost = rng.integers(0, levels, (200, 8, 8)).astype(float) if levels else rng.random((200, 8, 8))
    want = [path(one[:a, :b]) for one, a, b in zip(cost, n, m, strict=True)]
    assert dtw(cost, n, m) == pytest.approx(want, abs=1e-12)


def brute(segments, features, metric, rate):
    """The definition, triple by triple."""
    cut = [features[s.file][frames(s, rate, "exact")] for s in segments]

    def far(k, j):
        return path(np.array([[metric(a, b) for b in cut[j]] for a in cut[k]]))

    out, place = [], range(len(segments))
    for same in (True, False):
        table = {}
        for a, b, x in product(place, repeat=3):
            p, q, r = segments[a], segments[b], segments[x]
            context = p.before, p.after
            if context != (q.before, q.after) or context != (r.before, r.after) or x == a:
                continue
            if p.phone != r.phone or p.phone == q.phone or p.speaker != q.speaker or same != (p.speaker == r.speaker):
                continue
            to_a, to_b = far(x, a), far(x, b)
            error = 0.5 if abs(to_a - to_b) < 1e-9 else float(to_a > to_b)
            cells = table.setdefault((p.phone, q.phone), {}).setdefault(p.speaker, {})
            cells.setdefault((context, r.speaker), []).append(error)
        per_pair = [
            np.mean([np.mean([np.mean(errors) for errors in cells.values()]) for cells in speakers.values()])
            for speakers in table.values()
        ]
        out.append(np.mean(per_pair))
    return tuple(out)


def angle(a, b):
    return acos(max(-1, min(1, a @ b / np.linalg.norm(a) / np.linalg.norm(b)))) / pi


METRICS = {
    "angular": angle,
    "euclidean": lambda a, b: np.linalg.norm(a - b),
    "kl": lambda a, b: ((a - b) * np.log((a + 1e-6) / (b + 1e-6))).sum() / 2,
    "identical": lambda a, b: np.mean(a != b),
}


@pytest.mark.parametrize("name", METRICS)
def test_equals_brute_force(name):
    rng, segments = np.random.default_rng(1), golden()[0]
    segments = [s for s in segments if s.speaker != "s3" and s.file[-1] != "2" and s.before == "B"][:12]
    x = {s.file: rng.dirichlet(np.ones(5), 400) for s in segments}
    if name == "identical":
        x = {file: rng.integers(0, 3, (400, 2)) for file in x}
    got = abx(segments, x.__getitem__, 50, slicing="exact", distance=name, group=None, voices=None)
    assert (got.within, got.across) == pytest.approx(brute(segments, x, METRICS[name], 50), abs=1e-12)


def test_extremes():
    """Equal frames everywhere: chance, by ties alone. A direction for each phone: no error."""
    segments, features = golden()
    same = {file: np.full_like(x, 0.3) for file, x in features.items()}
    chance = abx(segments, same.__getitem__, 50)
    assert (chance.within, chance.across) == (0.5, 0.5)
    ideal = {file: np.zeros_like(x) for file, x in features.items()}
    for s in segments:
        ideal[s.file][frames(s, 50, "exact"), ["AA", "IY", "S"].index(s.phone)] = 0.7
    found = abx(segments, ideal.__getitem__, 50)
    assert (found.within, found.across) == (0, 0)


def test_equal_codes_tie_whatever_the_rounding():
    """Segments that share their codes tie exactly; arccos of a cosine of 1 - 1e-16 would decide between them."""
    table = np.random.default_rng(3).normal(size=(4, 33))
    segments, _ = golden()
    codes = {s.file: table[np.arange(400) // 2 % 4] for s in segments}
    cut = [
        Segment(s.file, 0.0, 0.16 + 0.04 * (k % 3), s.phone, s.before, s.after, s.speaker)
        for k, s in enumerate(segments)
    ]
    as_vectors = abx(cut, codes.__getitem__, 50)
    pieces = [codes[s.file][frames(s, 50, "exact")] for s in cut[:6]]
    assert distances(pieces, np.array([[0, 3], [1, 4]])).tolist() == [0, 0]
    equal = [replace(s, onset=0.0, offset=0.2) for s in segments]
    assert abx(equal, codes.__getitem__, 50).within == 0.5 and as_vectors.within != 0.5


def test_a_zero_vector_is_as_far_as_can_be():
    x = np.array([[[0.0, 0], [1, 0], [-1, 0], [0, 2]]])
    want = [[0, 1, 1, 1], [1, 0, 1, 0.5], [1, 1, 0, 0.5], [1, 0.5, 0.5, 0]]
    ready = prepared(x[0], "angular")[None]
    assert between(ready, ready, "angular")[0].tolist() == want


def test_frames_of_a_segment():
    """Centres at 10, 30, 50 ms: those in the segment; Libri-Light leaves out the last of them."""
    segment = Segment("f", 0.03, 0.07, "A", "B", "C", "s")
    assert frames(segment, 50, "exact") == slice(1, 4) and frames(segment, 50, "librilight") == slice(1, 3)
    assert frames(Segment("f", 0.031, 0.049, "A", "B", "C", "s"), 50, "exact") == slice(2, 2)


def test_segments_without_a_frame_are_counted_and_left_out():
    segments, features = golden()
    short = [Segment("s1-0", 0.1, 0.101, "AA", "B", "T", "s1"), Segment("s1-0", 99.0, 99.2, "AA", "B", "T", "s1")]
    got, want = (abx(given, features.__getitem__, 50) for given in (segments + short, segments))
    assert got == ABX(want.within, want.across, 52, 2, want.within_cells, want.across_cells)
    with pytest.raises(EvalError, match="none of 2 segments has a frame at 50 frames a second"):
        abx(short, features.__getitem__, 50)


def test_caps_draw_by_seed():
    segments, features = golden()
    few = [abx(segments, features.__getitem__, 50, group=2, voices=1, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] and few[0] != few[2] and few[0].across_cells == few[0].within_cells == 36
    whole = abx(segments, features.__getitem__, 50, group=None, voices=None)
    assert whole == abx(segments, features.__getitem__, 50, group=3, voices=2) and whole.across_cells == 72


def test_one_speaker_has_no_across():
    segments, features = golden()
    got = abx([s for s in segments if s.speaker == "s1"], features.__getitem__, 50)
    assert got.across is None and got.within is not None and got.across_cells == 0


def test_item_files(tmp_path):
    file = tmp_path / "x.item"
    head = "#file onset offset #phone prev-phone next-phone speaker\n"
    file.write_text(head + "f-1 0.1030 0.2160 AA B T s1\n")
    assert read_items(file) == [Segment("f-1", 0.103, 0.216, "AA", "B", "T", "s1")]
    for text, says in (
        ("x\n", "is no item file"),
        (head + "f 0.1 AA\n", "line 2"),
        (head + "f a b AA B T s\n", "line 2"),
    ):
        file.write_text(text)
        with pytest.raises(EvalError, match=f"x.item.*{says}"):
            read_items(file)
    with pytest.raises(EvalError, match="gone.item: No such file"):
        read_items(tmp_path / "gone.item")


def test_triphones_are_whole_and_without_silence():
    phones = [
        (0.0, 0.1, "sil"),
        (0.1, 0.2, "B"),
        (0.2, 0.3, "IH1"),
        (0.3, 0.4, "T"),
        (0.4, 0.5, "AH0"),
        (0.6, 0.7, "S"),
    ]
    got = triphones("f", phones, "me")
    assert got == [Segment("f", 0.1, 0.4, "IH", "B", "T", "me"), Segment("f", 0.2, 0.5, "T", "IH", "AH", "me")]


def test_unknown_words_are_refused():
    segments, features = golden()
    for more in ({"distance": "cosine"}, {"slicing": "fast"}):
        with pytest.raises(EvalError, match="distance must be one of"):
            abx(segments, features.__getitem__, 50, **more)
