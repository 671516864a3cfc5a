"""The contrastive loss of wav2vec 2.0 (2006.11477 §3.2, eq. 3): find a frame's own quantized vector among others."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


class Contrast(NamedTuple):
    """Sums over frames: the loss in nats; 1 if its own vector is nearer than all distractors; the share of its
    distractors that equal its own vector and do not count."""

    loss: Float[Tensor, ""]
    correct: Float[Tensor, ""]
    same: Float[Tensor, ""]


def distractors(
    mask: Bool[Tensor, "batch frame"], count: int = 100, generator: torch.Generator | None = None
) -> Int[Tensor, "masked count"]:
    """For each masked frame, `count` other masked frames of the same row, uniform, with replacement.

    Frames are numbered as `x[mask]` has them. A frame that is alone in its row gets itself.
    """
    rows = mask.sum(1)
    others = rows.repeat_interleave(rows)[:, None]
    start = (rows.cumsum(0) - rows).repeat_interleave(rows)[:, None]
    own = torch.arange(len(others), device=mask.device)[:, None] - start
    draw = torch.rand(len(others), count, generator=generator, device=mask.device, dtype=torch.float64)
    draw = (draw * (others - 1)).long()  # below others - 1: in double precision no product rounds up to it
    draw = draw + (draw >= own).long()
    return start + draw.clamp(max=others - 1)


def info_nce(
    context: Float[Tensor, "masked dim"],
    target: Float[Tensor, "masked dim"],
    negatives: Int[Tensor, "masked count"],
    codes: Int[Tensor, "group masked"],
    temperature: float = 0.1,
) -> Contrast:
    """-log softmax of cosine / temperature, over a frame's target and its distractors target[negatives].

    Distractors with the codes of the target are the target, and left out. In single precision at least.
    """
    with torch.autocast(context.device.type, enabled=False):
        context, target = (x if x.dtype == torch.float64 else x.float() for x in (context, target))
        # All pairs at once: one matrix product costs less than the distractors' vectors would take to copy.
        cosines = F.normalize(context, dim=-1) @ F.normalize(target, dim=-1).T
        same = (codes[:, negatives] == codes[:, :, None]).all(0)
        wrong = cosines.gather(1, negatives).masked_fill(same, float("-inf"))
        right = cosines.diagonal()
        logits = torch.cat([right[:, None], wrong], 1) / temperature
        loss = F.cross_entropy(logits, torch.zeros_like(negatives[:, 0]), reduction="sum")
        correct = (right > wrong.amax(1)).sum().to(loss)
    return Contrast(loss, correct, same.to(loss).mean(1).sum())
