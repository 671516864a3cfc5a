"""AdamW with warm-up and a schedule, and the moving average of weights."""

from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Optimiser:
    """AdamW; gradients are clipped to the norm `clip` (0: not at all).

    lr rises over `warmup` steps. Then, by `schedule`, it falls to `final` at the last step, as a cosine or linearly;
    "tri-stage" (fairseq's for fine-tuning) rises from a hundredth, stays up until `hold`, a share of all steps, is
    over, and falls exponentially. The same step has the same rate after a resume.
    """

    lr: float = 5e-4
    betas: tuple[float, float] = (0.8, 0.99)
    eps: float = 1e-8
    decay: float = 0.0
    warmup: int = 500
    final: float = 1e-5
    clip: float = 1.0
    schedule: Literal["cosine", "linear", "tri-stage"] = "cosine"
    hold: float = 0.5

    def build(self, module: nn.Module) -> torch.optim.AdamW:
        """The optimiser of all parameters."""
        return torch.optim.AdamW(
            module.parameters(), self.lr, self.betas, self.eps, weight_decay=self.decay, fused=True
        )

    def rate(self, step: int, steps: int, moves: int) -> float:
        """The learning rate at `step` of `steps`, for a player that has moved `moves` times."""
        if self.schedule == "tri-stage":
            held = max(self.warmup, self.hold * steps)
            if step < self.warmup:
                return self.lr * (0.01 + 0.99 * step / self.warmup)
            share = min(1.0, max(0.0, step - held) / max(1.0, steps - held))
            return self.lr * (self.final / self.lr) ** share
        if self.schedule == "linear":
            share = 1 - min(1.0, max(0, step - self.warmup) / max(1, steps - self.warmup))
        else:
            share = (1 + cos(pi * min(1.0, step / max(1, steps)))) / 2
        fall = self.final + (self.lr - self.final) * share
        return min(self.lr * (moves + 1) / max(1, self.warmup), fall)


@torch.no_grad()
def average(mean: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move `mean` towards `model`, codebooks included; faster in the first steps, when its start still shows."""
    keep = min(decay, (1 + step) / (10 + step))
    pairs = list(zip(mean.state_dict().values(), model.state_dict().values(), strict=True))
    floats = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        [a for a, _ in floats], [b for _, b in floats], 1 - keep
    )
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)
