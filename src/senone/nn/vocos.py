"""Frame-rate backbone and inverse-STFT head (after Vocos, Siuzdak 2023, 2306.00814), causal, with state as a value."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone.nn.stream import CausalConv1d, State, Streaming


class ConvNeXt(Streaming):
    """Depthwise causal conv k7 -> LayerNorm -> Linear -> GELU -> Linear -> layer scale, plus the input.

    Takes and returns (batch, frame, dim): the linear layers dominate and want the features last.
    """

    def __init__(self, dim: int, kernel: int = 7, scale: float = 0.1) -> None:
        super().__init__()
        self.conv = CausalConv1d(dim, dim, kernel, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.wide, self.narrow = nn.Linear(dim, 3 * dim), nn.Linear(3 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(
        self, x: Float[Tensor, "batch frame dim"], state: State = None
    ) -> tuple[Float[Tensor, "batch frame dim"], State]:
        y, state = self.conv(x.transpose(1, 2), state)
        y = self.narrow(F.gelu(self.wide(self.norm(y.transpose(1, 2)))))
        return x + self.scale * y, state


class SpectrumHead(nn.Module):
    """(batch frame dim) -> complex spectrum (batch frame n_fft/2+1), of which it predicts the square root c: c |c|.

    Vocos predicts log-magnitude and phase; a phase that wraps is hard to learn, and a recipe of minutes never learnt
    it (docs/log.md). Real and imaginary part of the root have the range of loudness, and no seam.
    """

    def __init__(self, dim: int, n_fft: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, n_fft + 2)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "batch frame dim"]) -> Complex[Tensor, "batch frame bin"]:
        y = self.linear(x)
        real, imag = (y if y.dtype == torch.float64 else y.float()).chunk(2, -1)
        magnitude = (real.square() + imag.square() + 1e-6).sqrt()
        return torch.complex(real * magnitude, imag * magnitude)
