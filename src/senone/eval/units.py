"""What units are worth: how well they follow phones, and what they cost.

phones = phones_at([(0.0, 0.14, "sil"), (0.14, 0.29, "AH0")], frames=14, hop=320, rate=16000)
quality([(phones, codes.data[0, 0].tolist())]).pnmi
rates([codes.data[0].numpy()], (500,), frame_rate=50).entropy_bitrate

Purity, phone-normalised mutual information, runs: HuBERT, 2106.07447, section IV-E.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log, log2

import numpy as np
from jaxtyping import Int

from senone.errors import SenoneError

Interval = tuple[float, float, str]  # start, end (seconds), label
UNLABELLED = ""  # the phone of a frame that no interval covers


class EvalError(SenoneError):
    """Labels that cannot be measured: not on one clock, overlapping, or none at all."""


@dataclass(frozen=True)
class Quality:
    """What a labelling of frames by units is worth. Purities and PNMI are shares of 1; more clusters raise them.

    frames: how many have both labels. phones, units: distinct labels among them. phone_purity: share of frames right
    if every unit is read as its commonest phone. cluster_purity: share of frames that bear the commonest unit of
    their phone. pnmi: I(phone; unit) / H(phone). bias: by how much PNMI comes out too high because the sample is
    finite, were the two independent: (phones - 1) (units - 1) / (2 frames H(phone)). perplexity: exp H(unit).
    unit_run, phone_run: mean frames from one change of label to the next.
    """

    frames: int
    phones: int
    units: int
    phone_purity: float
    cluster_purity: float
    pnmi: float
    bias: float
    perplexity: float
    unit_run: float
    phone_run: float


def quality(pairs: Iterable[tuple[Sequence[str], Sequence[int]]]) -> Quality:
    """Measure utterances, each as the phones and the units of its frames, pooled; nothing runs on over their borders.

    Frames whose phone is UNLABELLED are left out. Raises EvalError for lengths that differ, or without any phone.
    """
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for n, (phones, units) in enumerate(pairs):
        if len(phones) != len(units):
            raise EvalError(f"utterance {n} has phones for {len(phones)} frames and units for {len(units)}")
        y, z = np.asarray(list(phones), dtype=str), np.asarray(units, dtype=np.int64)
        kept.append((y[y != UNLABELLED], z[y != UNLABELLED]))
    counts = joint([y for y, _ in kept], [z for _, z in kept])
    n = int(counts.sum())
    h_phone, h_unit = entropy(counts.sum(1)), entropy(counts.sum(0))
    shared = max(0.0, h_phone + h_unit - entropy(counts))
    return Quality(
        frames=n,
        phones=counts.shape[0],
        units=counts.shape[1],
        phone_purity=counts.max(0).sum() / n,
        cluster_purity=counts.max(1).sum() / n,
        pnmi=shared / h_phone if h_phone else 0.0,  # one phone: there is nothing to know
        bias=(counts.shape[0] - 1) * (counts.shape[1] - 1) / (2 * n * h_phone) if h_phone else 0.0,
        perplexity=float(np.exp(h_unit)),
        unit_run=n / sum(runs(z) for _, z in kept),
        phone_run=n / sum(runs(y) for y, _ in kept),
    )


def joint(phones: Sequence[np.ndarray], units: Sequence[np.ndarray]) -> Int[np.ndarray, "phone unit"]:
    """How often each phone met each unit, over the labels that occur, in their order. Raises EvalError without any."""
    y, z = (np.concatenate([*parts]) if len(parts) else np.zeros(0) for parts in (phones, units))
    if not len(y):
        raise EvalError("no frame has a phone")
    (names, y), (codes, z) = (np.unique(labels, return_inverse=True) for labels in (y, z))
    return np.bincount(y * len(codes) + z, minlength=len(names) * len(codes)).reshape(len(names), len(codes))


def entropy(counts: np.ndarray) -> float:
    """Entropy of a distribution given by counts, in nats, with 0 log 0 = 0."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def runs(labels: np.ndarray) -> int:
    """How many stretches of one label there are."""
    return int(len(labels) > 0) + int((labels[1:] != labels[:-1]).sum())


def phones_at(intervals: Iterable[Interval], frames: int, hop: int, rate: int) -> list[str]:
    """The phone of each frame: that of the interval [start, end) that holds its centre, (t + 1/2) hop / rate.

    Stress is taken off; UNLABELLED where there is none. Raises EvalError for an interval that ends before it starts, or
    that another overlaps.
    """
    known = sorted(intervals)
    starts, ends = np.array([a for a, _, _ in known]), np.array([b for _, b, _ in known])
    for wrong in np.flatnonzero(ends < starts):
        raise EvalError(f"phone '{known[wrong][2]}' ends at {ends[wrong]:g} s, before it starts at {starts[wrong]:g} s")
    for wrong in np.flatnonzero(starts[1:] < ends[:-1] - 1e-6):
        raise EvalError(f"phones '{known[wrong][2]}' and '{known[wrong + 1][2]}' overlap at {starts[wrong + 1]:g} s")
    labels = np.array([UNLABELLED, *(unstressed(label) for _, _, label in known)])
    centres = (2 * np.arange(frames) + 1) * hop / (2 * rate)  # one division: centres on a border compare exactly
    at = np.searchsorted(starts, centres, side="right")
    inside = (at > 0) & (centres < np.append(-np.inf, ends)[at])
    return labels[np.where(inside, at, 0)].tolist()


def unstressed(label: str) -> str:
    """ARPABET without its stress digit: AH0 is AH."""
    return label.rstrip("0123456789") or label


@dataclass(frozen=True)
class Rates:
    """What units cost, in tokens and bits a second, over all levels.

    bitrate: at log2(size) bits a token. entropy_bitrate: at each level's entropy, without memory (Zero Resource Speech
    Challenge 2019). run_rate, run_bitrate: the same two without frames that repeat, in all levels, the one before: what
    language models of units are trained on; how long a run was is then lost.
    """

    token_rate: float
    bitrate: float
    entropy_bitrate: float
    run_rate: float
    run_bitrate: float


def rates(utterances: Iterable[Int[np.ndarray, "level frame"]], sizes: Sequence[int], frame_rate: float) -> Rates:
    """Of the codes of utterances; nothing runs on over their borders. Raises EvalError where there are no codes."""
    rows = [row for row in utterances if row.shape[1]]
    if not rows:
        raise EvalError("there are no codes to count")
    levels, frames = len(rows[0]), sum(row.shape[1] for row in rows)
    changed = [np.append(True, (row[:, 1:] != row[:, :-1]).any(0)) for row in rows]
    whole, kept = (
        np.concatenate(rows, 1),
        np.concatenate([row[:, at] for row, at in zip(rows, changed, strict=True)], 1),
    )
    bits, run_bits = (
        sum(entropy(np.unique(level, return_counts=True)[1]) for level in x) / log(2) for x in (whole, kept)
    )
    share = kept.shape[1] / frames
    return Rates(
        token_rate=frame_rate * levels,
        bitrate=frame_rate * sum(log2(size) for size in sizes[:levels]),
        entropy_bitrate=frame_rate * bits,
        run_rate=frame_rate * levels * share,
        run_bitrate=frame_rate * share * run_bits,
    )
