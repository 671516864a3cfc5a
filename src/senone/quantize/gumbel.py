"""Product quantization by Gumbel-softmax (wav2vec 2.0, 2006.11477 §2 "Quantization module", eq. 1).

Frames come as a transformer has them, (batch frame width). The temperature is an argument: it is a function of the
update, and nothing here remembers it. Names of parameters are those of Hugging Face's wav2vec2 files.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from senone.quantize import full


class Chosen(NamedTuple):
    """What training needs: the entries chosen; their codes; how often the batch uses each entry.

    usage: the mean over frames of the softmax without noise and temperature; counts: the share of frames that chose
    an entry. Of the latter two `perplexity` and `diversity` are functions.
    """

    vectors: Float[Tensor, "batch frame dim"]
    codes: Int[Tensor, "batch group frame"]
    usage: Float[Tensor, "group entry"]
    counts: Float[Tensor, "group entry"]


class GumbelQuantizer(nn.Module):
    """`groups` codebooks of `entries` vectors of dim / groups each, chosen by the logits of one projection."""

    def __init__(self, width: int, dim: int, groups: int = 2, entries: int = 320) -> None:
        super().__init__()
        self.sizes = (entries,) * groups
        self.codevectors = nn.Parameter(torch.rand(1, groups * entries, dim // groups))
        self.weight_proj = nn.Linear(width, groups * entries)
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)

    def forward(
        self,
        x: Float[Tensor, "batch frame width"],
        temperature: float = 1.0,
        mask: Bool[Tensor, "batch frame"] | None = None,
        noise: Float[Tensor, "batch frame group entry"] | None = None,
    ) -> Chosen:
        """Training: a hard sample of the Gumbel-softmax at `temperature`, whose gradient is that of the soft one.
        Evaluation: the most likely entry. `mask`: the frames that usage and counts are of; None: all. `noise`: in
        training, instead of torch's next random numbers, what `gumbel` drew. Never below fp32.
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = self._logits(x)
            noisy = logits
            if self.training:
                noise = gumbel(logits.shape, logits.device) if noise is None else noise
                noisy = (logits + noise) / temperature
            codes = noisy.argmax(-1)
            one = hard = nn.functional.one_hot(codes, logits.shape[-1]).to(logits)
            if self.training:
                soft = noisy.softmax(-1)
                one = hard + (soft - soft.detach())  # exactly `hard`: equal codes are equal vectors
            vectors = torch.einsum("btge,ged->btgd", one, self._books().to(one)).flatten(2)
            some = slice(None) if mask is None else mask
            usage = logits.softmax(-1)[some].reshape(-1, *logits.shape[2:]).mean(0)
            counts = hard[some].reshape(-1, *logits.shape[2:]).mean(0)
        return Chosen(vectors, codes.transpose(1, 2), usage, counts)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch frame width"]) -> Int[Tensor, "batch group frame"]:
        """The most likely entry of each group."""
        return self._logits(x).argmax(-1).transpose(1, 2)

    def decode(self, codes: Int[Tensor, "batch group frame"]) -> Float[Tensor, "batch frame dim"]:
        """The entries, side by side."""
        books = self._books()
        return torch.cat([books[g][codes[:, g]] for g in range(len(books))], -1)

    def _logits(self, x: Tensor) -> Float[Tensor, "batch frame group entry"]:
        return self.weight_proj(full(x)).unflatten(-1, (len(self.sizes), -1))

    def _books(self) -> Float[Tensor, "group entry part"]:
        return self.codevectors.unflatten(1, (len(self.sizes), -1))[0]


def gumbel(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Independent draws from the standard Gumbel distribution."""
    return -torch.empty(shape, device=device).exponential_(generator=generator).log()


def perplexity(share: Float[Tensor, "group entry"]) -> Float[Tensor, ""]:
    """How many entries are in use: exp of the entropy of each group's shares, summed over groups (§2, footnote 2)."""
    entropy = -(share * share.clamp(min=1e-20).log()).sum(-1)  # finite gradients where an entry is never chosen
    return entropy.exp().sum()


def diversity(usage: Float[Tensor, "group entry"]) -> Float[Tensor, ""]:
    """The diversity loss (eq. 4 as footnote 2 has it): 0 where all entries are used alike, near 1 where one is."""
    return (usage.numel() - perplexity(usage)) / usage.numel()


def temperature(step: int, start: float = 2.0, stop: float = 0.5, factor: float = 0.999995) -> float:
    """Of update `step`: start factor^step, not below stop (§4.2)."""
    return max(start * factor**step, stop)
