"""k-means for features that do not fit into memory: HuBERT's teacher (2106.07447, section IV-B).

`fit` is mini-batch k-means (Sculley 2010) with the settings of fairseq's learn_kmeans.py and the semantics of
scikit-learn's MiniBatchKMeans: k-means++ several times over, the best by inertia; every centre the mean of all it was
ever given; until nothing improves. `KMeans` is the quantizer that comes of it.
"""

from collections.abc import Iterable, Iterator
from math import log
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from senone.errors import SenoneError
from senone.quantize import Quantized, full, squares

ROWS = 4096  # rows measured against all centres at once
MEMORY = 2**28  # bytes of features that `fit` shuffles, and goes over again at the end
SMOOTH = 20  # batches that the inertia is averaged over to see whether it still falls


class KMeansError(SenoneError):
    """Features that cannot be clustered: too few, all alike, or not finite."""


class Fitted(NamedTuple):
    """The centres, the mean squared distance of a frame to its own, how many frames were seen, and batches learnt."""

    centroids: Float[Tensor, "cluster dim"]
    inertia: float
    frames: int
    steps: int


class KMeans(nn.Module):
    """One level: the nearest of `clusters` centroids. (batch dim frame) <-> (batch 1 frame). Never below fp32."""

    centroids: Tensor

    def __init__(self, clusters: int, dim: int) -> None:
        super().__init__()
        self.sizes = (clusters,)
        self.register_buffer("centroids", torch.randn(clusters, dim))

    def forward(self, z: Float[Tensor, "batch dim frame"], levels: Tensor | int | None = None) -> Quantized:
        """Straight-through. It learns nothing: `fit` does, so there are no losses."""
        codes = self.encode(z)
        return Quantized(z + (self.decode(codes).to(z) - z).detach(), codes, {})

    @torch.no_grad()
    def encode(self, z: Float[Tensor, "batch dim frame"], levels: int | None = None) -> Int[Tensor, "batch 1 frame"]:
        with torch.autocast(z.device.type, enabled=False):
            return nearest(full(z).transpose(1, 2).flatten(0, 1), self.centroids)[0].view(len(z), 1, -1)

    def decode(self, codes: Int[Tensor, "batch 1 frame"]) -> Float[Tensor, "batch dim frame"]:
        return nn.functional.embedding(codes[:, 0], self.centroids).transpose(1, 2)


def nearest(
    x: Float[Tensor, "row dim"], centroids: Float[Tensor, "cluster dim"]
) -> tuple[Int[Tensor, "row"], Float[Tensor, "row"]]:
    """The nearest centre of each row, the first of equals (see `quantize.TIE`), and its squared distance."""
    centres = centroids.to(x)
    square, turned = squares(centres), centres.T.contiguous()
    index, least = x.new_empty(len(x), dtype=torch.long), x.new_empty(len(x))
    for rows, i, d in zip(x.split(ROWS), index.split(ROWS), least.split(ROWS), strict=True):
        # |x - c|^2 without |x|^2: one matrix product, and no (row, cluster, dim) tensor
        low, place = torch.addmm(square, rows, turned, alpha=-2).min(1)
        i.copy_(place)
        d.copy_((low + rows.square().sum(1)).clamp(min=0))
    return index, least


