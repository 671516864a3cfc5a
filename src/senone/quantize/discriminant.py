"""Which directions tell classes apart: linear discriminant analysis of vectors that do not fit into memory.

With the clusters of k-means as classes it is a way to a better metric without any labels: cluster, find what tells the
clusters apart, cluster again in there (Heck, Sakti and Nakamura 2016, "Unsupervised linear discriminant analysis for
supporting DPGMM clustering in the zero resource scenario"; docs/log.md for what it gives here).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

RIDGE = 1e-4  # of the mean variance, added to that within classes: directions that never vary tell nothing


class Scatter:
    """Sums over vectors and their classes, in double precision; `add` them piece by piece."""

    def __init__(self, classes: int, dim: int) -> None:
        self.count = torch.zeros(classes, dtype=torch.float64)
        self.sums = torch.zeros(classes, dim, dtype=torch.float64)
        self.squares = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, x: Float[Tensor, "row dim"], labels: Int[Tensor, "row"]) -> None:
        """Some vectors, and the class of each."""
        x = x.double()
        self.count += torch.bincount(labels, minlength=len(self.count))
        self.sums.index_add_(0, labels, x)
        self.squares += x.T @ x

    def directions(self, width: int) -> Float[Tensor, "dim {width}"]:
        """The `width` directions in which classes differ most against the spread within them, strongest first.

        Each is scaled so that the spread within is 1, then by the root of the share of its variance that is between
        classes: one that tells little apart counts little in a distance. float32.
        """
        total = self.count.sum()
        mean = self.sums.sum(0) / total
        centres = self.sums / self.count.clamp(min=1)[:, None] - mean
        between = (centres * (self.count / total)[:, None]).T @ centres
        within = self.squares / total - mean[:, None] * mean - between
        within += RIDGE * (within + between).diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)
        root = torch.linalg.cholesky(within)
        half = torch.linalg.solve_triangular(root, between, upper=False)
        ratio, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.T, upper=False))
        ratio, vectors = ratio.flip(0)[:width].clamp(min=0), vectors.flip(1)[:, :width]
        found = torch.linalg.solve_triangular(root.T, vectors, upper=True)
        return (found * (ratio / (1 + ratio)).sqrt()).float()
