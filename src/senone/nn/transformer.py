"""A bidirectional transformer over frames, before or after whose blocks a LayerNorm stands (wav2vec 2.0 §2).

Names of parameters are those of Hugging Face's wav2vec2 files.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5


class Attention(nn.Module):
    """Multi-head self-attention with biases on all four projections."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch frame width"], valid: Bool[Tensor, "batch frame"] | None = None
    ) -> Float[Tensor, "batch frame width"]:
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = None if valid is None else valid[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear -> GELU -> Linear."""

    def __init__(self, width: int, hidden: int, dropout: float, activation_dropout: float) -> None:
        super().__init__()
        self.intermediate_dense, self.output_dense = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout, self.activation_dropout = dropout, activation_dropout

    def forward(self, x: Float[Tensor, "batch frame width"]) -> Float[Tensor, "batch frame width"]:
        x = F.dropout(F.gelu(self.intermediate_dense(x)), self.activation_dropout, self.training)
        return F.dropout(self.output_dense(x), self.dropout, self.training)


class Block(nn.Module):
    """Attention and feed-forward, each added to its input; LayerNorm before ("pre") or after the addition ("post")."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        ln_position: Literal["pre", "post"] = "post",
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre, self.dropout = ln_position == "pre", dropout
        self.attention = Attention(width, heads, attention_dropout)
        self.layer_norm = nn.LayerNorm(width, EPS)
        self.feed_forward = FeedForward(width, hidden, dropout, activation_dropout)
        self.final_layer_norm = nn.LayerNorm(width, EPS)

    def forward(
        self, x: Float[Tensor, "batch frame width"], valid: Bool[Tensor, "batch frame"] | None = None
    ) -> Float[Tensor, "batch frame width"]:
        """`valid`: the frames that may be attended to."""
        if self.pre:
            x = x + F.dropout(self.attention(self.layer_norm(x), valid), self.dropout, self.training)
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.layer_norm(x + F.dropout(self.attention(x, valid), self.dropout, self.training))
        return self.final_layer_norm(x + self.feed_forward(x))


class WeightNormConv(nn.Module):
    """A grouped convolution over frames whose weight is g v / |v|, one gain for each tap (weight norm over dim 2)."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        v = torch.randn(width, width // groups, kernel) * (4 / (kernel * width)) ** 0.5
        self.weight_g = nn.Parameter(v.norm(dim=(0, 1), keepdim=True))
        self.weight_v = nn.Parameter(v)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "batch width frame"]) -> Float[Tensor, "batch width frame"]:
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        y = F.conv1d(x, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return y[:, :, : x.shape[2]]  # an even kernel gives one frame too many


class ConvPosition(nn.Module):
    """Where a frame stands, as a convolution of its neighbourhood tells (wav2vec 2.0 §2, "contextualized")."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = WeightNormConv(width, kernel, groups)

    def forward(self, x: Float[Tensor, "batch frame width"]) -> Float[Tensor, "batch frame width"]:
        return F.gelu(self.conv(x.transpose(1, 2))).transpose(1, 2)


class Transformer(nn.Module):
    """ConvPosition, blocks, and one LayerNorm: before the blocks ("post") or after the last of them ("pre")."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        ln_position: Literal["pre", "post"],
        pos_kernel: int,
        pos_groups: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre, self.dropout, self.layer_drop = ln_position == "pre", dropout, layer_drop
        self.pos_conv_embed = ConvPosition(width, pos_kernel, pos_groups)
        self.layer_norm = nn.LayerNorm(width, EPS)
        rates = {"dropout": dropout, "attention_dropout": attention_dropout, "activation_dropout": activation_dropout}
        self.layers = nn.ModuleList(Block(width, heads, hidden, ln_position, **rates) for _ in range(layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Float[Tensor, "batch frame width"],
        valid: Bool[Tensor, "batch frame"] | None = None,
        layer: int | None = None,
    ) -> Float[Tensor, "batch frame width"]:
        """The output of block `layer`, as it is (0: what enters the first); None: of the last, after every norm.

        LayerDrop draws from torch's generator, which the training loop seeds alike in all processes: a block is
        skipped by all of them or by none.
        """
        if valid is not None:
            x = x.where(valid[:, :, None], 0.0)
        x = x + self.pos_conv_embed(x)
        if not self.pre:
            x = self.layer_norm(x)
        x = F.dropout(x, self.dropout, self.training)
        for block in self.layers[:layer]:
            if not self.training or not self.layer_drop or float(torch.rand(())) >= self.layer_drop:
                x = block(x, valid)
        return self.layer_norm(x) if self.pre and layer is None else x
