"""X-codec2, the tokenizer of Llasa (2502.04128, §3.1): one codebook, whose codes know what is said and how it sounds.

Two encoders side by side, a frozen one of speech (w2v-BERT 2.0, block 16) and a convolutional one of sound; finite
scalar quantization to [4] * 8 = 65,536 codes, 50 a second; convolutions and a transformer at the frame rate, and an
inverse STFT (Vocos). In training, the code must also give back what the speech encoder says.

The published transformer has rotary embeddings, turned by the same angle in q and k, as they go along the heads: they
cancel out, and are left out. GroupNorm and attention see all that is decoded at once, here always the same blocks.
"""

from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone import config as configs
from senone.config import ConfigError
from senone.errors import SenoneError
from senone.hub import Pretrained, load_weights, part, table_of, width_of
from senone.nn.activation import SnakeBeta
from senone.quantize import Quantized
from senone.quantize.fsq import FSQ
from senone.tokenizer import AudioTokenizer, Context, Output

GROUPS = 32  # of every GroupNorm
LOUDEST = 100.0  # magnitude that the head clips at


class XCodec2Error(SenoneError):
    """A semantic encoder that is none, cannot be saved, or has another clock than the codec."""


@dataclass(frozen=True)
class Config:
    """Defaults: the released sizes.

    channels: of the first convolution, doubled at each of the strides, whose product is the hop. anti_alias: whether
    SnakeBeta runs at twice the rate. width, layers, heads, hidden: of the decoder; the acoustic encoder ends in its
    width. n_fft: window of the head, a multiple of the hop. steps, bounds: see `FSQ`.
    semantic: model_type and config of the speech encoder, cut off above its `layer` (None: its end), which hears `pad`
    samples of silence before and after. teach: whether it has the semantic decoder, which only training needs.
    block, context: seconds in work at once, and before and after that, as in `Units`.
    """

    sample_rate: int = 16000
    channels: int = 48
    strides: tuple[int, ...] = (2, 2, 4, 4, 5)
    anti_alias: bool = True
    width: int = 1024
    layers: int = 12
    heads: int = 16
    hidden: int = 4096
    dropout: float = 0.1
    n_fft: int = 1280
    steps: tuple[int, ...] = (4,) * 8
    bounds: Literal[1, 2] = 2
    semantic: dict[str, Any] = field(default_factory=lambda: {"model_type": "senone_w2vbert", "layers": 16})
    layer: int | None = None
    pad: int = 160
    teach: bool = True
    block: float = 30.0
    context: float = 5.0


class ResidualUnit(nn.Module):
    """SnakeBeta -> Conv k7 (dilated) -> SnakeBeta -> Conv k1, plus the input."""

    def __init__(self, width: int, dilation: int, anti_alias: bool) -> None:
        super().__init__()
        self.act1, self.act2 = SnakeBeta(width, anti_alias), SnakeBeta(width, anti_alias)
        self.conv1 = nn.Conv1d(width, width, 7, dilation=dilation, padding=3 * dilation)
        self.conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        y = same(self.act2(same(self.act1(x), self.conv1)), self.conv2)
        return x + y if y.requires_grad else y.add_(x)