@torch.no_grad()
def fit(
    features: Iterable[Float[Tensor, "_ dim"]],
    clusters: int,
    seed: int = 0,
    *,
    batch: int = 10_000,
    starts: int = 5,
    patience: int = 100,
    epochs: int = 100,
    memory: int = MEMORY,
) -> Fitted:
    """Cluster frames that come in pieces of any length, in single precision where the pieces are.

    The frames pass once, through a pool of `memory` bytes that shuffles them: neighbours in time are alike, and a batch
    of a few recordings is not what the centres are to be the mean of. The first centres are the best of `starts`
    k-means++ on a sample of the first poolful. At the end, batches go on being drawn from the pool (which is all
    there was, if that fitted) until the inertia has not fallen for `patience` of them, or for `epochs` of the pool.
    A centre that nothing has been given to by then moves to a frame, the likelier the further that is from the rest.
    Raises KMeansError.
    """
    if clusters < 2:
        raise KMeansError(f"k-means needs at least 2 clusters, got {clusters}")
    random = torch.Generator().manual_seed(seed)
    pieces = _checked(features)
    held, count = [], 0
    for piece in pieces:
        held.append(piece.float())
        count += len(piece)
        if count * piece[0].numel() * 4 >= memory and count >= 2 * max(batch, clusters):
            break
    if count < clusters:
        raise KMeansError(f"{count} frames are too few for {clusters} clusters")
    pool = torch.cat(held)
    del held
    pool = pool[torch.randperm(count, generator=random)]
    sample = pool[: max(batch, 20 * clusters)]
    centres = min((_plus_plus(sample, clusters, random) for _ in range(starts)), key=lambda c: _inertia(sample, c))
    weights, steps, since = torch.zeros(clusters, dtype=torch.float64), 0, 0

    def learn(rows: Tensor) -> float:
        """One step: every centre becomes the mean of all rows it was ever given. Returns the inertia before it."""
        nonlocal steps, since
        index, distance = nearest(rows, centres)
        new = torch.bincount(index.cpu(), minlength=clusters).double()
        total = torch.zeros_like(centres).index_add_(0, index, rows)
        weights.add_(new)
        share = 1 / weights.clamp(min=1).to(centres)[:, None]
        centres.add_((total - new.to(centres)[:, None] * centres) * share)
        steps, since = steps + 1, since + len(rows)
        if since >= 10 * clusters:
            _revive(centres, weights, rows, distance, random)
            since = 0
        return float(distance.mean(dtype=torch.float64))

    for piece in _regrouped(pieces, batch):
        count += len(piece)
        place = torch.randperm(len(pool), generator=random)[: len(piece)]
        rows = pool[place]
        pool[place] = piece
        learn(rows)
    average = best = None
    still = 0
    for _ in range(epochs):
        for place in torch.randperm(len(pool), generator=random).split(batch):
            inertia = learn(pool[place])
            average = inertia if average is None else average + (inertia - average) / SMOOTH
            still = still + 1 if best is not None and average >= best else 0
            best = average if best is None else min(best, average)
        if still >= patience:
            break
    return Fitted(centres, _inertia(pool, centres), count, steps)


def _plus_plus(x: Tensor, clusters: int, random: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): each centre a frame drawn by its squared distance to the ones
    before, the best of 2 + log(clusters) draws. Raises KMeansError if frames run out before clusters do."""
    square, draws = x.square().sum(1), 2 + int(log(clusters))
    chosen = [int(torch.randint(len(x), (1,), generator=random))]
    distance = (square + square[chosen[0]] - 2 * (x @ x[chosen[0]])).clamp(min=0)
    distance[_alike(x, chosen[0])] = 0
    for _ in range(clusters - 1):
        if not float(distance.sum()) > 0:
            raise KMeansError(f"only {len(chosen)} different frames for {clusters} clusters")
        chance = distance.cumsum(0, dtype=torch.float64).cpu()
        drawn = torch.searchsorted(chance, torch.rand(draws, generator=random).double() * chance[-1], right=True)
        drawn = drawn.clamp(max=len(x) - 1).to(x.device)
        far = torch.addmm(square[None], x[drawn], x.T, alpha=-2).add_(square[drawn, None])
        least = torch.minimum(far.clamp_(min=0), distance)
        pick = int(least.sum(1).argmin())
        chosen.append(int(drawn[pick]))
        distance = least[pick]
        distance[_alike(x, chosen[-1])] = 0
    return x[chosen].clone()


def _alike(x: Tensor, row: int) -> Tensor:
    """Rows equal to that one: rounding may leave them a distance above 0."""
    return (x == x[row]).all(1)


def _revive(centres: Tensor, weights: Tensor, rows: Tensor, distance: Tensor, random: torch.Generator) -> None:
    empty = (weights == 0).nonzero()[:, 0]
    far = min(len(empty), int((distance > 0).sum()))
    if far:
        place = torch.multinomial(distance.cpu(), far, generator=random)
        centres[empty[:far].to(centres.device)] = rows[place.to(rows.device)]


def _inertia(x: Tensor, centres: Tensor) -> float:
    return float(nearest(x, centres)[1].mean(dtype=torch.float64))


def _checked(features: Iterable[Tensor]) -> Iterator[Tensor]:
    width = None
    for piece in features:
        if piece.ndim != 2 or width not in (None, piece.shape[1]):
            raise KMeansError(f"features must be (frame, {width or 'dim'}), got {tuple(piece.shape)}")
        if not bool(torch.isfinite(piece).all()):
            raise KMeansError("features hold NaN or infinite values")
        if len(piece):
            width = piece.shape[1]
            yield piece


def _regrouped(pieces: Iterator[Tensor], rows: int) -> Iterator[Tensor]:
    """The same frames, `rows` at once, but for the last."""
    held, count = [], 0
    for piece in pieces:
        held.append(piece.float())
        count += len(piece)
        if count >= rows:
            *whole, rest = torch.cat(held).split(rows)
            if len(rest) == rows:
                whole, rest = [*whole, rest], rest[:0]
            yield from whole
            held, count = [rest.clone()], len(rest)
    if count:
        yield torch.cat(held)
