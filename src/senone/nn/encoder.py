"""The encoder of wav2vec 2.0 (2006.11477 §2) and HuBERT (2106.07447 §II): waveform -> convolutions -> transformer.

One encoder with explicit switches, since three kinds of "LARGE" are in the wild. Names of parameters are those of
Hugging Face's files. Unlike its peers it is length-aware: features of a padded batch equal those of each row alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log1p, pi, prod
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from senone.errors import SenoneError
from senone.nn.stream import conv
from senone.nn.transformer import EPS, Transformer

SHORT = 32  # samples, 2 ms: a first kernel within (the papers' have 10) cannot tell bands apart


class EncoderError(SenoneError):
    """A wave too short, or a layer that is not there."""


@dataclass(frozen=True)
class EncoderConfig:
    """Defaults: BASE, 95 M parameters.

    channels, kernels, strides: of the convolutions. feat_norm: after the first of them one GroupNorm with a group per
    channel ("group"), or after each a LayerNorm ("layer"). heads cannot be read off a checkpoint's weights: 12 in all
    released BASE ones, whatever the papers' tables say. wav_norm: the wave to mean 0 and variance 1, with fairseq's
    or Hugging Face's epsilon. padding: "exact", or what peers do with the zeros after a short row: "fairseq" counts
    them in the GroupNorm, "none" takes them for sound. feature_grad: scale of the gradient into the convolutions.
    """

    channels: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    feat_norm: Literal["group", "layer"] = "group"
    conv_bias: bool = False
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    ln_position: Literal["pre", "post"] = "post"
    pos_kernel: int = 128
    pos_groups: int = 16
    wav_norm: Literal["none", "fairseq", "hf"] = "none"
    padding: Literal["exact", "fairseq", "none"] = "exact"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.1
    layer_drop: float = 0.05
    feature_grad: float = 0.1


class Encoded(NamedTuple):
    """x: the transformer's output; features: what the convolutions say, normalised, never masked; penalty: the mean
    of their square before that; valid: frames that are not padding, None where all are."""

    x: Float[Tensor, "batch frame width"]
    features: Float[Tensor, "batch frame channel"]
    penalty: Float[Tensor, ""]
    valid: Bool[Tensor, "batch frame"] | None


class ConvLayer(nn.Module):
    """Conv -> norm, if it has one -> GELU."""

    def __init__(self, into: int, out: int, kernel: int, stride: int, bias: bool, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv1d(into, out, kernel, stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm = norm
        if norm:
            self.layer_norm = nn.GroupNorm(out, out, EPS) if norm == "group" else nn.LayerNorm(out, EPS)

    def forward(
        self, x: Float[Tensor, "batch in time"], lengths: Int[Tensor, "batch"] | None
    ) -> Float[Tensor, "batch out frame"]:
        """`lengths`: frames of each row that the GroupNorm shall count; None for all."""
        x = self._conv(x)
        if self.norm == "layer":
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.norm and lengths is None:
            x = self.layer_norm(x)
        elif self.norm:
            x = _group_norm(x, lengths, self.layer_norm.weight, self.layer_norm.bias)  # type: ignore[arg-type]
        return F.gelu(x)

    def _conv(self, x: Tensor) -> Tensor:
        weight, bias, stride = self.conv.weight, self.conv.bias, self.conv.stride[0]
        if x.shape[1] == 1 and x.device.type == "cpu":  # a matrix product: twice as fast as oneDNN
            y = weight[:, 0] @ x[:, 0].unfold(1, weight.shape[2], stride).transpose(1, 2)
            return y if bias is None else y + bias[:, None]
        # a LayerNorm wants the channels last in memory, a GroupNorm is four times slower on them
        return conv(x, weight, bias, stride) if self.norm == "layer" else self.conv(x)


class ConvFeatures(nn.Module):
    """Waveform to frames: (batch samples) -> (batch channel frame)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        into = (1, *config.channels)
        norms = [config.feat_norm if i == 0 or config.feat_norm == "layer" else "" for i in range(len(config.channels))]
        self.conv_layers = nn.ModuleList(
            ConvLayer(into[i], into[i + 1], config.kernels[i], config.strides[i], config.conv_bias, norms[i])
            for i in range(len(norms))
        )
        if config.kernels[0] > SHORT:
            _start_as_filter_bank(*(layer.conv for layer in self.conv_layers[:2]))  # type: ignore[misc]

    def forward(self, wave: Float[Tensor, "batch samples"], lengths: Int[Tensor, "batch"] | None) -> Tensor:
        x = wave[:, None]
        for layer in self.conv_layers:
            if lengths is not None:
                lengths = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1  # type: ignore[operator,index]
            x = layer(x, lengths)
        return x


