"""w2v-BERT 2.0: the speech encoder of Seamless (Barrault et al. 2023, arXiv 2312.05187, §3.2.1), as released.

Kaldi's filter bank, normalised per utterance and bin, two frames stacked; 24 conformer blocks (w2v-BERT: Chung et al.
2021, arXiv 2108.06209). The semantic encoder of X-codec2 and, in kin, of AudioLM.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from senone.config import ConfigError
from senone.features import Count, kaldi_fbank, kaldi_frames
from senone.hub import Pretrained
from senone.nn.conformer import Conformer
from senone.nn.encoder import EncoderError, row_by_row


@dataclass(frozen=True)
class Config:
    """Width of the blocks and of their feed-forwards (hidden); kernel of the convolution; reach of relative keys."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    hidden: int = 4096
    kernel: int = 31
    left: int = 64
    right: int = 8
    mels: int = 80


class Projection(nn.Module):
    """Stacked filter-bank frames to the width of the blocks."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, width)

    def forward(self, x: Float[Tensor, "batch frame dim"]) -> Float[Tensor, "batch frame width"]:
        return self.projection(self.layer_norm(x))


class W2vBert(nn.Module, Pretrained):
    """Speech at 16 kHz to 50 frames a second, causal but for attention. Weights are named as in transformers."""

    Config = Config
    model_type = "senone_w2vbert"
    sample_rate: ClassVar[int] = 16000
    hop: ClassVar[int] = 320
    reach: ClassVar[int] = 560  # samples that a frame covers: two windows of 25 ms, 10 ms apart

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ConfigError(f"heads: {config.heads} do not divide the width {config.width}")
        self.config = config
        self.feature_projection = Projection(2 * config.mels, config.width)
        self.masked_spec_embed = nn.Parameter(torch.rand(config.width))  # in place of masked frames, in training
        names = ("width", "hidden", "heads", "kernel", "left", "right")
        self.encoder = Conformer(config.layers, **{name: getattr(config, name) for name in names})

    def frames(self, samples: Count) -> Count:
        """Frames of so many samples, an int or a tensor of ints."""
        return kaldi_frames(samples, self.sample_rate) // 2

    @torch.no_grad()
    def features(
        self,
        wave: Float[Tensor, "*batch samples"],
        lengths: Int[Tensor, "batch"] | None = None,
        layer: int | None = None,
    ) -> Float[Tensor, "batch frame width"]:
        """Output of block `layer` (0: what enters the first; None: the last); blocks above it do not run.

        wave: (batch, samples) in [-1, 1] at 16 kHz, mono. lengths: samples of each row, where some are padded: a row
        of a batch equals that row alone, and frames past its end are 0.
        Raises EncoderError for other shapes, rows under 560 samples (35 ms), and a layer that is not there.
        """
        self._check(wave, lengths, layer)
        if lengths is not None and wave.device.type == "cpu" and len(wave) > 1:
            # nothing is spent on padding, and a CPU is busy with a single row
            return row_by_row(lambda row: self(row, None, layer), wave, lengths)
        return self(wave, lengths, layer)

    def forward(
        self,
        wave: Float[Tensor, "batch samples"],
        lengths: Int[Tensor, "batch"] | None = None,
        layer: int | None = None,
    ) -> Float[Tensor, "batch frame width"]:
        """`features` with a gradient, and the rows side by side."""
        self._check(wave, lengths, layer)
        if lengths is None:
            lengths = torch.full((len(wave),), wave.shape[1])
        lengths = lengths.to(wave.device)
        x = self.filter_bank(wave[:, : int(lengths.max())], lengths)
        valid = torch.arange(x.shape[1], device=x.device) < self.frames(lengths)[:, None]
        return self.encode(x, None if valid.all() else valid, layer)

    def _check(self, wave: Tensor, lengths: Tensor | None, layer: int | None) -> None:
        if wave.ndim != 2 or not len(wave):
            raise EncoderError(f"wave must be mono of shape (batch, samples), got {tuple(wave.shape)}")
        shortest, longest = (wave.shape[1],) * 2 if lengths is None else (int(lengths.min()), int(lengths.max()))
        if shortest < self.reach:
            raise EncoderError(f"audio of {shortest} samples is too short: one frame takes {self.reach} at 16 kHz")
        if longest > wave.shape[1]:
            raise EncoderError(f"lengths say {longest} samples, the wave has {wave.shape[1]}")
        if layer is not None and not 0 <= layer <= self.config.layers:
            raise EncoderError(f"layer must be 0 to {self.config.layers}, got {layer}")

    def filter_bank(
        self, wave: Float[Tensor, "batch samples"], lengths: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch frame dim"]:
        """See `filter_bank`; in the precision of the weights."""
        return filter_bank(wave, lengths, self.config.mels).to(self.feature_projection.projection.weight.dtype)

    def encode(
        self,
        x: Float[Tensor, "batch frame dim"],
        valid: Bool[Tensor, "batch frame"] | None = None,
        layer: int | None = None,
    ) -> Float[Tensor, "batch frame width"]:
        """From normalised, stacked filter-bank frames (batch, frame, 160) on; valid: False past a row's end."""
        x = self.encoder(self.feature_projection(x), valid, layer)
        return x if valid is None else x.masked_fill(~valid[..., None], 0)


def filter_bank(
    wave: Float[Tensor, "batch samples"], lengths: Int[Tensor, "batch"], mels: int = 80
) -> Float[Tensor, "batch frame 2*{mels}"]:
    """What transformers' SeamlessM4TFeatureExtractor makes of each row at 16 kHz, without frames that it would mask.

    Every bin has mean 0 and variance 1 over the row's own frames. In double precision: a bin that stands still
    (digital silence) has variance 0, and rounding of its mean would come out 3,000 times as large.
    """
    x = kaldi_fbank(wave.double() * 2**15, 16000, mels)
    count = kaldi_frames(lengths, 16000)[:, None, None]
    padding = torch.arange(x.shape[1], device=x.device)[:, None] >= count
    x = x - x.masked_fill(padding, 0).sum(1, keepdim=True) / count
    x = x.masked_fill(padding, 0)
    x = x / (x.square().sum(1, keepdim=True) / (count - 1) + 1e-7).sqrt()
    pairs = x.shape[1] // 2
    return x[:, : 2 * pairs].unflatten(1, (pairs, 2)).flatten(2)


def w2vbert_2() -> W2vBert:
    """The released size: 580,493,120 parameters."""
    return W2vBert()
