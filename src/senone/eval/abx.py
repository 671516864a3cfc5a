"""ABX: are two phones told apart where all else is equal? (Schatz et al. 2013; Libri-Light, 1912.07875, §5.1)

found = abx(read_items("dev-clean.item"), features, frame_rate=50)  # features(file) -> (frame dim)
found.within, found.across  # shares of 1, lower is better

A and X are the same phone, B is another, all between the same neighbours; the error is how often X is nearer to B.
Within: one speaker says all three. Across: X is of another speaker. Distance of two segments: mean cost along the
cheapest path of dynamic time warping. Averages go over contexts, then speakers, then ordered pairs of phones.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num

from senone.eval.units import EvalError, Interval, unstressed

Features = Callable[[str], np.ndarray]  # file -> (frame dim); ids of tokens, for "identical": (frame level)
Table = dict[tuple[str, str], dict[str, list[float]]]  # [a, b][speaker] -> errors of its cells
Distance = Literal["angular", "euclidean", "kl", "identical"]
Slicing = Literal["librilight", "exact"]
DISTANCES, SLICINGS = ("angular", "euclidean", "kl", "identical"), ("librilight", "exact")
HEADER = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")
SILENT = ("", "sil", "sp", "spn", "pau", "SIL")
WORK = 2**23  # numbers in work at once, 64 MB
DIGITS = 12  # of a cosine: two equal frames are at distance 0, whatever the rounding; arccos makes 1e-8 of the last bit
TIE = 1e-9  # codes make many distances equal, and what is equal must not be decided by the order of a sum


@dataclass(frozen=True)
class Segment:
    """A stretch of a file, in seconds, with its phone, the phones around it, and who says it."""

    file: str
    onset: float
    offset: float
    phone: str
    before: str
    after: str
    speaker: str


@dataclass(frozen=True)
class ABX:
    """Error rates, shares of 1; None where no cell has the speakers or repetitions for one.

    segments: with at least one frame; dropped: those without. within_cells, across_cells: how many were averaged.
    """

    within: float | None
    across: float | None
    segments: int
    dropped: int
    within_cells: int
    across_cells: int


def read_items(path: str | Path) -> list[Segment]:
    """An official .item file: a header, then `#file onset offset #phone prev-phone next-phone speaker`.

    Raises EvalError naming the file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvalError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    if not lines or tuple(lines[0].split()) != HEADER:
        raise EvalError(f"{path} is no item file: its first line must be '{' '.join(HEADER)}'")
    out = []
    for number, line in enumerate(lines[1:], 2):
        try:
            file, onset, offset, *labels = line.split()
            phone, before, after, speaker = labels
            out.append(Segment(file, float(onset), float(offset), phone, before, after, speaker))
        except ValueError:
            raise EvalError(f"{path}, line {number} is not seven columns, times in seconds") from None
    return out


def triphones(file: str, phones: Iterable[Interval], speaker: str) -> list[Segment]:
    """Every phone between two others, no silence among the three, as Libri-Light's item files have them: a segment goes
    from where the phone before it starts to where the one after it ends."""
    known = [(start, end, unstressed(label)) for start, end, label in sorted(phones)]
    return [
        Segment(file, a[0], c[1], b[2], a[2], c[2], speaker)
        for a, b, c in zip(known, known[1:], known[2:], strict=False)
        if not {a[2], b[2], c[2]} & set(SILENT) and a[1] == b[0] and b[1] == c[0]
    ]


