"""Linear discriminant analysis in pieces."""

import numpy as np
import torch
from scipy.linalg import eigh

from senone.quantize.discriminant import RIDGE, Scatter


def classes(rows=3000, seed=0):
    """Four classes that differ in dimension 2 a lot, in 4 a little; dimension 0 is loud and says nothing."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (rows,), generator=random)
    x = torch.randn(rows, 6, generator=random) * torch.tensor([9.0, 1, 0.5, 1, 0.5, 1])
    x[:, 2] += labels.float()
    x[:, 4] += 0.5 * (labels % 2)
    return x + 3, labels


def test_directions_are_those_of_scipy():
    x, labels = classes()
    scatter = Scatter(4, 6)
    for rows, some in zip(x.split(700), labels.split(700), strict=True):
        scatter.add(rows, some)
    found = scatter.directions(6).double()
    data, mean = x.double().numpy(), x.double().mean(0).numpy()
    centres = np.stack([data[labels == k].mean(0) for k in range(4)]) - mean
    between = sum((labels == k).double().mean().item() * np.outer(c, c) for k, c in enumerate(centres))
    total = np.cov(data.T, bias=True)
    ratio, vectors = eigh(between, total - between + RIDGE * np.trace(total) / 6 * np.eye(6))
    ratio, vectors = ratio[::-1].clip(0), vectors[:, ::-1]
    for k in range(3):  # four classes tell no more apart
        wanted = torch.from_numpy(vectors[:, k] * np.sqrt(ratio[k] / (1 + ratio[k])))
        torch.testing.assert_close(found[:, k] * torch.sign(found[:, k] @ wanted), wanted, rtol=1e-4, atol=1e-5)
    assert float(found[:, 3:].abs().max()) < 1e-3


def test_what_is_loud_and_says_nothing_goes():
    x, labels = classes()
    scatter = Scatter(4, 6)
    scatter.add(x, labels)
    first = scatter.directions(1)
    assert first.shape == (6, 1) and int(first.abs().argmax()) == 2
    assert float((x @ first)[labels == 3].mean() - (x @ first)[labels == 0].mean()) ** 2 > 20


def test_a_class_without_members_changes_nothing():
    x, labels = classes()
    few, more = Scatter(4, 6), Scatter(7, 6)
    few.add(x, labels)
    more.add(x, labels)
    torch.testing.assert_close(few.directions(3), more.directions(3))
