"""The SPK-SIM of papers: WavLM-large under an ECAPA-TDNN, fine-tuned for speaker verification (UniSpeech, Microsoft).

`wavlm_large_finetune.pth` is read under its own names, with strict keys: the official script takes any file, and with
a wrong one prints "similarities" too (microsoft/UniSpeech, issue 47). WavLM: Chen et al. 2022, 2110.13900.
"""

from collections.abc import Callable
from functools import cache
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from senone.eval.neural import fit, read, remembered
from senone.interop.upstream import renamed
from senone.nn.encoder import EncoderConfig, SpeechEncoder
from senone.nn.transformer import Attention

WAVLM = "wavlm_large_finetune.pth"
BODY, CLASSIFIER = "feature_extract.model.", "loss_calculator."
LARGE = EncoderConfig(
    feat_norm="layer", width=1024, layers=24, heads=16, hidden=4096, ln_position="pre", wav_norm="fairseq"
)
BUCKETS, FARTHEST = 320, 800  # of distances between frames, and from where on all are one


class GatedAttention(Attention):
    """Attention with a bias for each distance, which every query scales by two gates (§III-A of the paper)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.grep_linear = nn.Linear(width // heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Float[Tensor, "batch frame width"], bias: Float[Tensor, "head frame frame"]) -> Tensor:  # type: ignore[override]
        heads = [y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (x, self.q_proj(x), self.k_proj(x))]
        gates = self.grep_linear(heads[0]).unflatten(3, (2, 4)).sum(4).sigmoid()
        gate = gates[..., :1] * (gates[..., 1:] * self.grep_a - 1) + 2
        v = self.v_proj(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(heads[1], heads[2], v, gate * bias)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class WavLM(SpeechEncoder):
    """A "pre" encoder of wav2vec 2.0's kind with `GatedAttention`; the biases lie in the first block, all use them."""

    def __init__(self, config: EncoderConfig = LARGE) -> None:
        super().__init__(config)
        for block in self.encoder.layers:
            block.attention = GatedAttention(config.width, config.heads)
        first: Any = self.encoder.layers[0].attention
        first.relative_attention_bias = nn.Embedding(BUCKETS, config.heads)

    def states(self, wave: Float[Tensor, "1 samples"]) -> list[Float[Tensor, "1 frame width"]]:
        """What enters each block, and what the encoder gives in the end."""
        z = self.feature_extractor(F.layer_norm(wave, wave.shape[1:]), None).transpose(1, 2)
        x = self.feature_projection.projection(self.feature_projection.layer_norm(z))
        x = x + self.encoder.pos_conv_embed(x)
        layers: Any = self.encoder.layers
        bias = layers[0].attention.relative_attention_bias(buckets(x.shape[1])).permute(2, 0, 1)
        found = []
        for block in layers:
            found.append(x)
            x = x + block.attention(block.layer_norm(x), bias)
            x = x + block.feed_forward(block.final_layer_norm(x))
        return [*found, self.encoder.layer_norm(x)]


def buckets(frames: int) -> Int[Tensor, "query key"]:
    """Which bucket the distance from one frame to another falls in (T5's): half of them for each direction, half of
    these for near ones, one each; farther ones by their logarithm."""
    apart = torch.arange(frames) - torch.arange(frames)[:, None]
    side, near = BUCKETS // 2, BUCKETS // 4
    far = near + (torch.log(apart.abs().clamp(min=1) / near) / log(FARTHEST / near) * (side - near)).long()
    return side * (apart > 0) + torch.where(apart.abs() < near, apart.abs(), far.clamp(max=side - 1))


class ConvNorm(nn.Module):
    """Conv -> ReLU -> BatchNorm."""

    def __init__(self, into: int, out: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(into, out, kernel, padding=kernel // 2), nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.relu(self.conv(x)))


class Res2(nn.Module):
    """Eight groups of channels: each but the last is convolved after the one before was added; the last stays."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        part = channels // 8
        self.convs = nn.ModuleList(nn.Conv1d(part, part, 3, padding=dilation, dilation=dilation) for _ in range(7))
        self.bns = nn.ModuleList(nn.BatchNorm1d(part) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        *parts, last = x.chunk(8, 1)
        done: list[Tensor] = []
        for part, conv, bn in zip(parts, self.convs, self.bns, strict=True):
            done.append(bn(F.relu(conv(part + done[-1] if done else part))))
        return torch.cat([*done, last], 1)


class Squeeze(nn.Module):
    """Each channel scaled by what the means of all say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(channels, 128), nn.Linear(128, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear2(F.relu(self.linear1(x.mean(2)))).sigmoid()[:, :, None]


class Block(nn.Module):
    """SE-Res2Block (Desplanques et al. 2020, figure 2)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.Conv1dReluBn1, self.Conv1dReluBn2 = ConvNorm(channels, channels), ConvNorm(channels, channels)
        self.Res2Conv1dReluBn, self.SE_Connect = Res2(channels, dilation), Squeeze(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.SE_Connect(self.Conv1dReluBn2(self.Res2Conv1dReluBn(self.Conv1dReluBn1(x))))


class Pooling(nn.Module):
    """Mean and deviation over time, each frame of each channel weighted by attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Conv1d(channels, 128, 1), nn.Conv1d(128, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        share = self.linear2(self.linear1(x).tanh()).softmax(2)
        mean = (share * x).sum(2)
        return torch.cat([mean, ((share * x.square()).sum(2) - mean.square()).clamp(min=1e-9).sqrt()], 1)


class Verifier(nn.Module):
    """Wave at 16 kHz to an embedding: `ECAPA_TDNN_SMALL(feat_dim=1024, feat_type="wavlm_large")` there."""

    def __init__(self, config: EncoderConfig = LARGE, channels: int = 512, dim: int = 256) -> None:
        super().__init__()
        self.body = WavLM(config)
        self.feature_weight = nn.Parameter(torch.zeros(config.layers + 1))
        self.layer1 = ConvNorm(config.width, channels, 5)
        self.layer2, self.layer3, self.layer4 = (Block(channels, dilation) for dilation in (2, 3, 4))
        self.conv, self.pooling = nn.Conv1d(3 * channels, 1536, 1), Pooling(1536)
        self.bn, self.linear = nn.BatchNorm1d(3072), nn.Linear(3072, dim)

    def forward(self, wave: Float[Tensor, "1 samples"]) -> Float[Tensor, "1 dim"]:
        shares = self.feature_weight.softmax(0)
        x = sum(share * state for share, state in zip(shares, self.body.states(wave), strict=True))
        assert isinstance(x, Tensor)
        first = self.layer1(F.instance_norm(x.transpose(1, 2) + 1e-6))
        second = self.layer2(first)
        third = self.layer3(second)
        x = F.relu(self.conv(torch.cat([second, third, self.layer4(third)], 1)))
        return self.linear(self.bn(self.pooling(x)))


def ours(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under our names, without the classifier of speakers, which only training needs."""
    body = renamed({k.removeprefix(BODY): v for k, v in weights.items() if k.startswith(BODY)})
    rest = {k: v for k, v in weights.items() if not k.startswith((BODY, CLASSIFIER))}
    return {f"body.{name}": value for name, value in body.items()} | rest


@cache
def verifier(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The embedding (256,) of a wave by `folder`/wavlm_large_finetune.pth. Raises HubError naming a key amiss."""
    with torch.device("meta"):
        net = Verifier()
    net = fit(net.to_empty(device="cpu"), ours(read(folder / WAVLM, "model")), folder / WAVLM)

    @torch.no_grad()
    def embed(wave: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(wave)[None])[0].numpy()

    return remembered(embed)
