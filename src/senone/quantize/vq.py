"""Residual vector quantization with codebooks learned by moving averages (SoundStream §III-C, Algorithm 1).

The two faults that most copies share are absent here, and tests hold that: k-means starts *sum and count* together,
so the first averaging step keeps the codebook; a revived code enters sum and count, so it survives. The residual is
detached between levels, so every level's commitment reaches the encoder.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn

from senone.quantize import Quantized, full, squares

FEW = 8  # rows up to which a product goes through the codes from first to last in half the time


class Codebook(nn.Module):
    """`size` vectors of `dim`; a code is embedding_sum / cluster_usage. Never below fp32."""

    cluster_usage: Tensor
    embedding_sum: Tensor
    moves: Tensor

    def __init__(self, size: int, dim: int, decay: float = 0.99, threshold: float = 0.1) -> None:
        super().__init__()
        self.decay, self.threshold = decay, threshold
        self.register_buffer("cluster_usage", torch.ones(size))
        self.register_buffer("embedding_sum", torch.randn(size, dim) * 0.1)
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64))  # averaging steps done, k-means the first
        self._table: tuple = (None,)

    @property
    def codes(self) -> Float[Tensor, "size dim"]:
        """The vectors."""
        return self._tables()[0]

    def nearest(self, x: Float[Tensor, "row dim"]) -> Int[Tensor, "row"]:
        """Index of the nearest code; the first of equals (see `quantize.TIE`)."""
        return self.distances(x).argmin(1)

    def distances(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row size"]:
        """|x - code|^2 - |x|^2: one matrix product instead of a (row, size, dim) tensor."""
        codes, square, turned = self._tables()
        if 1 < len(x) <= FEW:
            return torch.addmm(square[:, None], codes, x.T, alpha=-2).T
        return torch.addmm(square, x, turned, alpha=-2)

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, their squared lengths, codes (dim size): once for every state of the buffers."""
        total, usage = self.embedding_sum, self.cluster_usage
        key = (id(total), total._version, id(usage), usage._version)
        if self._table[0] != key:
            with torch.inference_mode(False):  # whoever asks first, these serve all
                codes = total / usage.clamp(min=1e-5)[:, None]
                # the codes turned in memory: one row against them, in double precision, takes an eighth of the time
                self._table = key, codes, squares(codes), codes.T.contiguous()
        return self._table[1:]

    def forward(self, index: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape dim"]:
        return nn.functional.embedding(index, self.codes)

    @torch.no_grad()
    def learn(self, x: Float[Tensor, "row dim"], index: Int[Tensor, "row"]) -> None:
        """One averaging step on the rows and their codes, after reviving the codes hardly used.

        The paper's decay of 0.99 is reached within some 400 steps: at first the encoder moves faster than that, and a
        codebook that stays behind ends as one code for everything (docs/log.md). No rows, on all processes: no step.
        """
        fresh = _gather(x)
        if not len(fresh):
            return
        self._revive(fresh)
        count = torch.zeros_like(self.cluster_usage).index_add_(0, index, torch.ones_like(x[:, 0]))
        total = torch.zeros_like(self.embedding_sum).index_add_(0, index, x)
        _all_reduce(count)
        _all_reduce(total)
        new = 1 - ((1 + self.moves) / (10 + self.moves)).clamp(max=self.decay)
        self.cluster_usage.lerp_(count, new)
        self.embedding_sum.lerp_(total, new)
        self.moves += 1

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "row dim"], steps: int = 10) -> None:
        """k-means on the first batch (gathered over processes, solved on the first)."""
        x, size = _gather(x), len(self.cluster_usage)
        centres = _sample(x, size) + 1e-4 * x.std() * torch.randn(size, x.shape[1], device=x.device)
        for _ in range(steps):
            near = torch.cdist(x, centres).argmin(1)
            count = torch.bincount(near, minlength=size).to(x)
            total = torch.zeros_like(centres).index_add_(0, near, x)
            centres = torch.where((count > 0)[:, None], total / count.clamp(min=1)[:, None], centres)
        count = torch.bincount(torch.cdist(x, centres).argmin(1), minlength=size).to(x).clamp(min=1)
        _broadcast(centres)
        _broadcast(count)
        self.cluster_usage.copy_(count)
        self.embedding_sum.copy_(centres * count[:, None])
        self.moves.fill_(1)

    def _revive(self, x: Tensor) -> None:
        """Give codes used less than `threshold` of the mean a random row (of all processes), in sum and count alike."""
        usage = self.cluster_usage
        dead = usage < self.threshold * usage.mean()
        fresh = _sample(x, len(usage))
        _broadcast(fresh)
        mean = usage.mean()
        self.embedding_sum.copy_(torch.where(dead[:, None], fresh * mean, self.embedding_sum))
        self.cluster_usage.copy_(torch.where(dead, mean, usage))


