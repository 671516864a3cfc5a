"""SpeechTokenizer: Unified Speech Tokenizer for Speech Language Models (Zhang et al. 2023, arXiv 2308.16692).

A SEANet that sees both sides, with an LSTM at the bottleneck, two-way in the encoder (§3.1), residual vector
quantization, and a teacher for the first level: its vectors, through one linear layer, learn to be HuBERT's features
or to tell its units (§3.3). Level 1 then carries the content, the levels above it the voice (§4.4).
The losses are in `loss/`, the discriminators in `nn/discriminator.py`, training in `train/codec.py`.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone import config as configs
from senone.errors import SenoneError
from senone.loss import distill
from senone.nn.activation import Snake
from senone.nn.seanet import LARGE, NOISE, SMALL, karhunen_loeve
from senone.nn.stream import conv, elu_
from senone.quantize import Quantized, full
from senone.quantize.vq import ResidualVQ
from senone.tokenizer import AudioTokenizer, Context, Output

Activation = Literal["elu", "snake"]
FINE = 2  # stages next to the samples, where there are more steps than features
PIECE = 16000  # samples in work at once there
HALO = 8  # frames of those stages that one hangs on, at either side: 3 taps of a k7, 1 of each k3 and stride


class SpeechTokenizerError(SenoneError):
    """A target for a model that has no head for it."""


@dataclass(frozen=True)
class Config:
    """Filters at the sample rate (doubled by each stride), embedding size, codebooks: the defaults are the paper's.

    teacher_width: of the features that level 1 learns to be, or the number of units it learns to tell; 0: no teacher.
    distill: what "alike" is, for features (see `loss.distill`). block, context: seconds analysed at once, and before
    and after that. A recording up to block + context long is one window, and so as in the official code; a longer one
    is cut, since its LSTM would see all of it. beam: choices of codes that encoding keeps in mind, 1 in the paper (see
    `ResidualVQ`).
    """

    sample_rate: int = 16000
    filters: int = 64
    strides: tuple[int, ...] = (2, 4, 5, 8)
    dim: int = 1024
    activation: Activation = "elu"
    levels: int = 8
    size: int = 1024
    beam: int = 1
    teacher_width: int = 768
    distill: Literal["d_axis", "t_axis"] = "d_axis"
    block: float = 30.0
    context: float = 5.0
    exact: bool = True


class Conv(nn.Conv1d):
    """Activation, then a convolution to ceil(time / stride) frames: what it lacks at both ends is reflected."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, act: Activation | None = None) -> None:
        super().__init__(inside, outside, kernel, stride)
        self.act = Act(inside, act)

    def forward(self, x: Float[Tensor, "batch in time"]) -> Float[Tensor, "batch out frame"]:  # type: ignore[override]
        stride, spare = self.stride[0], self.kernel_size[0] - self.stride[0]
        x = self.act(x, spare - spare // 2, spare // 2 + -x.shape[2] % stride, reflect=True)
        return conv(x, self.weight, self.bias, stride)


class Up(nn.Module):
    """Activation, then a transposed convolution with a kernel of two strides, `stride` samples a frame.

    Computed, and its weights kept, as a convolution over two frames with `stride` outputs at once: (stride * out, in,
    2), the frame before first.
    """

    def __init__(self, inside: int, outside: int, stride: int, act: Activation) -> None:
        super().__init__()
        self.stride, self.act = stride, Act(inside, act)
        self.weight = nn.Parameter(torch.zeros(stride * outside, inside, 2))
        self.bias = nn.Parameter(torch.zeros(outside))

    def forward(self, x: Float[Tensor, "batch in frame"]) -> Float[Tensor, "batch out time"]:
        samples, first = x.shape[2] * self.stride, self.stride - self.stride // 2
        y = conv(self.act(x, 1, 1, reflect=False), self.weight, self.bias.repeat(self.stride))
        y = y.transpose(1, 2).unflatten(2, (self.stride, -1)).flatten(1, 2)
        return y[:, first : first + samples].transpose(1, 2)


class Act(nn.Module):
    """ELU, Snake, or nothing, with something before and after it: zeros, or the reflection of what is there."""

    def __init__(self, width: int, kind: Activation | None) -> None:
        super().__init__()
        self.kind = kind
        if kind == "snake":
            self.snake = Snake(width)

    def forward(
        self, x: Float[Tensor, "batch width time"], left: int, right: int, reflect: bool
    ) -> Float[Tensor, "batch width longer"]:
        """Where there is nothing to reflect, in a short sound, zeros follow it first, as in the official code."""
        time = x.shape[2]
        if self.kind == "snake":
            x = self.snake(x)
        if not left and not right:
            return self._elu(x)
        lack = max(0, max(left, right) - time + 1) if reflect else 0
        if torch.is_grad_enabled() or lack:
            x = F.pad(self._elu(x), (0, lack))
            if not reflect:
                return F.pad(x, (left, right))
            ends = x[:, :, 1 : left + 1].flip(2), x[:, :, -right - 1 : -1].flip(2)
            return torch.cat([ends[0], x, ends[1]], 2)[:, :, : left + time + right]
        # written once, where the convolution reads it, features next to each other
        y = x.new_empty(len(x), left + time + right, x.shape[1]).transpose(1, 2)
        inner = y[:, :, left : left + time]
        if self.kind == "elu":
            torch.ops.aten.elu.out(x, out=inner)
        else:
            inner.copy_(x)
        y[:, :, :left] = inner[:, :, 1 : left + 1].flip(2) if reflect else 0
        y[:, :, left + time :] = inner[:, :, time - right - 1 : time - 1].flip(2) if reflect else 0
        return y

    def _elu(self, x: Tensor) -> Tensor:
        if self.kind != "elu":
            return x
        return elu_(x) if x.requires_grad else F.elu(x)  # x is needed as it is, beside this


class Residual(nn.Module):
    """Conv k3 to half the width, and back by one tap; plus the input through one tap."""

    def __init__(self, width: int, act: Activation) -> None:
        super().__init__()
        self.conv, self.mix = Conv(width, width // 2, 3, act=act), Conv(width // 2, width, 1, act=act)
        self.skip = Conv(width, width, 1)

    def forward(self, x: Float[Tensor, "batch width time"]) -> Float[Tensor, "batch width time"]:
        y = self.mix(self.conv(x))
        return self.skip(x) + y if y.requires_grad else y.add_(self.skip(x))


class Memory(nn.Module):
    """Two layers of LSTM, one or both ways, plus the input (once for each way)."""

    def __init__(self, width: int, both: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, 2, bidirectional=both)

    def forward(self, x: Float[Tensor, "batch width frame"]) -> Float[Tensor, "batch widths frame"]:
        rows = x.permute(2, 0, 1)
        y = self.lstm(rows)[0].unflatten(2, (-1, x.shape[1]))
        y = y + rows[:, :, None] if y.requires_grad else y.add_(rows[:, :, None])
        return y.flatten(2).permute(1, 2, 0)


class Encoder(nn.Module):
    """(batch 1 samples) -> (batch dim frame)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, act = config.filters, config.activation
        self.start, self.stages = Conv(1, width, 7), nn.ModuleList()
        for stride in config.strides:
            self.stages.append(nn.Sequential(Residual(width, act), Conv(width, 2 * width, 2 * stride, stride, act)))
            width *= 2
        self.memory, self.end = Memory(width, both=True), Conv(2 * width, config.dim, 7, act=act)

    def forward(self, wave: Float[Tensor, "batch 1 samples"]) -> Float[Tensor, "batch dim frame"]:
        rate = prod(stage[1].stride[0] for stage in self.stages[:FINE])  # type: ignore[index,union-attr]
        x = piecewise(nn.Sequential(self.start, *self.stages[:FINE]), wave, rate, 1)
        for stage in self.stages[FINE:]:
            x = stage(x)
        return self.end(self.memory(x))


class Decoder(nn.Module):
    """(batch dim frame) -> (batch 1 samples): the encoder mirrored, its LSTM one-way."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, act = config.filters * 2 ** len(config.strides), config.activation
        self.start, self.memory, self.stages = Conv(config.dim, width, 7), Memory(width, both=False), nn.ModuleList()
        for stride in reversed(config.strides):
            width //= 2
            self.stages.append(nn.Sequential(Up(2 * width, width, stride, act), Residual(width, act)))
        self.end = Conv(width, 1, 7, act=act)

    def forward(self, z: Float[Tensor, "batch dim frame"]) -> Float[Tensor, "batch 1 samples"]:
        x = self.memory(self.start(z))
        for stage in self.stages[:-FINE]:
            x = stage(x)
        rate = prod(up.stride for up, _ in self.stages[-FINE:])  # type: ignore[misc,union-attr]
        return piecewise(nn.Sequential(*self.stages[-FINE:], self.end), x, 1, rate)


class SpeechTokenizer(AudioTokenizer):
    """Waveform codec: (batch 1 samples) -> (batch dim frame) -> codes and back, 1 frame = product(strides) samples."""

    Config = Config
    model_type = "senone_speechtokenizer"
    quantizer: ResidualVQ
    causal = False
    ragged = True

    def __init__(self, config: Config = Config()) -> None:
        """Raises ConfigError for sizes that cannot be."""
        super().__init__()
        configs.at_least(config, 1, "sample_rate", "filters", "strides", "dim", "levels", "size", "beam")
        configs.at_least(config, 0, "teacher_width", "block", "context")
        self.config = config
        self.sample_rate, self.hop, self.exact = config.sample_rate, prod(config.strides), config.exact
        self.block, self.context = config.block, Context(config.context, config.context)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantizer = ResidualVQ(config.dim, config.size, config.levels, beam=config.beam)
        self.transform = nn.Linear(config.dim, config.teacher_width) if config.teacher_width else None
        start_linear(self.encoder, self.decoder, config.strides)

    def analyse(
        self, wave: Float[Tensor, "batch 1 samples"], state: None = None
    ) -> tuple[Float[Tensor, "batch dim frame"], None]:
        """Encoder (§3.1): ceil(samples / hop) frames."""
        return self.encoder(wave), None

    def synthesise(
        self, z: Float[Tensor, "batch dim frame"], state: None = None
    ) -> tuple[Float[Tensor, "batch 1 samples"], None]:
        """Decoder."""
        return self.decoder(z), None

    def forward(
        self,
        wave: Float[Tensor, "batch 1 samples"],
        levels: Tensor | int | None = None,
        *,
        quantise: bool = True,
        target: Tensor | None = None,
    ) -> Output:
        """Training, as any AudioTokenizer's; `target` adds the loss "distill" (§3.3).

        target: a teacher's features (batch frame teacher_width), or its units, int64 (batch frame). Raises
        SpeechTokenizerError where the model has no head for them.
        """
        z, _ = self.analyse(wave)
        first = full(z).transpose(1, 2)
        quantized = Quantized(z, z.new_zeros(len(z), 0, z.shape[2], dtype=torch.long), {})
        if quantise:
            codes = next(iter(self.quantizer)).codes  # those the codes are of: training moves them within the next call
            quantized = self.quantizer(z, levels)
            first = first + (F.embedding(quantized.codes[:, 0], codes) - first).detach()
        out, _ = self.synthesise(quantized.z)
        losses = quantized.losses if target is None else quantized.losses | {"distill": self._distill(first, target)}
        return Output(out[:, :, : wave.shape[2]], quantized.codes, losses)

    def _distill(self, first: Float[Tensor, "batch frame dim"], target: Tensor) -> Float[Tensor, ""]:
        width = self.config.teacher_width
        if self.transform is None:
            raise SpeechTokenizerError("this model has no head for a teacher's target: its teacher_width is 0")
        said = self.transform(first)
        if not target.is_floating_point():
            return distill.pseudo_label(said, target)
        if target.shape[2] != width:
            raise SpeechTokenizerError(f"the teacher's features are {target.shape[2]} wide, teacher_width is {width}")
        return {"d_axis": distill.d_axis, "t_axis": distill.t_axis}[self.config.distill](said, target)


def piecewise(
    run: nn.Module, x: Float[Tensor, "batch in time"], before: int, after: int
) -> Float[Tensor, "batch out longer"]:
    """run(x) without a gradient, in pieces that stay in the cache and in memory that is there already: at the sample
    rate, fetching new memory takes longer than computing. `before` steps of x become `after` of the result, which
    hangs on HALO times as many at most on either side.
    """
    frames, size = -(-x.shape[2] // before), PIECE // (before * after * max(1, len(x))) + 1
    if torch.is_grad_enabled() or frames <= size + HALO:
        return run(x)
    pieces = []
    for first in range(0, frames, size):
        start, last = max(0, first - HALO), min(frames, first + size)
        piece = run(x[:, :, start * before : (last + HALO) * before])
        pieces.append(piece[:, :, (first - start) * after : (last - start) * after].transpose(1, 2))
    return torch.cat(pieces, 1).transpose(1, 2)


def turned(weight: Float[Tensor, "in out taps"]) -> Float[Tensor, "outs in 2"]:
    """The weight of a transposed convolution with a kernel of two strides, as `Up` keeps it."""
    halves = weight.unflatten(2, (2, -1))  # (in, out, frame, step): what a frame gives to its own steps and the next's
    return halves.permute(3, 1, 0, 2).flip(3).flatten(0, 1).contiguous()


@torch.no_grad()
def start_linear(encoder: Encoder, decoder: Decoder, strides: tuple[int, ...]) -> None:
    """Weights to start training with, as `nn.seanet.start_linear` has them and for its reasons: a linear transform
    codec and a little noise. One tap leads by the residual units, and the LSTMs begin as hardly more than their input.
    """
    for part in (*encoder.modules(), *decoder.modules()):
        if isinstance(part, nn.Conv1d | Up):
            part.weight.normal_(std=NOISE * part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                part.bias.zero_()
        elif isinstance(part, nn.LSTM):
            for name, value in part.named_parameters():
                value.mul_(0 if "bias" in name else NOISE if "ih_l1" in name else 1)
    for part in (*encoder.modules(), *decoder.modules()):
        if isinstance(part, Residual):
            part.conv.weight.div_(NOISE)
            part.skip.weight[:, :, 0] += torch.eye(part.skip.in_channels)
    encoder.start.weight[0, 0, 3] += SMALL
    decoder.end.weight[0, 0, 3] += 1 / SMALL
    width = encoder.start.out_channels
    widths = [width * 2 ** (i + 1) for i in range(len(strides))]
    downs, ups = [down for _, down in encoder.stages], [up for up, _ in reversed(decoder.stages)]  # type: ignore[misc]
    for down, up, weights in zip(downs, ups, karhunen_loeve(strides, widths), strict=True):
        new, old, stride = weights.shape
        taps = slice(stride - stride // 2, 2 * stride - stride // 2)  # those of the frame's own samples
        whole = down.weight.new_zeros(*down.weight.shape)
        whole[:new, :old, taps] = weights.to(whole)
        down.weight += whole
        up.weight += turned(whole)
    encoder.end.weight[:, : widths[-1], 3] += LARGE * torch.eye(len(encoder.end.weight), widths[-1])
    decoder.start.weight /= LARGE  # its noise, too, or it would be louder than the signal
    decoder.start.weight[:, :, 3] += torch.eye(*decoder.start.weight.shape[:2]) / LARGE


def official() -> SpeechTokenizer:
    """The released net: 16 kHz, 50 frames a second, 8 levels = 4 kb/s, 103.68 M parameters with its teacher's head."""
    return SpeechTokenizer(Config(exact=False))
