"""AdamW with warm-up and cosine, and the moving average of weights."""

from dataclasses import dataclass
from math import cos, pi

import torch
from torch import nn


@dataclass(frozen=True)
class Optimiser:
    """AdamW. lr rises over `warmup` steps, then falls as a cosine to `final`; gradients are clipped to `clip`."""

    lr: float = 5e-4
    betas: tuple[float, float] = (0.8, 0.99)
    decay: float = 0.0
    warmup: int = 500
    final: float = 1e-5
    clip: float = 1.0

    def build(self, module: nn.Module) -> torch.optim.AdamW:
        """The optimiser of all parameters."""
        return torch.optim.AdamW(module.parameters(), self.lr, self.betas, weight_decay=self.decay, fused=True)

    def rate(self, step: int, steps: int, moves: int) -> float:
        """The learning rate at `step` of `steps`, for a player that has moved `moves` times."""
        fall = self.final + (self.lr - self.final) * (1 + cos(pi * min(1.0, step / max(1, steps)))) / 2
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
