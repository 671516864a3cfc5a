"""The faults that most published quantizers share (codebooks that shrink, codes that stay dead, levels without a
gradient) are absent here, and ties do not depend on the shape of the batch."""

from math import prod

import pytest
import torch

from senone.quantize import fsq
from senone.quantize.fsq import FSQ, ResidualFSQ, collision
from senone.quantize.vq import Codebook, ResidualVQ


def clusters(rows: int = 256, size: int = 16, dim: int = 8) -> torch.Tensor:
    """`size` tight clusters about 3: (rows, dim)."""
    centres = 3 + torch.randn(size, dim)
    return centres[torch.arange(rows) % size] + 0.05 * torch.randn(rows, dim)


def vectors(batch: int = 4, dim: int = 8, frames: int = 60) -> torch.Tensor:
    return clusters(batch * frames, 16, dim).view(batch, frames, dim).transpose(1, 2).contiguous()


def trained(levels: int = 3, size: int = 16, steps: int = 20) -> ResidualVQ:
    quantizer = ResidualVQ(8, size, levels)
    for _ in range(steps):
        quantizer(vectors())
    return quantizer.eval()


def test_kmeans_survives_the_first_averaging_step():
    book, x = Codebook(16, 8), clusters()
    book.initialise(x)
    before = book.codes.clone()
    index = book.nearest(x)
    book.learn(x, index)
    # codes of nothing but clusters' means stay where they are; the usual fault divides them by their count
    used = torch.bincount(index, minlength=16) > 0
    assert used.sum() >= 8
    torch.testing.assert_close(book.codes[used], before[used], rtol=0.02, atol=0.02)
    for _ in range(100):
        book.learn(x, book.nearest(x))
    assert len(book.nearest(x).unique()) >= 8 and float(book.codes.norm(dim=1).mean()) > 7


def test_the_first_batch_initialises_and_an_average_follows():
    quantizer, z = ResidualVQ(8, 16, 1), vectors()
    (book,) = quantizer
    assert not int(book.moves)
    quantizer(z)
    assert int(book.moves)
    usage, total = book.cluster_usage.clone(), book.embedding_sum.clone()
    x = z.transpose(1, 2).flatten(0, 1)
    index = book.nearest(x)
    assert (usage >= book.threshold * usage.mean()).all()  # so none is revived
    quantizer(z)
    torch.testing.assert_close(book.cluster_usage, 0.99 * usage + 0.01 * torch.bincount(index, minlength=16))
    torch.testing.assert_close(book.embedding_sum, 0.99 * total + 0.01 * torch.zeros_like(total).index_add(0, index, x))


def test_a_dead_code_is_revived_and_used():
    book, x = Codebook(16, 8), clusters()
    book.initialise(x)
    book.cluster_usage[3], book.embedding_sum[3] = 1e-3, 1e-3 * 100  # a code at 100, where nothing is
    assert 3 not in book.nearest(x)
    book.learn(x, book.nearest(x))
    assert float((book.codes[3] - x).square().sum(1).min()) < 1e-3  # it sits on a vector of this batch
    assert 3 in book.nearest(x)
    book.learn(x, book.nearest(x))
    assert 3 in book.nearest(x) and float(book.cluster_usage[3]) > book.threshold * float(book.cluster_usage.mean())


@pytest.mark.parametrize("rows", [torch.zeros(40, 8), torch.ones(3, 8), torch.randn(5, 8)])
def test_few_or_equal_vectors_make_a_finite_codebook(rows):
    quantizer = ResidualVQ(8, 16, 2)
    out = quantizer(rows.T[None])
    assert torch.isfinite(out.z).all() and all(torch.isfinite(book.codes).all() for book in quantizer)


def test_a_beam_finds_the_best_sum_of_codes():
    torch.manual_seed(0)
    quantizer, z = ResidualVQ(8, 6, 3), torch.randn(2, 8, 50)
    greedy = quantizer.encode(z)
    quantizer.beam = 4
    some = quantizer.encode(z)
    quantizer.beam = 36
    every = quantizer.encode(z)
    first = greedy[:, :1]
    ways = torch.cartesian_prod(torch.arange(6), torch.arange(6))  # by brute force: each choice after the first level
    tries = torch.stack([torch.cat([first, way[None, :, None].expand(2, 2, 50)], 1) for way in ways])
    errors = torch.stack([(quantizer.decode(codes) - z).square().sum(1) for codes in tries])
    best = tries.gather(0, errors.argmin(0)[None, :, None].expand(1, 2, 3, 50))[0]
    assert torch.equal(every, best) and not torch.equal(greedy, best)
    assert torch.equal(quantizer.encode(z, 2), best[:, :2])
    assert quantizer.encode(z[:, :, :0]).shape == (2, 3, 0)
    assert torch.equal(quantizer.eval()(z).codes, best)
    torch.testing.assert_close(quantizer(z).z, quantizer.decode(best))

    def error(codes):
        return float((quantizer.decode(codes) - z).square().mean())

    assert error(every) <= error(some) < error(greedy)