def abx(
    segments: Iterable[Segment],
    features: Features,
    frame_rate: float,
    *,
    distance: Distance = "angular",
    slicing: Slicing = "librilight",
    group: int | None = 10,
    voices: int | None = 5,
    seed: int = 0,
) -> ABX:
    """Both error rates.

    frame_rate: frames a second; frame i has its centre at (i + 1/2) / frame_rate, and a segment has the frames whose
    centres lie in it. slicing: "librilight" leaves the last of these out, as the code behind all published figures
    does. group: segments of one phone, context and speaker that are used, at random by `seed` (None: all). voices: X
    speakers for one A and B. Both caps are the official code's. Raises EvalError for an unknown distance or slicing,
    or where no segment has a frame.
    """
    if distance not in DISTANCES or slicing not in SLICINGS:
        raise EvalError(f"distance must be one of {DISTANCES}, slicing of {SLICINGS}, got '{distance}', '{slicing}'")
    rng, contexts, dropped, kept = np.random.default_rng(seed), defaultdict(lambda: defaultdict(list)), 0, 0
    for name, own in _by_file(segments).items():
        x = np.asarray(features(name))
        for segment in own:
            piece = x[frames(segment, frame_rate, slicing)]
            dropped, kept = dropped + (not len(piece)), kept + bool(len(piece))
            if len(piece):
                contexts[segment.before, segment.after][segment.phone, segment.speaker].append(piece)
    if not kept:
        raise EvalError(f"none of {dropped} segments has a frame at {frame_rate:g} frames a second")
    within: Table = defaultdict(lambda: defaultdict(list))
    across: Table = defaultdict(lambda: defaultdict(list))
    for groups in contexts.values():
        _context(groups, distance, (group, voices), rng, within, across)
    rates = [_average(table) for table in (within, across)]
    cells = [sum(len(cell) for table in every.values() for cell in table.values()) for every in (within, across)]
    return ABX(rates[0], rates[1], kept, dropped, cells[0], cells[1])


def frames(segment: Segment, frame_rate: float, slicing: Slicing) -> slice:
    """The frames of a segment."""
    first = ceil(
        round(segment.onset * frame_rate - 0.5, 6)
    )  # rounded: a border on a centre is not left to the last bit
    last = floor(round(segment.offset * frame_rate - 0.5, 6))
    return slice(max(0, first), max(0, last + (slicing == "exact")))


