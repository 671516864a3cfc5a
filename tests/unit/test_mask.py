"""Span masks: the paper's statistics, never a crash, never everything, and fairseq's bits."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from senone.nn.mask import MaskError, fairseq_spans, keyed, spans


def runs(mask):
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return edges[1::2] - edges[::2]


def test_the_statistics_of_appendix_a():
    """p=.065 over 15 s: about .49 of the frames, spans of 14.7 frames on average, 10 in the median, up to about 100."""
    masks = [spans(749, 0.065, rng=keyed(0, 0, i)) for i in range(3000)]
    lengths = np.concatenate([runs(mask) for mask in masks])
    assert np.mean(masks) == pytest.approx(0.490, abs=0.002)
    assert lengths.mean() == pytest.approx(14.67, abs=0.15)
    assert np.median(lengths) == 10 == lengths.min() and 70 < lengths.max() < 200
    assert not np.any([mask[-1] for mask in masks]) and np.any([mask[-2] for mask in masks])


@pytest.mark.parametrize(("p", "share"), [(0.065, 0.489), (0.075, 0.541), (0.08, 0.566)])
def test_the_expected_share(p, share):
    assert np.mean([spans(5000, p, rng=keyed(1, 0, i)) for i in range(200)]) == pytest.approx(share, abs=0.005)


@given(st.integers(0, 60), st.floats(0, 1), st.integers(1, 30), st.integers(0, 5), st.integers(0, 2**31))
def test_any_length_works_and_something_stays(frames, p, length, least, seed):
    mask = spans(frames, p, length, rng=np.random.default_rng(seed), least=least)
    assert mask.shape == (frames,) and mask.dtype == bool
    if frames > 1:
        assert not mask.all()
        assert mask.any() or max(least, int(p * frames)) == 0
    elif frames == 1:
        assert not mask.any()


def test_channels_are_spans_too():
    masks = [spans(768, 0.008, 64, rng=keyed(0, 0, i), least=0) for i in range(2000)]
    assert np.mean(masks) == pytest.approx(1 - (1 - 0.008) ** 64, abs=0.02)
    assert not spans(768, 0.0, 64, rng=keyed(0, 0, 0), least=0).any()


def test_masks_are_a_function_of_seed_epoch_and_utterance():
    first = spans(400, 0.065, rng=keyed(3, 1, 7))
    assert np.array_equal(first, spans(400, 0.065, rng=keyed(3, 1, 7)))
    for other in ((4, 1, 7), (3, 2, 7), (3, 1, 8), (1, 3, 7)):
        assert not np.array_equal(first, spans(400, 0.065, rng=keyed(*other)))


def test_fairseq_rows_keep_to_themselves_until_trimmed():
    indices, lengths = [5, 900, 31], [499, 700, 781]
    options = {"seed": 2, "epoch": 3}
    whole = fairseq_spans(lengths, 0.065, indices=indices, trim=False, **options)
    for i in range(3):
        alone = fairseq_spans([lengths[i]], 0.065, indices=[indices[i]], trim=False, **options)
        assert np.array_equal(whole[i, : lengths[i]], alone[0]) and not whole[i, lengths[i] :].any()
    thin = fairseq_spans(lengths, 0.065, indices=indices, **options)
    assert set(thin.sum(1)) == {whole.sum(1).min()} and not (thin & ~whole).any()


@pytest.mark.parametrize(
    ("lengths", "trim", "counts", "digest"),
    [
        ([499] * 4, True, [213, 213, 213, 213], "fdbf69ecc47ad84e"),
        ([499] * 4, False, [213, 217, 253, 250], "6ffaaa82b0a395fd"),
        ([99, 781, 300], True, [38, 38, 38], "85502f70d89b03bd"),
        ([99, 781, 300], False, [38, 376, 144], "bc5e224eba3026fe"),
    ],
)
def test_fairseq_bits(lengths, trim, counts, digest):
    """Digests of what fairseq's own compute_mask_indices (3d262bb2) returned for mask_prob .65, seed 1, epoch 4."""
    indices = range(7, 7 + len(lengths))
    mask = fairseq_spans(lengths, 0.065, seed=1, epoch=4, indices=indices, trim=trim)
    assert mask.sum(1).tolist() == counts
    assert hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16] == digest


def test_fairseq_refuses_a_row_that_would_vanish():
    with pytest.raises(MaskError, match="utterance 9 has 11 frames, all of which 2 spans of 10 mask"):
        for epoch in range(50):
            fairseq_spans([11], 0.065, seed=0, epoch=epoch, indices=[9])