def test_a_beam_takes_the_first_of_equals_whatever_the_batch():
    torch.manual_seed(0)
    quantizer = ResidualVQ(8, 16, 3).double()
    quantizer.beam = 4
    for book in quantizer:  # each vector twice
        book.embedding_sum[8:] = book.embedding_sum[:8]
    z = torch.randn(6, 8, 30, dtype=torch.float64)
    z[:, :, 20:] = 0
    codes = quantizer.encode(z)
    assert codes.max() < 8
    for i in range(6):
        assert torch.equal(quantizer.encode(z[i : i + 1, :, 3:]), codes[i : i + 1, :, 3:])


def test_every_level_sends_its_commitment_to_the_encoder():
    quantizer, z = trained(), vectors(batch=1).requires_grad_()
    total = torch.zeros_like(z)
    with torch.no_grad():
        codes = quantizer.encode(z)
    for k in range(1, 4):
        (grad,) = torch.autograd.grad(k * quantizer(z, k).losses["commit"], z)
        (less,) = torch.autograd.grad((k - 1) * quantizer(z, k - 1).losses["commit"], z) if k > 1 else (0 * grad,)
        total = quantizer.decode(codes[:, :k])
        torch.testing.assert_close(grad - less, 2 * (z - total).detach() / z.numel())
        assert float((grad - less).abs().max()) > 0


def test_gradients_go_straight_through():
    z = vectors().requires_grad_()
    weight = torch.randn_like(z)
    (grad,) = torch.autograd.grad((trained()(z).z * weight).sum(), z)
    assert torch.equal(grad, weight)


def test_residual_levels_nest_and_refine():
    quantizer, z = trained(), vectors()
    codes = quantizer.encode(z)
    errors = []
    for k in range(1, 4):
        assert torch.equal(quantizer.encode(z, k), codes[:, :k])
        errors.append(float((quantizer.decode(codes[:, :k]) - z).square().mean()))
    assert errors[0] > errors[1] > errors[2]
    assert torch.equal(quantizer(z).codes, codes)
    torch.testing.assert_close(quantizer(z).z, quantizer.decode(codes))


def make_vq():
    return trained()


def make_fsq():
    return ResidualFSQ(8, (4, 4), 3)


@pytest.mark.parametrize("make", [make_vq, make_fsq])
def test_each_row_has_its_own_number_of_levels(make):
    quantizer, z = make(), vectors(3)
    out = quantizer(z, torch.tensor([1, 3, 2]))
    for row, k in enumerate((1, 3, 2)):
        torch.testing.assert_close(out.z[row], quantizer.decode(out.codes[row : row + 1, :k])[0])
        torch.testing.assert_close(out.z[row], quantizer(z[row : row + 1], k).z[0])


def test_a_level_learns_only_from_rows_that_use_it():
    quantizer, z = trained().train(), vectors(4)
    before = [float(book.cluster_usage.sum()) for book in quantizer]
    for book in quantizer:
        book.moves.fill_(1000)  # past the warm-up of the decay
        book.threshold = 0.0  # no revival
    quantizer(z, torch.tensor([1, 2, 3, 1]))
    for book, total, rows in zip(quantizer, before, (4, 2, 1), strict=True):
        assert float(book.cluster_usage.sum()) == pytest.approx(0.99 * total + 0.01 * rows * z.shape[2], rel=1e-4)


@pytest.mark.parametrize("make", [make_vq, make_fsq])
def test_autocast_does_not_reach_inside(make):
    quantizer, z = make().eval(), vectors()
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        inside, codes = quantizer(z), quantizer.encode(z)
        halves = quantizer(z.bfloat16())
    assert torch.equal(inside.z, plain.z) and torch.equal(inside.codes, plain.codes)
    assert torch.equal(codes, plain.codes) and halves.z.dtype == torch.float32


