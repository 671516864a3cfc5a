"""ECAPA-TDNN speaker embeddings (Desplanques et al. 2020), SpeechBrain's VoxCeleb weights, as functions of its file."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

RATE, FFT, HOP, MELS = 16000, 400, 160, 80


def ecapa_embed(weights: dict[str, Tensor], wave: np.ndarray) -> np.ndarray:
    """Unit vector (192,) of a wave (samples,)."""

    def conv(x: Tensor, name: str, dilation: int = 1) -> Tensor:
        weight = weights[f"{name}.conv.weight"]
        pad = dilation * (weight.shape[2] - 1) // 2
        x = F.pad(x, (pad, pad), mode="reflect") if pad else x
        return F.conv1d(x, weight, weights[f"{name}.conv.bias"], dilation=dilation)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)

    def tdnn(x: Tensor, name: str, dilation: int = 1) -> Tensor:
        return norm(F.relu(conv(x, f"{name}.conv", dilation)), f"{name}.norm.norm")

    def block(x: Tensor, name: str, dilation: int) -> Tensor:
        """Res2Net block with squeeze and excitation."""
        first, *parts = tdnn(x, f"{name}.tdnn1").chunk(8, 1)
        done, last = [first], torch.zeros_like(first)
        for index, part in enumerate(parts):
            last = tdnn(part + last, f"{name}.res2net_block.blocks.{index}", dilation)
            done.append(last)
        y = tdnn(torch.cat(done, 1), f"{name}.tdnn2")
        gate = F.relu(conv(y.mean(2, keepdim=True), f"{name}.se_block.conv1"))
        return x + y * torch.sigmoid(conv(gate, f"{name}.se_block.conv2"))

    def moments(x: Tensor, share: Tensor | float) -> tuple[Tensor, Tensor]:
        mean = (share * x).sum(2, keepdim=True)
        return mean, (share * (x - mean).square()).sum(2, keepdim=True).clamp(min=1e-12).sqrt()

    x = tdnn(_features(torch.from_numpy(wave)[None]), "blocks.0")
    deep = []
    for index in (1, 2, 3):
        x = block(x, f"blocks.{index}", dilation=index + 1)
        deep.append(x)
    x = tdnn(torch.cat(deep, 1), "mfa")
    context = [part.expand_as(x) for part in moments(x, 1 / x.shape[2])]
    attention = conv(torch.tanh(tdnn(torch.cat([x, *context], 1), "asp.tdnn")), "asp.conv").softmax(2)
    pooled = norm(torch.cat(moments(x, attention), 1), "asp_bn.norm")
    return F.normalize(conv(pooled, "fc")[0, :, 0], dim=0).numpy()


def _features(wave: Tensor) -> Tensor:
    """SpeechBrain's Fbank: (1, samples) -> (1, 80, frame), mean over time removed."""
    spectrum = torch.stft(
        wave, FFT, HOP, window=torch.hamming_window(FFT), center=True, pad_mode="constant", return_complex=True
    )
    decibels = 10 * (_filters() @ spectrum.abs().square()).clamp(min=1e-10).log10()
    decibels = decibels.clamp(min=float(decibels.max()) - 80)
    return decibels - decibels.mean(2, keepdim=True)


@cache
def _filters() -> Tensor:
    """Triangles (80, bin); both slopes are as wide as the lower one, which is what SpeechBrain does."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)
    slope = (torch.linspace(0, RATE / 2, FFT // 2 + 1) - hertz[1:-1, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    return torch.minimum(slope + 1, 1 - slope).clamp(min=0)


@cache
def ecapa(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The embedding function with the weights ecapa-voxceleb.ckpt of `folder`, loaded once."""
    weights = torch.load(folder / "ecapa-voxceleb.ckpt", weights_only=True, map_location="cpu")

    @torch.no_grad()
    def embed(wave: np.ndarray) -> np.ndarray:
        return ecapa_embed(weights, wave)

    return embed
