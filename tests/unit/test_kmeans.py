"""k-means: as good as scikit-learn's, the same labels, and in bounded memory."""

import numpy as np
import pytest
import torch

from senone.quantize.kmeans import KMeans, KMeansError, fit, nearest


def blobs(frames=6000, centres=12, dim=5, seed=0, spread=0.4) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(centres, dim, generator=random)
    which = torch.randint(centres, (frames,), generator=random).sort()[0]  # neighbours alike, as in speech
    return means[which] + spread * torch.randn(frames, dim, generator=random)


def inertia(x, centroids) -> float:
    return float(torch.cdist(x.double(), centroids.double()).square().min(1)[0].mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_is_the_nearest(dtype):
    x, centroids = torch.randn(9001, 7, dtype=dtype), torch.randn(30, 7, dtype=dtype)
    index, distance = nearest(x, centroids)
    table = ((x[:, None] - centroids) ** 2).sum(2)
    assert torch.equal(index, table.argmin(1))
    torch.testing.assert_close(distance, table.min(1)[0], atol=1e-4, rtol=1e-4)


def test_of_equal_centroids_the_first_is_taken():
    centroids = torch.randn(4, 6).double()
    model = KMeans(5, 6)
    model.double().centroids.copy_(torch.cat([centroids, centroids[1:2]]))
    z = centroids[1][None, :, None] + 1e-14 * torch.randn(1, 6, 500).double()
    assert model.encode(z).unique().tolist() == [1]


def test_labels_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.cluster")
    x = blobs()
    peer = sklearn.MiniBatchKMeans(20, n_init=1, random_state=0).fit(x.numpy())
    model = KMeans(20, 5)
    model.centroids.copy_(torch.from_numpy(peer.cluster_centers_))
    assert model.encode(x.T[None])[0, 0].tolist() == peer.predict(x.numpy()).tolist()


def test_codes_come_back_as_their_centroids():
    model, z = KMeans(6, 4), torch.randn(2, 4, 10, requires_grad=True)
    codes = model.encode(z)
    assert codes.shape == (2, 1, 10) and model.sizes == (6,)
    back = model.decode(codes)
    assert torch.equal(back[1, :, 3], model.centroids[codes[1, 0, 3]])
    out = model(z)
    torch.testing.assert_close(out.z, back)
    out.z.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z)) and not out.losses  # type: ignore[arg-type]


@pytest.mark.parametrize("clusters", [12, 40])
@pytest.mark.parametrize("memory", [2**28, 2000 * 5 * 4])
def test_fit_is_as_good_as_scikit_learn(clusters, memory):
    """Also where only a third of the frames, which come in order of their blobs, are ever held."""
    sklearn = pytest.importorskip("sklearn.cluster")
    x = blobs()[torch.randperm(6000, generator=torch.Generator().manual_seed(1))]
    fitted = fit(x.split(71), clusters, 0, batch=500, memory=memory, patience=20)
    peer = sklearn.MiniBatchKMeans(
        clusters, batch_size=500, n_init=5, tol=0.0, max_no_improvement=20, reassignment_ratio=0.0, random_state=0
    ).fit(x.numpy())
    assert fitted.frames == 6000 and fitted.centroids.shape == (clusters, 5)
    theirs = inertia(x, torch.from_numpy(peer.cluster_centers_))
    assert inertia(x, fitted.centroids) < 1.03 * theirs
    if memory == 2**28:
        assert fitted.inertia == pytest.approx(inertia(x, fitted.centroids), rel=1e-4)


def test_every_centre_is_the_mean_of_what_it_was_given():
    """One batch, one step: exact means of the cells of the first centres."""
    x = blobs(400, 3)
    first = fit([x], 3, 0, batch=400, epochs=0)
    after = fit([x], 3, 0, batch=400, epochs=1)
    index = nearest(x, first.centroids)[0]
    expected = torch.stack([x[index == k].mean(0) for k in range(3)])
    torch.testing.assert_close(after.centroids, expected, atol=1e-4, rtol=1e-4)
    assert (first.steps, after.steps) == (0, 1)


def test_the_pool_is_bounded():
    """A stream far longer than the pool: pieces are not kept."""
    alive = []

    class Piece(torch.Tensor):
        pass

    def stream():
        import weakref

        for i in range(300):
            piece = torch.randn(100, 4, generator=torch.Generator().manual_seed(i)).as_subclass(Piece)
            alive.append(weakref.ref(piece))
            assert sum(ref() is not None for ref in alive) <= 45  # pool of 2000 frames, a batch, and a few
            yield piece
            del piece

    assert fit(stream(), 8, memory=2000 * 4 * 4, batch=500, patience=3).frames == 30_000


def test_the_seed_decides():
    pieces = blobs().split(100)
    a, b, c = (fit(pieces, 20, seed, batch=1000, patience=5).centroids for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_centre_without_frames_moves(monkeypatch):
    """First centres in one place far away: all but one are empty, and are brought back."""
    monkeypatch.setattr("senone.quantize.kmeans._plus_plus", lambda x, k, random: torch.full((k, x.shape[1]), 50.0))
    x = blobs()
    fitted = fit([x], 12, batch=1000, patience=5)
    assert len(nearest(x, fitted.centroids)[0].unique()) == 12


@pytest.mark.parametrize(
    ("pieces", "clusters", "sentence"),
    [
        ([torch.randn(5, 3)], 6, "5 frames are too few for 6 clusters"),
        ([], 2, "0 frames are too few"),
        ([torch.randn(50, 3)], 1, "at least 2 clusters, got 1"),
        ([torch.randn(4, 3).repeat(40, 1)], 6, "only 4 different frames for 6 clusters"),
        ([torch.zeros(100, 3)], 2, "only 1 different frames"),
        ([torch.randn(50, 3), torch.full((5, 3), np.nan)], 2, "NaN or infinite"),
        ([torch.randn(50, 3), torch.randn(50, 4)], 2, r"must be \(frame, 3\), got \(50, 4\)"),
    ],
)
def test_features_that_cannot_be_clustered_are_told(pieces, clusters, sentence):
    with pytest.raises(KMeansError, match=sentence):
        fit(pieces, clusters, batch=20)