def test_equal_codes_are_told_apart_by_order_whatever_the_batch():
    """Every vector twice: with plain argmin the shape of the batch decides which of the two wins."""

    def answers(book, x):
        return [torch.cat([book.nearest(part) for part in x.split(n)]) for n in (len(x), 1, 2, 3, 50)]

    book, x = Codebook(41, 256).double(), 0.1 * torch.randn(203, 256).double()
    with torch.no_grad():
        book.embedding_sum.copy_(book.embedding_sum[torch.arange(41) % 21].clone())
    whole, *parts = answers(book, x)
    assert int(whole.max()) < 21 and all(torch.equal(part, whole) for part in parts)
    exact = (x[:, None] - book.codes[:21]).square().sum(2).argmin(1)
    assert torch.equal(whole, exact)


def test_values_on_an_edge_fall_on_one_side_whatever_the_batch():
    """Sums that cancel to 0, an edge of an even number of cells: without TIE rounding errors decide."""
    quantizer = ResidualFSQ(64, (8, 8, 8, 8), 1).double()
    with torch.no_grad():
        quantizer.enter[0].bias.zero_()
        quantizer.enter[0].weight[:, 32:] = -quantizer.enter[0].weight[:, :32].flip(1)
    half = torch.randn(1, 32, 203, dtype=torch.double)
    z = torch.cat([half, half.flip(1)], 1)
    whole = quantizer.encode(z)
    parts = [torch.cat([quantizer.encode(part) for part in z.split(n, 2)], 2) for n in (1, 2, 3, 50)]
    assert all(torch.equal(part, whole) for part in parts)
    assert (whole == sum(4 * 8**i for i in range(4))).all()


@pytest.mark.parametrize("steps", [(8, 8, 8, 8), (8, 5, 5, 5), (2, 3)])
def test_fsq_codes_and_digits_are_exact_inverses(steps):
    quantizer = ResidualFSQ(len(steps), steps, 1)
    with torch.no_grad():
        for layer in (*quantizer.enter, *quantizer.leave):
            layer.weight.copy_(torch.eye(len(steps)))
            if layer.bias is not None:
                layer.bias.zero_()
    every = torch.arange(prod(steps))[None, None]
    z = quantizer.decode(every)
    assert z.abs().max() < 1 and len({tuple(v) for v in z[0].T.tolist()}) == prod(steps)
    assert torch.equal(quantizer.encode(torch.atanh(z)), every)
    assert quantizer.encode(torch.full((1, len(steps), 1), 1e6)).item() == prod(steps) - 1
    assert quantizer.encode(torch.full((1, len(steps), 1), -1e6)).item() == 0


def test_fsq_sends_gradients_to_the_encoder_and_to_both_projections():
    quantizer, z = make_fsq(), vectors().requires_grad_()
    quantizer(z).z.square().mean().backward()
    assert z.grad is not None and float(z.grad.abs().sum()) > 0
    assert all(float(layer.weight.grad.abs().sum()) > 0 for layer in (*quantizer.enter, *quantizer.leave))


def test_collision_is_the_share_of_pairs_with_one_code(monkeypatch):
    monkeypatch.setattr(fsq, "SOFT", 1e-3)
    codes = torch.randint(12, (60,))
    y = torch.stack([codes % 4 - 2, codes // 4 - 1], 1).float()
    equal = sum(int(a == b) for i, a in enumerate(codes) for j, b in enumerate(codes) if i != j)
    assert collision(y, (4, 3)).exp().item() == pytest.approx(equal / (60 * 59), rel=1e-4)
    assert collision(y.repeat_interleave(20, 0), (4, 3)).isfinite() and collision(y[:1], (4, 3)) == 0


def test_spreading_puts_the_codes_to_use():
    """From inputs that share a few codes, "spread" alone learns projections that use many, though few digits differ."""
    quantizer, z = FSQ(8, (4,) * 4, bounds=1), 0.3 * torch.randn(1, 8, 400)
    used = [len(quantizer(z).codes.unique())]
    optim = torch.optim.Adam(quantizer.parameters(), 0.03)
    for _ in range(100):
        optim.zero_grad()
        quantizer(z).losses["spread"].backward()
        optim.step()
    used.append(len(quantizer(z).codes.unique()))
    assert used[1] > 2 * used[0] and used[1] > 0.7 * 256 * (1 - (1 - 1 / 256) ** 400), used


def test_codes_follow_the_buffers():
    """The table of codes is kept between calls, but not beyond a change."""
    book = Codebook(4, 2)
    for change in (
        lambda: book.embedding_sum.add_(1),
        lambda: book.cluster_usage.mul_(2),
        lambda: book.load_state_dict(Codebook(4, 2).state_dict()),
        book.double,
    ):
        book.codes  # noqa: B018
        change()
        assert torch.equal(book.codes, book.embedding_sum / book.cluster_usage[:, None])
