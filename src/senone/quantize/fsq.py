"""Finite scalar quantization, in one level or residual: no codebook to learn, so none to collapse.

FSQ (Mentzer et al. 2023, 2309.15505): bound a few dimensions, round each. `FSQ` is X-codec2's. In `ResidualFSQ` every
level has projections of its own into and out of its few dimensions, and sees what the levels before it left of z.
"""

from math import log, prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from senone.quantize import TIE, Quantized, full

SOFT, PAIRED = 0.3, 512  # how far into other cells `collision` sees; rows it compares


class ResidualFSQ(nn.Module):
    """`levels` levels of prod(steps) codes each: (batch dim frame) <-> (batch level frame).

    Level i: y = tanh(In_i(residual)); each y_d in [-1, 1] falls into one of steps_d uniform cells; residual minus
    Out_i(cell centres) goes to level i + 1. The first digit is the least significant of the code. Never below fp32.
    """

    steps: Tensor
    place: Tensor

    def __init__(self, dim: int, steps: tuple[int, ...] = (8, 8, 8, 8), levels: int = 4) -> None:
        super().__init__()
        self.sizes = (prod(steps),) * levels
        enter = [nn.Linear(dim, len(steps)) for _ in range(levels)]
        leave = [nn.Linear(len(steps), dim, bias=i == 0) for i in range(levels)]
        # Each level starts on directions of its own, so that it takes something off the residual from the first step.
        basis = torch.linalg.qr(torch.randn(dim, dim))[0].repeat(-(-levels * len(steps) // dim), 1)
        for i in range(levels):
            rows = basis[i * len(steps) : (i + 1) * len(steps)]
            nn.init.zeros_(enter[i].bias)
            enter[i].weight.data.copy_(rows)
            leave[i].weight.data.copy_(1.3 * rows.T)  # of a unit normal, tanh keeps about 1/1.3
        self.enter, self.leave = nn.ModuleList(enter), nn.ModuleList(leave)
        self.register_buffer("steps", torch.tensor(steps), persistent=False)
        place = torch.tensor([prod(steps[:i]) for i in range(len(steps))])
        self.register_buffer("place", place, persistent=False)

    def forward(self, z: Float[Tensor, "batch dim frame"], levels: Tensor | int | None = None) -> Quantized:
        """Straight-through rounding. `levels`: one number, or (batch,) numbers, of levels in use."""
        count = len(self.sizes)
        use = torch.as_tensor(count if levels is None else levels, device=z.device).expand(len(z))
        with torch.autocast(z.device.type, enabled=False):
            residual = full(z).transpose(1, 2)
            total, codes = torch.zeros_like(residual), []
            for i in range(count):
                y = torch.tanh(self.enter[i](residual))
                digits = self._digits(y.detach())
                codes.append((digits * self.place).sum(-1))
                part = self.leave[i](y + (self._centres(digits, y.dtype) - y).detach())
                part = part * (use > i)[:, None, None]
                residual, total = residual - part, total + part
        return Quantized(total.transpose(1, 2), torch.stack(codes, 1), {})

    @torch.no_grad()
    def encode(
        self, z: Float[Tensor, "batch dim frame"], levels: int | None = None
    ) -> Int[Tensor, "batch level frame"]:
        with torch.autocast(z.device.type, enabled=False):
            residual, codes = full(z).transpose(1, 2), []
            for i in range(len(self.sizes) if levels is None else levels):
                digits = self._digits(torch.tanh(self.enter[i](residual)))
                codes.append((digits * self.place).sum(-1))
                residual = residual - self.leave[i](self._centres(digits, residual.dtype))
        return torch.stack(codes, 1)

    def decode(self, codes: Int[Tensor, "batch level frame"]) -> Float[Tensor, "batch dim frame"]:
        digits = codes[..., None] // self.place % self.steps  # (batch, level, frame, digit)
        centres = self._centres(digits, next(self.parameters()).dtype)
        parts = [self.leave[i](centres[:, i]) for i in range(codes.shape[1])]
        return torch.stack(parts).sum(0).transpose(1, 2)

    def _digits(self, y: Float[Tensor, "*shape digit"]) -> Int[Tensor, "*shape digit"]:
        return torch.minimum(((y + 1) * self.steps / 2 + TIE).long(), self.steps - 1)

    def _centres(self, digits: Int[Tensor, "*shape digit"], dtype: torch.dtype) -> Float[Tensor, "*shape digit"]:
        return (2 * digits + 1).to(dtype) / self.steps - 1


class FSQ(nn.Module):
    """One level of prod(steps) codes, as X-codec2 has it (2502.04128): (batch dim frame) <-> (batch 1 frame).

    y = In(z), bounded `bounds` times by tanh(y + atanh(o / h)) h - o with h = (steps - 1) * 1.001 / 2 and o = 1/2 where
    steps are even, else 0; rounded, divided by steps // 2; Out. The released weights need 2: their wrapper of FSQ
    bounds what FSQ bounds again. The first digit is the least significant of the code. Never below fp32.
    """

    def __init__(self, dim: int, steps: tuple[int, ...] = (4,) * 8, bounds: int = 2) -> None:
        super().__init__()
        self.sizes, self.steps, self.bounds = (prod(steps),), steps, bounds
        self.enter, self.leave = nn.Linear(dim, len(steps)), nn.Linear(len(steps), dim)

    def forward(self, z: Float[Tensor, "batch dim frame"], levels: Tensor | int | None = None) -> Quantized:
        """Straight-through rounding. There is one level: whatever `levels` says, it is in use.

        losses: "spread", see `collision`.
        """
        with torch.autocast(z.device.type, enabled=False):
            y = self._bound(self.enter(full(z).transpose(1, 2)))
            losses = {"spread": collision(y.flatten(0, 1), self.steps)}
            return Quantized(self._out(y + (self._rounded(y) - y).detach()), self._codes(y.detach()), losses)

    def smooth(self, z: Float[Tensor, "batch dim frame"]) -> Float[Tensor, "batch dim frame"]:
        """`forward` without rounding, to begin a training with."""
        with torch.autocast(z.device.type, enabled=False):
            return self._out(self._bound(self.enter(full(z).transpose(1, 2))))

    @torch.no_grad()
    def encode(self, z: Float[Tensor, "batch dim frame"], levels: int | None = None) -> Int[Tensor, "batch 1 frame"]:
        with torch.autocast(z.device.type, enabled=False):
            return self._codes(self._bound(self.enter(full(z).transpose(1, 2))))

    def decode(self, codes: Int[Tensor, "batch 1 frame"]) -> Float[Tensor, "batch dim frame"]:
        steps = torch.tensor(self.steps, device=codes.device)
        digits = codes[:, 0, :, None] // self._place(codes) % steps
        return self.leave((digits / (steps // 2) - 1).to(self.leave.weight)).transpose(1, 2)

    def _out(self, y: Float[Tensor, "batch frame digit"]) -> Float[Tensor, "batch dim frame"]:
        return self.leave(y / (y.new_tensor(self.steps) // 2)).transpose(1, 2)

    def _bound(self, y: Float[Tensor, "*shape digit"]) -> Float[Tensor, "*shape digit"]:
        steps = y.new_tensor(self.steps)
        half, offset = (steps - 1) * 1.001 / 2, (steps % 2 == 0) / 2
        shift = (offset / half).atanh()
        for _ in range(self.bounds):
            y = torch.tanh(y + shift) * half - offset
        return y

    def _rounded(self, y: Float[Tensor, "*shape digit"]) -> Float[Tensor, "*shape digit"]:
        return (y + TIE).round()

    def _codes(self, y: Float[Tensor, "batch frame digit"]) -> Int[Tensor, "batch 1 frame"]:
        digits = self._rounded(y).long() + torch.tensor(self.steps, device=y.device) // 2
        return (digits * self._place(digits)).sum(-1)[:, None]

    def _place(self, like: Tensor) -> Int[Tensor, "digit"]:
        """What a digit counts."""
        return torch.tensor([prod(self.steps[:i]) for i in range(len(self.steps))], device=like.device)


def collision(y: Float[Tensor, "row digit"], steps: tuple[int, ...]) -> Float[Tensor, ""]:
    """Logarithm of the probability that two rows have the same code, a row being in cell k of a digit by the softmax of
    -|y - k|^2 / SOFT: of each pair, the product over digits of what they share. Lowest, -log(prod(steps)), where all
    codes are used alike, whatever the digits have to do with each other. Of so many rows PAIRED, evenly, are compared.
    """
    if len(y) < 2:
        return y.sum() * 0
    y = y[:: -(-len(y) // PAIRED)]
    same = y.new_zeros(len(y), len(y))
    for digit, size in enumerate(steps):
        centres = torch.arange(size, device=y.device) - size // 2
        share = (-(y[:, digit, None] - centres).square() / SOFT).softmax(1)
        same = same + (share @ share.T).clamp(min=1e-12).log()
    pairs = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    return same[pairs].logsumexp(0) - log(len(y) * (len(y) - 1))
