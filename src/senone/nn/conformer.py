"""Conformer (Gulati et al. 2020, arXiv 2005.08100) as w2v-BERT 2.0 has it: relative keys, causal convolution.

Parameters carry the names of transformers' `Wav2Vec2BertModel`, so that its weights load as they are.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from senone.nn.stream import conv

SCORES = 2**22  # of attention, computed at once


class FeedForward(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(width, hidden)
        self.output_dense = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "batch frame width"]) -> Float[Tensor, "batch frame width"]:
        return self.output_dense(F.silu(self.intermediate_dense(x)))


class RelativeAttention(nn.Module):
    """Self-attention with relative keys (Shaw et al. 2018, arXiv 1803.02155).

    score(i, j) = q_i . (k_j + E[clip(j - i, -left, right) + left]) / sqrt(dim): one table for all heads of a layer.
    """

    def __init__(self, width: int, heads: int, left: int, right: int) -> None:
        super().__init__()
        self.heads, self.left, self.right = heads, left, right
        self.linear_q, self.linear_k = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_v, self.linear_out = nn.Linear(width, width), nn.Linear(width, width)
        self.distance_embedding = nn.Embedding(left + right + 1, width // heads)
        nn.init.normal_(self.distance_embedding.weight, std=0.02)

    def forward(
        self, x: Float[Tensor, "batch frame width"], valid: Bool[Tensor, "batch frame"] | None = None
    ) -> Float[Tensor, "batch frame width"]:
        parts = (linear(x).unflatten(2, (self.heads, -1)) for linear in (self.linear_q, self.linear_k, self.linear_v))
        q, k, v = (part.transpose(1, 2) for part in parts)
        # a block of queries at a time: the square of a long recording is never there at once
        block = max(1, SCORES // (len(x) * self.heads * x.shape[1]))
        pieces = []
        for start, piece in zip(range(0, x.shape[1], block), q.split(block, 2), strict=True):
            bias = self.bias(piece, start, x.shape[1])
            if valid is not None:
                bias = bias.masked_fill(~valid[:, None, None], -torch.inf)
            pieces.append(F.scaled_dot_product_attention(piece, k, v, bias))
        return self.linear_out(torch.cat(pieces, 2).transpose(1, 2).flatten(2))

    def bias(self, q: Float[Tensor, "batch head query dim"], start: int, keys: int) -> Tensor:
        """q_i . E / sqrt(dim) at the distance to each key, (batch, head, query, key); the first query is frame `start`.

        One product with each distance there is, then a gather: no embedding is copied to every pair of frames.
        """
        scores = (q * q.shape[3] ** -0.5) @ self.distance_embedding.weight.T
        t = torch.arange(keys, device=q.device)
        distance = (t - t[start : start + q.shape[2], None]).clamp(-self.left, self.right) + self.left
        return scores.gather(3, distance.expand(*q.shape[:2], -1, -1))


class Convolution(nn.Module):
    """Norm, pointwise with GLU, depthwise over the past, norm, SiLU, pointwise."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(width, width, kernel, groups=width, bias=False)
        self.depthwise_layer_norm = nn.LayerNorm(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch frame width"]) -> Float[Tensor, "batch frame width"]:
        # a convolution of kernel 1 is a linear layer, and needs no transposed copy
        x = F.glu(F.linear(self.layer_norm(x), self.pointwise_conv1.weight[..., 0]))
        past = self.depthwise_conv.kernel_size[0] - 1
        x = F.pad(x, (0, 0, past, 0)).transpose(1, 2)
        x = conv(x, self.depthwise_conv.weight, groups=x.shape[1]).transpose(1, 2)
        return F.linear(F.silu(self.depthwise_layer_norm(x)), self.pointwise_conv2.weight[..., 0])


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each a residual; then a norm."""

    def __init__(self, width: int, hidden: int, heads: int, kernel: int, left: int, right: int) -> None:
        super().__init__()
        self.ffn1_layer_norm, self.ffn1 = nn.LayerNorm(width), FeedForward(width, hidden)
        self.self_attn_layer_norm, self.self_attn = nn.LayerNorm(width), RelativeAttention(width, heads, left, right)
        self.conv_module = Convolution(width, kernel)
        self.ffn2_layer_norm, self.ffn2 = nn.LayerNorm(width), FeedForward(width, hidden)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "batch frame width"], valid: Bool[Tensor, "batch frame"] | None = None
    ) -> Float[Tensor, "batch frame width"]:
        """valid: False past a row's end. Nothing looks there: attention is masked, convolution sees the past only."""
        x = x + 0.5 * self.ffn1(self.ffn1_layer_norm(x))
        x = x + self.self_attn(self.self_attn_layer_norm(x), valid)
        x = x + self.conv_module(x)
        x = x + 0.5 * self.ffn2(self.ffn2_layer_norm(x))
        return self.final_layer_norm(x)


class Conformer(nn.Module):
    """A stack of layers without position embeddings of its own."""

    def __init__(self, layers: int, **layer: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConformerLayer(**layer) for _ in range(layers))

    def forward(
        self,
        x: Float[Tensor, "batch frame width"],
        valid: Bool[Tensor, "batch frame"] | None = None,
        layer: int | None = None,
    ) -> Float[Tensor, "batch frame width"]:
        """Output of block `layer` (None: the last; 0: x itself). Blocks above it do not run."""
        for block in self.layers[:layer]:
            x = block(x, valid)
        return x