class ResidualVQ(nn.Module):
    """`levels` codebooks in a row, each on what the ones before left: (batch dim frame) <-> (batch level frame).

    beam: how many choices of codes `encode` goes on with from level to level; 1 is the paper's, the nearest code each
    time. More find codes whose sum is nearer to z (not in the paper). Codebooks learn from the nearest always.
    """

    def __init__(self, dim: int, size: int = 1024, levels: int = 8, decay: float = 0.99, beam: int = 1) -> None:
        super().__init__()
        self.sizes, self.beam = (size,) * levels, beam
        self.books = nn.ModuleList(Codebook(size, dim, decay) for _ in range(levels))

    def __iter__(self) -> Iterator[Codebook]:
        """The codebooks, level by level."""
        return iter(self.books)  # type: ignore[arg-type]

    def forward(self, z: Float[Tensor, "batch dim frame"], levels: Tensor | int | None = None) -> Quantized:
        """Straight-through; in training mode the codebooks learn. `levels`: one number, or (batch,) numbers, in use.

        losses: "commit", the mean over levels in use of |residual - code|^2 (mean over dimensions).
        """
        count = len(self.sizes)
        use = torch.as_tensor(count if levels is None else levels, device=z.device).expand(len(z))
        with torch.autocast(z.device.type, enabled=False):
            x = full(z).transpose(1, 2)
            residual, total, codes = x, torch.zeros_like(x), []
            commit = x.new_zeros(len(x))
            # asked once a step, not once a level: on a GPU each question waits for all work before it
            fresh = self.training and not bool(torch.stack([book.moves for book in self]).all())
            used = use.tolist() if self.training else []
            given = self.encode(z) if self.beam > 1 and not self.training else None
            for i, book in enumerate(self):
                active = (use > i).float()[:, None, None]
                some = _first(use <= i, sum(n > i for n in used))
                rows = residual.detach()[some].flatten(0, 1)
                if fresh and not int(book.moves) and len(_gather(rows)):
                    book.initialise(rows)
                if given is None:
                    codes.append(book.nearest(residual.detach().flatten(0, 1)).view(residual.shape[:2]))
                else:
                    codes.append(given[:, i])
                part = book(codes[-1])
                # the residual may carry the gradient of z, never that of a code
                commit = commit + (residual - part.detach()).square().mean((1, 2)) * active[:, 0, 0]
                if self.training:
                    book.learn(rows, codes[-1][some].flatten())
                residual, total = residual - part.detach() * active, total + part.detach() * active
            z = x + (total - x).detach()
        return Quantized(z.transpose(1, 2), torch.stack(codes, 1), {"commit": (commit / use).mean()})

    @torch.no_grad()
    def encode(
        self, z: Float[Tensor, "batch dim frame"], levels: int | None = None
    ) -> Int[Tensor, "batch level frame"]:
        """The first codes of all levels, where a beam looks ahead: the first level takes its nearest code always."""
        with torch.autocast(z.device.type, enabled=False):
            residual, codes = full(z).transpose(1, 2), []
            if self.beam > 1 and z.numel():
                return self._search(residual.flatten(0, 1)).view(*residual.shape[:2], -1).transpose(1, 2)[:, :levels]
            for book in islice(self, levels):
                index = book.nearest(residual.flatten(0, 1)).view(residual.shape[:2])
                codes.append(index)
                residual = residual - book(index)
        return torch.stack(codes, 1)

    def _search(self, x: Float[Tensor, "row dim"]) -> Int[Tensor, "row level"]:
        """Beam search for the codes whose sum is nearest to x."""
        residual, cost, steps = x, x.square().sum(1, keepdim=True), []  # (row x way, dim), (row x way, 1)
        for i, book in enumerate(self):
            costs = (book.distances(residual) + cost).reshape(len(x), -1)
            cost, best = costs.topk(min(self.beam, costs.shape[1]) if i else 1, largest=False)
            way, code = best // self.sizes[i], best % self.sizes[i]
            first = torch.arange(0, len(residual), len(residual) // len(x), device=x.device)  # way of each row
            residual = residual.index_select(0, (first[:, None] + way).view(-1)) - book(code.view(-1))
            cost = cost.view(-1, 1)
            steps.append((way, code))
        codes, at = [], torch.zeros_like(way[:, :1])  # back from the best of the last level
        for way, code in reversed(steps):
            codes.append(code.gather(1, at))
            at = way.gather(1, at)
        return torch.cat(codes[::-1], 1)

    def decode(self, codes: Int[Tensor, "batch level frame"]) -> Float[Tensor, "batch dim frame"]:
        parts = [book(codes[:, i]) for i, book in enumerate(islice(self, codes.shape[1]))]
        return torch.stack(parts).sum(0).transpose(1, 2)


def _first(last: Tensor, count: int) -> Tensor | slice:
    """Where `last` is false, in order, given that this is so `count` times: a GPU need not say how often."""
    return slice(None) if count == len(last) else last.byte().argsort(stable=True)[:count]


def _sample(x: Tensor, count: int) -> Tensor:
    """`count` rows of x at random, each at most once where there are enough."""
    if len(x) >= count:
        return x[torch.randperm(len(x), device=x.device)[:count]]
    return x[torch.randint(len(x), (count,), device=x.device)]


def _parallel() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _all_reduce(x: Tensor) -> None:
    if _parallel():
        distributed.all_reduce(x)


def _broadcast(x: Tensor) -> None:
    if _parallel():
        distributed.broadcast(x, 0)


def _gather(x: Tensor) -> Tensor:
    """The rows of all processes, in rank order; their numbers may differ."""
    if not _parallel():
        return x
    parts: list = [None] * distributed.get_world_size()
    counts = [torch.zeros((), dtype=torch.long, device=x.device) for _ in parts]
    distributed.all_gather(counts, torch.tensor(len(x), device=x.device))
    longest = max(int(n) for n in counts)
    padded = torch.cat([x, x.new_zeros(longest - len(x), x.shape[1])])
    parts = [torch.zeros_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])