class Projection(nn.Module):
    """LayerNorm, then Linear: channels to width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels, EPS)
        self.projection = nn.Linear(channels, width)


class SpeechEncoder(nn.Module):
    """The encoder; models add their heads to it."""

    sample_rate = 16000

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        c = self.config = config
        if c.width % c.heads or c.width % c.pos_groups:
            raise EncoderError(f"width {c.width} is not a multiple of heads {c.heads} and of pos_groups {c.pos_groups}")
        self.hop = prod(c.strides)
        self.masked_spec_embed = nn.Parameter(torch.rand(c.width))
        self.feature_extractor = ConvFeatures(c)
        self.feature_projection = Projection(c.channels[-1], c.width)
        self.encoder = Transformer(
            c.width,
            c.layers,
            c.heads,
            c.hidden,
            c.ln_position,
            c.pos_kernel,
            c.pos_groups,
            dropout=c.dropout,
            attention_dropout=c.attention_dropout,
            activation_dropout=c.activation_dropout,
            layer_drop=c.layer_drop,
        )

    @property
    def reach(self) -> int:
        """Samples that one frame sees, 400; frame t starts at sample t * hop."""
        seen = 1
        for kernel, stride in zip(reversed(self.config.kernels), reversed(self.config.strides), strict=True):
            seen = (seen - 1) * stride + kernel
        return seen

    def frames(self, samples: Any) -> Any:
        """Frames of so many samples, an int or a tensor of ints."""
        for kernel, stride in zip(self.config.kernels, self.config.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def forward(
        self,
        wave: Float[Tensor, "batch samples"],
        lengths: Int[Tensor, "batch"] | None = None,
        mask: Bool[Tensor, "batch frame"] | None = None,
        channel_mask: Bool[Tensor, "batch width"] | None = None,
        layer: int | None = None,
    ) -> Encoded:
        """Encode `lengths` samples of each row (None: all). Frames in `mask` are hidden from the transformer, channels
        in `channel_mask` are set to 0 (SpecAugment). `layer`: see `Transformer.forward`.

        Raises EncoderError for a row that is too short for one frame.
        """
        shortest = wave.shape[1] if lengths is None or not len(lengths) else int(lengths.min())
        if shortest < self.reach:
            raise EncoderError(f"audio of {shortest} samples is too short: one frame takes {self.reach} at 16 kHz")
        if lengths is not None and (self.config.padding == "none" or shortest == wave.shape[1]):
            lengths = None
        if self.config.wav_norm != "none":
            wave = _normalise(wave, lengths, 1e-5 if self.config.wav_norm == "fairseq" else 1e-7)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.feature_grad != 0):
            z = self.feature_extractor(wave, lengths if self.config.padding == "exact" else None)
        if self.training and self.config.feature_grad not in (0, 1):
            z = z * self.config.feature_grad + z.detach() * (1 - self.config.feature_grad)  # scales the gradient only
        z = z.transpose(1, 2)
        valid = None
        if lengths is not None:
            valid = torch.arange(z.shape[1], device=z.device) < self.frames(lengths)[:, None]
        features = self.feature_projection.layer_norm(z)
        x = self.feature_projection.projection(features)
        x = F.dropout(x, self.config.input_dropout, self.training)
        if mask is not None:
            x = torch.where(mask[:, :, None], self.masked_spec_embed.to(x.dtype), x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None], 0.0)
        return Encoded(self.encoder(x, valid, layer), features, _penalty(z, valid), valid)

    @torch.no_grad()
    def features(
        self,
        wave: Float[Tensor, "batch samples"],
        lengths: Int[Tensor, "batch"] | None = None,
        layer: int | None = None,
        final_norm: bool | None = None,
    ) -> Float[Tensor, "batch frame width"]:
        """What block `layer` says of 16 kHz sound: its raw output (0: what enters the first block), or, by default,
        the end of the encoder. A row of a padded batch equals the same row alone; its frames past the end are 0.

        final_norm: whether the LayerNorm after the last block of a "pre" model follows; by default only without
        `layer`. Raises EncoderError for a row under 400 samples or a layer that is not there.
        """
        if layer is not None and not 0 <= layer <= self.config.layers:
            raise EncoderError(f"layer must be 0 to {self.config.layers}, got {layer}")
        if lengths is not None and wave.device.type == "cpu" and self.config.padding == "exact" and len(wave) > 1:
            # nothing is spent on padding, and a CPU is busy with a single row
            return row_by_row(lambda row: self.features(row, None, layer, final_norm), wave, lengths)
        out = self(wave, lengths, layer=self.config.layers if layer is None else layer)
        last = self.config.ln_position == "pre" and (layer is None if final_norm is None else final_norm)
        x = self.encoder.layer_norm(out.x) if last else out.x
        return x if out.valid is None else x.where(out.valid[:, :, None], 0.0)


def row_by_row(
    features: Callable[[Tensor], Tensor], wave: Float[Tensor, "batch samples"], lengths: Int[Tensor, "batch"]
) -> Float[Tensor, "batch frame width"]:
    """`features` of each row of a padded batch as if it were alone; frames past its end are 0."""
    rows = [features(row[None, :n])[0] for row, n in zip(wave, lengths.tolist(), strict=True)]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


@torch.no_grad()
def _start_as_filter_bank(first: nn.Conv1d, second: nn.Conv1d) -> None:
    """Begin with band-pass filters, a cosine and a sine for each of the bands on a mel scale (60 to 7600 Hz), whose
    rectified outputs the next layer sums and smooths: a spectrum's envelope, which random filters take hours to find.
    """
    size, bands = first.kernel_size[0], min(first.out_channels // 2, second.out_channels)
    low, high = (log1p(edge / 700) for edge in (60, 7600))
    hertz = 700 * torch.expm1(torch.linspace(low, high, bands))
    time = (torch.arange(size) - (size - 1) / 2) / SpeechEncoder.sample_rate
    width = (1 / (2 * pi * (0.12 * hertz).clamp(min=60))).clamp(max=size / 4 / SpeechEncoder.sample_rate)
    window = torch.exp(-0.5 * (time / width[:, None]) ** 2)
    angle = 2 * pi * hertz[:, None] * time
    for phase, turned in enumerate((angle.cos(), -angle.sin())):
        wave = window * turned
        wave = wave - window * (wave.sum(1) / window.sum(1))[:, None]
        first.weight[phase : 2 * bands : 2, 0] = F.normalize(wave, dim=1)
    smooth = torch.hann_window(second.kernel_size[0] + 2)[1:-1]
    second.weight.mul_(0.3)
    band = torch.arange(bands)
    for phase in (0, 1):
        second.weight[band, 2 * band + phase] += smooth / smooth.sum()


def _group_norm(x: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GroupNorm with a group per channel, over the first `lengths` frames of each row, in single precision at least."""
    y = _standardised(x if x.dtype == torch.float64 else x.float(), lengths[:, None, None], EPS)
    return (y * weight[:, None] + bias[:, None]).to(x.dtype)


def _normalise(wave: Tensor, lengths: Tensor | None, eps: float) -> Tensor:
    """To mean 0 and variance 1 over each row, padding left out."""
    if lengths is None:
        return F.layer_norm(wave, wave.shape[1:], eps=eps)
    return _standardised(wave, lengths[:, None], eps)


def _standardised(x: Tensor, lengths: Tensor, eps: float) -> Tensor:
    """Mean 0 and variance 1 over the first `lengths` places of the last axis; 0 after them."""
    valid, count = torch.arange(x.shape[-1], device=x.device) < lengths, lengths.to(x)
    x = (x - x.where(valid, 0.0).sum(-1, keepdim=True) / count).where(valid, 0.0)
    return x * (x.square().sum(-1, keepdim=True) / count + eps).rsqrt()


def _penalty(z: Tensor, valid: Tensor | None) -> Tensor:
    """The mean square of the features, over valid frames."""
    square = z.float().square().mean(2)
    return square.mean() if valid is None else square[valid].mean()