class EncoderBlock(nn.Module):
    """Three residual units, dilations 1, 3, 9; then a strided convolution to twice the width."""

    def __init__(self, width: int, stride: int, anti_alias: bool) -> None:
        super().__init__()
        self.units = nn.Sequential(*(ResidualUnit(width, dilation, anti_alias) for dilation in (1, 3, 9)))
        self.act = SnakeBeta(width, anti_alias)
        self.down = nn.Conv1d(width, 2 * width, 2 * stride, stride, padding=-(-stride // 2))

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch frame out"]:
        return same(self.act(self.units(x)), self.down)


class AcousticEncoder(nn.Module):
    """(batch samples 1) -> (batch frame width). A frame sees 8,158 samples, and what the filters add."""

    def __init__(self, channels: int, strides: tuple[int, ...], width: int, anti_alias: bool) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, channels, 7, padding=3)
        widths = [channels * 2**i for i in range(len(strides) + 1)]
        pairs = zip(widths, strides, strict=False)
        self.blocks = nn.Sequential(*(EncoderBlock(width, stride, anti_alias) for width, stride in pairs))
        self.act = SnakeBeta(widths[-1], anti_alias)
        self.last = nn.Conv1d(widths[-1], width, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch samples 1"]) -> Float[Tensor, "batch frame width"]:
        return same(self.act(self.blocks(same(x, self.first))), self.last)


class SemanticNet(nn.Module):
    """Semantic encoder and, with weights of its own, decoder: four convolutions k3, (batch frame width) in and out.

    The published code adds x + convs(relu(x)), but its ReLU works in place: what it adds to is relu(x).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        convs = [nn.Conv1d(width, width, 3, padding=1, bias=inner) for inner in (False, True, True, False)]
        self.first, self.conv1, self.conv2, self.last = convs

    def forward(self, x: Float[Tensor, "batch frame width"]) -> Float[Tensor, "batch frame width"]:
        x = same(x, self.first).relu()
        return same(x + same(same(x, self.conv1).relu(), self.conv2), self.last)


class ResBlock(nn.Module):
    """Twice GroupNorm -> SiLU -> Conv k3, the second time with dropout; plus the input."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width, eps=1e-6), nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.conv1, self.conv2 = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, width, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "batch frame width"]) -> Float[Tensor, "batch frame width"]:
        y = same(F.silu(_norm(x, self.norm1)), self.conv1)
        y = F.dropout(F.silu(_norm(y, self.norm2)), self.dropout, self.training)
        return x + same(y, self.conv2)


class Block(nn.Module):
    """Pre-norm transformer block without positions: RMSNorm, attention over everything; RMSNorm, SiLU MLP. No bias."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.wide, self.narrow = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "batch frame width"]) -> Float[Tensor, "batch frame width"]:
        # under autocast, in the type of the weights: torch warns of a mixture, and is slow with it
        q, k, v = self.qkv(self.norm1(x.to(self.norm1.weight))).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.narrow(F.silu(self.wide(self.norm2(x.to(self.norm2.weight)))))


class Decoder(nn.Module):
    """(batch frame width) -> (batch samples): two ResBlocks, the transformer, two ResBlocks, and the iSTFT head."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int, n_fft: int, hop: int, dropout: float) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.embed = nn.Conv1d(width, width, 7, padding=3)
        self.before = nn.Sequential(*(ResBlock(width, dropout) for _ in range(2)))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(layers)))
        self.after = nn.Sequential(*(ResBlock(width, dropout) for _ in range(2)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, n_fft + 2)

    def forward(self, x: Float[Tensor, "batch frame width"]) -> Float[Tensor, "batch samples"]:
        x = self.after(self.blocks(self.before(same(x, self.embed))))
        return self.speak(self.head(self.norm(x)))

    def speak(self, x: Float[Tensor, "batch frame bins"]) -> Float[Tensor, "batch samples"]:
        """Log-magnitudes and phases to sound, in single precision at least: inverse FFT, Hann window, overlap-add
        divided by that of the squared window; hop samples a frame, so (n_fft - hop) / 2 are cut off at both ends."""
        magnitude, phase = (x if x.dtype == torch.float64 else x.float()).chunk(2, -1)
        spectrum = torch.polar(magnitude.exp().clamp(max=LOUDEST), phase)
        window = torch.hann_window(self.n_fft, dtype=magnitude.dtype, device=x.device)
        wave = self._overlap(torch.fft.irfft(spectrum, self.n_fft) * window)
        envelope = self._overlap(window.square().expand(1, x.shape[1], -1))
        side = (self.n_fft - self.hop) // 2
        return (wave / envelope.clamp(min=1e-11))[:, side : side + x.shape[1] * self.hop]

    def _overlap(self, pieces: Float[Tensor, "batch frame size"]) -> Float[Tensor, "batch samples"]:
        """The sum of pieces that lie a hop apart, by whole hops."""
        parts = pieces.unflatten(2, (-1, self.hop)).unbind(2)
        return sum(F.pad(part, (0, 0, i, len(parts) - 1 - i)) for i, part in enumerate(parts)).flatten(1)  # type: ignore


class XCodec2(AudioTokenizer):
    """(batch 1 samples) -> (batch width + semantic frame) -> codes -> (batch 1 samples). One level."""

    Config = Config
    model_type = "senone_xcodec2"
    config: Config
    quantizer: FSQ
    causal = False
    ragged = True
    exact = False  # a window comes alone and in one shape: the argument of `Units`

    def __init__(self, config: Config = Config(), semantic: Any = None) -> None:
        """`semantic`: the speech encoder, used as it is; without it one is made from the config.

        Raises ConfigError for sizes that do not go together, XCodec2Error for an encoder of another clock.
        """
        super().__init__()
        self.config, self.sample_rate, self.hop = config, config.sample_rate, prod(config.strides)
        _check(config, self.hop)
        self.block, self.context = config.block, Context(config.context, config.context)
        self.semantic: Any = part(config.semantic, "semantic") if semantic is None else semantic
        _fits(self.semantic, self.sample_rate, self.hop)
        width, other = config.width, width_of(self.semantic)
        self.semantic_encoder = SemanticNet(other)
        self.acoustic_encoder = AcousticEncoder(config.channels, config.strides, width, config.anti_alias)
        self.enter = nn.Linear(other + width, other + width)
        self.quantizer = FSQ(other + width, config.steps, config.bounds)
        self.leave = nn.Linear(other + width, width)
        sizes = {key: getattr(config, key) for key in ("layers", "heads", "hidden", "n_fft", "dropout")}
        self.decoder = Decoder(width, hop=self.hop, **sizes)
        if config.teach:
            self.leave_semantic, self.semantic_decoder = nn.Linear(other + width, other), SemanticNet(other)
        self._start()
        self.semantic.requires_grad_(False)
        self.semantic.eval()

    def _start(self) -> None:
        """Weights to begin with on the way to the quantizer. From torch's own, which shrink what goes through by 1.7 a
        layer, all that is said and heard would arrive in one cell; from these it spreads over a few hundred."""
        sound, speech = self.acoustic_encoder, self.semantic_encoder
        downs: list[Any] = [block.down for block in sound.blocks]
        for layer in (*downs, sound.last, speech.first, speech.last, self.enter, self.quantizer.enter):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        nn.init.normal_(sound.first.weight, std=2 * sound.first.weight[0].numel() ** -0.5)  # speech is no unit noise

    @classmethod
    def around(cls, encoder: Any, config: Config = Config(), layer: int | None = None) -> "XCodec2":
        """A codec, with random weights elsewhere, whose semantic encoder is a copy of `encoder` up to `layer`.

        encoder: as `senone.load` gives it and `Units` describes it. It is written over `semantic`, `layer` and `pad` of
        the config: half of what its window has over a hop is padded on both sides. Weights above `layer`, and heads of
        pre-training, are left out; what ends there ends as the encoder does, in a "pre" model with its LayerNorm, or
        features would come at whatever scale the residuals have grown to (15 in hubert-mini). Raises XCodec2Error for
        what is no encoder, or has another clock or no such layer.
        """
        _fits(encoder, config.sample_rate, prod(config.strides))
        if not isinstance(encoder, Pretrained):
            raise XCodec2Error(f"a {type(encoder).__name__} cannot be saved in a codec: it is no hub.Pretrained")
        teacher: Any = encoder
        known = {each.name for each in fields(teacher.config)}
        depth = teacher.config.layers if "layers" in known else 0
        if layer is not None and not 0 <= layer <= depth:
            raise XCodec2Error(f"layer must be 0 to {depth}, got {layer}")
        kept = {"layers": depth if layer is None else layer, "classes": (), "entries": 0}  # no heads of pre-training
        own = replace(teacher.config, **{key: value for key, value in kept.items() if key in known})
        table = table_of(encoder, own)
        pad = (teacher.reach - teacher.hop) // 2
        codec = cls(replace(config, semantic=table, layer=None, pad=pad))
        names = codec.semantic.state_dict()
        weights = {name: value for name, value in teacher.state_dict().items() if name in names}
        load_weights(codec.semantic, weights, f"the encoder {type(encoder).__name__}")
        return codec

    def untaught(self) -> "XCodec2":
        """This codec without the semantic decoder, which only training needs: the same codes from a smaller file.

        Its modules are those of this one.
        """
        if not self.config.teach:
            return self
        with torch.device("meta"):
            codec = type(self)(replace(self.config, teach=False), self.semantic)
        for name in dict(codec.named_children()):
            setattr(codec, name, getattr(self, name))
        return codec.train(self.training)

    def train(self, mode: bool = True) -> "XCodec2":
        """All but the semantic encoder, which is never trained."""
        super().train(mode)
        self.semantic.eval()
        return self

    @torch.no_grad()
    def semantics(self, wave: Float[Tensor, "batch 1 samples"]) -> Float[Tensor, "batch frame semantic"]:
        """What the frozen encoder says of each hop."""
        pad, count = self.config.pad, wave.shape[2] // self.hop
        padded = F.pad(wave[:, 0], (pad, max(pad, self.semantic.reach - self.hop - pad)))
        return self.semantic.features(padded, layer=self.config.layer)[:, :count]

    def vectors(self, wave: Float[Tensor, "batch 1 samples"]) -> Float[Tensor, "batch dim frame"]:
        """All vectors of the official package, floor(samples / hop) + 1: it appends 1 to `hop` zeros to any recording,
        so that one whose samples are a multiple of `hop` gets a frame more than it fills."""
        wave = F.pad(wave, (0, self.hop - wave.shape[2] % self.hop))
        return self._join(wave, self.semantics(wave))

    def analyse(
        self, wave: Float[Tensor, "batch 1 samples"], state: None = None
    ) -> tuple[Float[Tensor, "batch dim frame"], None]:
        """The first ceil(samples / hop) of the `vectors` of a window."""
        return self.vectors(wave)[:, :, : -(-wave.shape[2] // self.hop)], None

    def synthesise(
        self, z: Float[Tensor, "batch dim frame"], state: None = None
    ) -> tuple[Float[Tensor, "batch 1 samples"], None]:
        """Quantized vectors of a window to sound."""
        return self.decoder(self.leave(z.transpose(1, 2)))[:, None], None

    def forward(
        self,
        wave: Float[Tensor, "batch 1 samples"],
        levels: Tensor | int | None = None,
        *,
        quantise: bool = True,
    ) -> Output:
        """Training. The loss "semantic" is the mean square error of what the semantic decoder says (§3.1).

        Without `quantise` the vectors are bounded as always, not rounded, and there are no codes.
        """
        samples = wave.shape[2]
        wave = F.pad(wave, (0, -samples % self.hop))
        said = self.semantics(wave)
        z = self._join(wave, said)
        none = z.new_zeros(len(z), 0, z.shape[2], dtype=torch.long)
        quantized = self.quantizer(z, levels) if quantise else Quantized(self.quantizer.smooth(z), none, {})
        out = self.synthesise(quantized.z)[0][:, :, :samples]
        losses = dict(quantized.losses)
        if self.config.teach:
            guess = self.semantic_decoder(self.leave_semantic(quantized.z.transpose(1, 2)))
            losses["semantic"] = F.mse_loss(guess.float(), said.float())
        return Output(out, quantized.codes, losses)

    def _join(self, wave: Tensor, said: Tensor) -> Float[Tensor, "batch dim frame"]:
        sound = self.acoustic_encoder(wave.transpose(1, 2))
        return self.enter(torch.cat([self.semantic_encoder(said), sound], 2)).transpose(1, 2)


def same(x: Float[Tensor, "batch time in"], layer: nn.Conv1d) -> Float[Tensor, "batch frame out"]:
    """The convolution with its own padding, features last. Two-dimensional, since conv1d would undo the layout; with a
    dilation for a single tap, which oneDNN then does as it does the others."""
    stride, padding, dilation = layer.stride[0], layer.padding[0], layer.dilation[0]
    if layer.kernel_size[0] == 1:
        dilation = 2
    x = x.transpose(1, 2)[:, :, None]
    y = F.conv2d(x, layer.weight[:, :, None], layer.bias, (1, stride), (0, int(padding)), (1, dilation))
    return y.squeeze(2).transpose(1, 2)


def _norm(x: Float[Tensor, "batch time width"], norm: nn.GroupNorm) -> Float[Tensor, "batch time width"]:
    y = x.transpose(1, 2)[:, :, None]  # not through nn.GroupNorm, which refuses a single frame of 32 channels
    return torch.group_norm(y, norm.num_groups, norm.weight, norm.bias, norm.eps).squeeze(2).transpose(1, 2)


def _check(config: Config, hop: int) -> None:
    configs.at_least(config, 1, "sample_rate", "channels", "strides", "width", "heads", "hidden", "n_fft")
    configs.at_least(config, 0, "layers", "pad", "block", "context")
    if config.width % GROUPS or config.width % config.heads:
        raise ConfigError(f"width: {config.width} is not a multiple of {GROUPS} and of the {config.heads} heads")
    if config.n_fft % (2 * hop):
        raise ConfigError(f"n_fft: {config.n_fft} is not an even multiple of the hop {hop}")
    if not config.steps or min(config.steps) < 2:
        raise ConfigError(f"steps: {config.steps} must be 2 or more each")


def _fits(encoder: Any, sample_rate: int, hop: int) -> None:
    """Raise XCodec2Error unless it is an encoder, and has the codec's clock."""
    if not hasattr(encoder, "features"):
        raise XCodec2Error(f"a {type(encoder).__name__} is no encoder: it has no features")
    if (encoder.sample_rate, encoder.hop) != (sample_rate, hop):
        theirs, ours = encoder.sample_rate / encoder.hop, sample_rate / hop
        raise XCodec2Error(
            f"a {type(encoder).__name__} gives {theirs:g} frames a second of {encoder.sample_rate} Hz sound, "
            f"the codec has {ours:g} of {sample_rate} Hz"
        )


def official() -> XCodec2:
    """The released sizes with w2v-BERT 2.0 up to block 16: 644 M parameters."""
    return XCodec2()
