"""What SpeechTokenizer's first level learns from a self-supervised teacher (2308.16692 §3.3).

Student and teacher are cut to the shorter of the two: frame counts may differ by how each rounds. In single precision
at least, whatever the model computes in.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def d_axis(
    student: Float[Tensor, "batch frame width"], teacher: Float[Tensor, "batch frames width"]
) -> Float[Tensor, ""]:
    """-mean log sigmoid(cosine along time), one cosine for each dimension of each row: the published loss, corrected.

    0.3133 where all cosines are 1, 0.6931 where student and teacher have nothing to do with one another.
    """
    student, teacher = _shorter(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        return -F.logsigmoid(F.cosine_similarity(student, teacher, dim=1)).mean()


def t_axis(
    student: Float[Tensor, "batch frame width"], teacher: Float[Tensor, "batch frames width"], share: float = 1.0
) -> Float[Tensor, ""]:
    """Mean absolute difference, and `share` times -mean log sigmoid(cosine of the two vectors of a frame)."""
    student, teacher = _shorter(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        cosine = F.cosine_similarity(student, teacher, dim=2)
        return (student - teacher).abs().mean() - share * F.logsigmoid(cosine).mean()


def pseudo_label(logits: Float[Tensor, "batch frame unit"], units: Int[Tensor, "batch frames"]) -> Float[Tensor, ""]:
    """Mean cross entropy in nats of a teacher's unit for each frame."""
    frames = min(logits.shape[1], units.shape[1])
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(_precise(logits[:, :frames]).flatten(0, 1), units[:, :frames].flatten())


def _shorter(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    frames = min(student.shape[1], teacher.shape[1])
    return _precise(student[:, :frames]), _precise(teacher[:, :frames])


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