def _by_file(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    out: dict[str, list[Segment]] = defaultdict(list)
    for segment in segments:
        out[segment.file].append(segment)
    return out


def _average(table: Table) -> float | None:
    """Over the cells of a speaker, then speakers, then pairs of phones."""
    pairs = [np.mean([np.mean(cells) for cells in speakers.values()]) for speakers in table.values()]
    return float(np.mean(pairs)) if pairs else None


def _context(groups, distance: Distance, caps: tuple[int | None, int | None], rng, within, across) -> None:
    """Add the errors of every cell of one context to the tables."""
    pieces, members = [], {}
    for key, own in groups.items():
        kept = own if caps[0] is None or len(own) <= caps[0] else [own[k] for k in rng.permutation(len(own))[: caps[0]]]
        members[key] = np.arange(len(pieces), len(pieces) + len(kept))
        pieces += kept
    cells = []  # table, (a, b), speaker, and the members of A, B, X; X is A within
    for (a, speaker), first in members.items():
        for (b, other), second in members.items():
            if a == b or speaker != other:
                continue
            if len(first) > 1:
                cells.append((within, (a, b), speaker, first, second, first))
            others = [who for phone, who in members if phone == a and who != speaker]
            if caps[1] is not None and len(others) > caps[1]:
                others = [others[k] for k in rng.permutation(len(others))[: caps[1]]]
            cells += [(across, (a, b), speaker, first, second, members[a, who]) for who in others]
    wanted = np.zeros((len(pieces), len(pieces)), bool)
    for *_, first, second, x in cells:
        wanted[np.ix_(x, first)] = wanted[np.ix_(x, second)] = True
    far = np.full(wanted.shape, np.nan)
    far[wanted] = distances(pieces, np.argwhere(wanted), distance)
    for table, pair, speaker, first, second, x in cells:
        to_a, to_b = far[np.ix_(x, first)][:, :, None], far[np.ix_(x, second)][:, None]
        error = (to_a > to_b + TIE) + 0.5 * (np.abs(to_a - to_b) <= TIE)
        if x is first:  # X is another one than A
            error = error[~np.eye(len(x), dtype=bool)]
        table[pair][speaker].append(error.mean())


def distances(
    pieces: list[np.ndarray], pairs: Int[np.ndarray, "pair 2"], distance: Distance = "angular"
) -> Float[np.ndarray, "pair"]:
    """How far the pieces (frame dim) of each pair are apart: many pairs at once, those of like lengths together."""
    if not len(pairs):
        return np.zeros(0)
    ready = [prepared(np.asarray(piece), distance) for piece in pieces]
    lengths, width = np.array([len(piece) for piece in ready]), ready[0].shape[1]
    dense = np.ones((len(ready), lengths.max(), width), ready[0].dtype)  # what follows a piece has a logarithm too
    for row, piece in zip(dense, ready, strict=True):
        row[: len(piece)] = piece
    out, order = np.empty(len(pairs)), np.lexsort(lengths[pairs].T)
    size = int(lengths.max())
    step = max(1, WORK // (size * (2 * width + size)))
    for start in range(0, len(order), step):
        at = order[start : start + step]
        n, m = lengths[pairs[at]].T
        left, right = dense[pairs[at, 0], : n.max()], dense[pairs[at, 1], : m.max()]
        out[at] = dtw(between(left, right, distance), n, m)
    return out


def prepared(x: Num[np.ndarray, "frame dim"], distance: Distance) -> Num[np.ndarray, "frame dim_"]:
    """Frames as `between` takes them: for angles of length 1, with a coordinate more that takes a zero vector as far as
    can be from others, and not from its like (Libri-Light's way)."""
    if distance == "identical":
        return x
    x = x.astype(np.float64)
    if distance == "kl":
        return x + 1e-6
    if distance == "euclidean":
        return x
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.concatenate([x / np.where(norm == 0, 1, norm), np.where(norm == 0, -2e12, 1e-12)], -1)


def between(
    x: Num[np.ndarray, "pair n dim"], y: Num[np.ndarray, "pair m dim"], distance: Distance
) -> Float[np.ndarray, "pair n m"]:
    """Distance of every frame of `x` to every frame of `y`, both prepared.

    angular: the angle over pi. kl: half the sum of both divergences of distributions. identical: the share of levels
    whose tokens differ.
    """
    if distance == "identical":
        return (x[:, :, None] != y[:, None]).mean(-1)
    if distance == "kl":
        both = (x * np.log(x)).sum(-1)[:, :, None] + (y * np.log(y)).sum(-1)[:, None]
        return (both - x @ np.log(y).swapaxes(1, 2) - np.log(x) @ y.swapaxes(1, 2)) / 2
    inner = x @ y.swapaxes(1, 2)
    if distance == "euclidean":
        a, b = (np.square(side).sum(-1) for side in (x, y))
        return np.sqrt(np.maximum(0, a[:, :, None] + b[:, None] - 2 * inner))
    return np.arccos(np.clip(np.round(inner, DIGITS), -1, 1)) / np.pi


def dtw(
    cost: Float[np.ndarray, "pair n m"], n: Int[np.ndarray, "pair"], m: Int[np.ndarray, "pair"]
) -> Float[np.ndarray, "pair"]:
    """Mean cost along the cheapest path from (0, 0) to (n - 1, m - 1), of all pairs at once, a diagonal at a time.

    Steps: one on, in either or in both. Of equal ways the diagonal is taken, then the one along `m`: it decides about
    the length of the path, which is carried along instead of being found by going back.
    """
    pairs, rows, columns = cost.shape
    total, steps = (
        np.full((pairs, rows + 1), np.inf),
        np.zeros((pairs, rows + 1)),
    )  # of row i at i + 1, one diagonal ago
    before, before_steps = total.copy(), steps.copy()  # two diagonals ago
    out, ends = np.empty(pairs), n + m - 2
    for k in range(rows + columns - 1):
        i = np.arange(max(0, k - columns + 1), min(k, rows - 1) + 1)
        ways = np.stack([before[:, i], total[:, i + 1], total[:, i]])  # both on; along m; along n
        if k == 0:
            ways[:] = 0
        best = ways.argmin(0)  # the first of equals
        lengths = np.stack([before_steps[:, i], steps[:, i + 1], steps[:, i]])
        before, before_steps = total, steps
        total, steps = np.full((pairs, rows + 1), np.inf), np.zeros((pairs, rows + 1))
        total[:, i + 1] = cost[:, i, k - i] + np.take_along_axis(ways, best[None], 0)[0]
        steps[:, i + 1] = 1 + np.take_along_axis(lengths, best[None], 0)[0]
        done = np.flatnonzero(ends == k)
        out[done] = total[done, n[done]] / steps[done, n[done]]
    return out
