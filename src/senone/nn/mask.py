"""Span masks of wav2vec 2.0 (2006.11477 §3.1, appendix A) and HuBERT: over frames, and over channels in fine-tuning."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from senone.errors import SenoneError


class MaskError(SenoneError):
    """An utterance too short for its spans."""


def keyed(seed: int, epoch: int, utterance: int) -> np.random.Generator:
    """Random numbers of one utterance in one epoch, whatever the process, the batch, or the step a run resumed at."""
    return np.random.default_rng((seed, epoch, utterance))


def spans(
    frames: int, p: float, length: int = 10, *, rng: np.random.Generator, least: int = 2
) -> Bool[np.ndarray, " frames"]:
    """True where masked: the union of spans of `length` frames that may overlap.

    n = max(least, floor(p frames + U)) starts, without replacement from [0, frames - length), so that the last frame
    stays: nothing is ever masked whole. Of fewer than 2 `length` frames, spans are half as long as there are frames.
    Expected share: 1 - (1 - p)^length. Untrimmed, as the paper's statistics are; the rows of a batch differ in count.
    """
    length = min(length, frames // 2)
    count = min(max(least, int(p * frames + rng.random())), frames - length if length else 0)
    starts = rng.choice(max(frames - length, 1), count, replace=False)
    mask = np.zeros(frames, bool)
    mask[(starts[:, None] + np.arange(length)).ravel()] = True
    return mask


def fairseq_spans(
    lengths: Sequence[int],
    p: float,
    length: int = 10,
    *,
    seed: int,
    epoch: int,
    indices: Sequence[int],
    trim: bool = True,
    least: int = 2,
) -> Bool[np.ndarray, "batch frames"]:
    """The masks that fairseq draws for a batch, bit for bit (`compute_mask_indices`; its mask_prob is p length).

    lengths: valid frames of each row; indices: of the utterances in their data set. trim: every row is thinned, frame
    by frame, to the smallest count of the batch, as fairseq does by default. Raises MaskError where fairseq refuses:
    spans that cover a whole row.
    """
    rows = []
    rng = np.random.default_rng()
    for frames, index in zip(lengths, indices, strict=True):
        rng = np.random.default_rng(int(hash((seed, epoch, int(index))) % 1e6))  # a hash of integers is no secret
        count = max(least, int(p * length * frames / float(length) + rng.random()))
        reach = length if frames - length > count else frames - count - 1
        starts = rng.choice(frames - reach, count, replace=False)
        row = np.unique(starts[:, None] + np.arange(length))
        row = row[row < frames]
        if len(row) >= frames:
            raise MaskError(f"utterance {index} has {frames} frames, all of which {count} spans of {length} mask")
        rows.append(row)
    mask = np.zeros((len(rows), max(lengths)), bool)
    smallest = min(len(row) for row in rows)
    for i, row in enumerate(rows):
        if trim and len(row) > smallest:
            row = rng.choice(row, smallest, replace=False)  # with the generator of the last row, as fairseq has it
        mask[i, row] = True
    return mask
