"""Distillation losses against plain loops."""

import math

import pytest
import torch

from senone.loss import distill


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def penalty(cosines: list[float]) -> float:
    return sum(math.log(1 + math.exp(-c)) for c in cosines) / len(cosines)


@pytest.fixture
def pair():
    return torch.randn(2, 6, 3), torch.randn(2, 5, 3)


def test_the_d_axis_loss_takes_a_cosine_along_time_for_each_dimension(pair):
    student, teacher = (x[:, :5].tolist() for x in pair)
    cosines = [
        cosine([frame[d] for frame in s], [frame[d] for frame in t])
        for s, t in zip(student, teacher, strict=True)
        for d in range(3)
    ]
    assert distill.d_axis(*pair).item() == pytest.approx(penalty(cosines), rel=1e-5)


def test_the_t_axis_loss_takes_a_cosine_for_each_frame_and_the_distance(pair):
    rows = [(s, t) for a, b in zip(*(x[:, :5].tolist() for x in pair), strict=True) for s, t in zip(a, b, strict=True)]
    distance = sum(abs(x - y) for s, t in rows for x, y in zip(s, t, strict=True)) / (len(rows) * 3)
    expected = distance + 0.5 * penalty([cosine(s, t) for s, t in rows])
    assert distill.t_axis(*pair, share=0.5).item() == pytest.approx(expected, rel=1e-5)


def test_the_pseudo_label_loss_is_the_units_negative_log_probability():
    logits, units = torch.randn(2, 4, 5), torch.tensor([[0, 4, 2, 1, 3], [1, 1, 0, 3, 2]])
    total = 0.0
    for row, labels in zip(logits.tolist(), units.tolist(), strict=True):
        for frame, unit in zip(row, labels[:4], strict=True):
            total -= frame[unit] - math.log(sum(math.exp(x) for x in frame))
    assert distill.pseudo_label(logits, units).item() == pytest.approx(total / 8, rel=1e-5)


def test_a_perfect_student_costs_what_the_formula_leaves():
    x = torch.randn(2, 7, 4)
    floor = math.log(1 + math.exp(-1))
    assert distill.d_axis(x, 3 * x).item() == pytest.approx(floor, rel=1e-5)
    assert distill.t_axis(x, x).item() == pytest.approx(floor, rel=1e-5)


def test_half_precision_is_not_used_even_under_autocast():
    x = torch.randn(2, 50, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = distill.d_axis(x.bfloat16(), x.detach())
    assert loss.dtype == torch.float32
    loss.backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())
