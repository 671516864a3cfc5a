"""Frame-rate backbone and iSTFT head (Vocos, Siuzdak 2023, 2306.00814), causal with state or centred without."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone.nn.stream import CausalConv1d, State, Streaming


class ConvNeXt(Streaming):
    """Depthwise conv k7 -> LayerNorm -> Linear -> GELU -> Linear -> layer scale, plus the input.

    Takes and returns (batch, frame, dim): the linear layers dominate and want the features last.
    """

    def __init__(self, dim: int, kernel: int = 7, causal: bool = True, scale: float = 0.1) -> None:
        super().__init__()
        conv = CausalConv1d if causal else CentredConv1d
        self.conv = conv(dim, dim, kernel, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.wide, self.narrow = nn.Linear(dim, 3 * dim), nn.Linear(3 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(
        self, x: Float[Tensor, "batch frame dim"], state: State = None
    ) -> tuple[Float[Tensor, "batch frame dim"], State]:
        y, state = self.conv(x.transpose(1, 2), state)
        y = self.narrow(F.gelu(self.wide(self.norm(y.transpose(1, 2)))))
        return x + self.scale * y, state


class CentredConv1d(nn.Conv1d):
    """A convolution that sees as much future as past, with zeros at both ends; it has no state to keep."""

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:  # type: ignore[override]
        reach = self.kernel_size[0] // 2
        return self._conv_forward(F.pad(x, (reach, reach)), self.weight, self.bias), None


class SpectrumHead(nn.Module):
    """(batch frame dim) -> complex spectrum (batch frame n_fft/2+1).

    KIND env
    """

    def __init__(self, dim: int, n_fft: int) -> None:
        super().__init__()
        import os
        self.kind=os.environ.get('HEAD','pol')
        self.n=n_fft//2+1
        self.linear = nn.Linear(dim, n_fft + 2 if self.kind in('pol','lin') or self.kind[:3]=='pow' else self.n*3)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "batch frame dim"]) -> Tensor:
        y=self.linear(x).float()
        if self.kind=='pol':
            magnitude, phase = y.chunk(2, -1)
            return torch.polar(magnitude.exp().clamp(max=100.0), phase)
        if self.kind=='gate':
            m,a,b=y.chunk(3,-1)
            return torch.complex(m.exp().clamp(max=100.)*a,m.exp().clamp(max=100.)*b)
        if self.kind=='unit':
            m,a,b=y.chunk(3,-1)
            s=m.exp().clamp(max=100.)*(a*a+b*b+1e-4).rsqrt()
            return torch.complex(s*a,s*b)
        a,b=y.chunk(2,-1)
        if self.kind.startswith('pow'):
            p=float(self.kind[3:]); r=(a*a+b*b+1e-6)**((1/p-1)/2); a,b=a*r,b*r
        return torch.complex(a,b)
