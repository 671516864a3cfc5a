"""SoundStream: An End-to-End Neural Audio Codec (Zeghidour et al. 2021, arXiv 2107.03312).

A causal SEANet encoder (§III-A), residual vector quantization with quantizer dropout (§III-C), the mirrored decoder
(§III-B), and a FiLM layer at the bottleneck that removes noise on request, frame by frame (§III-F).
The discriminators (§III-D) are in `nn/discriminator.py`, the losses (§III-E) in `loss/`, training in `train/codec.py`.
"""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from senone import config as configs
from senone.nn.seanet import ResidualUnit, decoder, encoder, reach, start_linear
from senone.nn.stream import ELU, CausalConv1d, Chain, State, Streaming, conv
from senone.quantize.vq import ResidualVQ
from senone.tokenizer import AudioTokenizer, Context

DOUBLINGS = 8  # dilations of the denoiser: 1, 2, ..., 128
LOUD = 0.04  # what the encoder's features are about (`start_linear` begins small)


@dataclass(frozen=True)
class Config:
    """Filters at the sample rate (doubled by each stride), embedding size, codebooks.

    The paper does not give the embedding size. 128 makes 9.8 M parameters of its net, where its Table I says 8.4.
    beam: choices of codes that encoding keeps in mind, 1 in the paper (see `ResidualVQ`).
    ahead: frames that the decoder waits for before it speaks, of the seven that its first layer sees; 0 in the paper.
    denoiser: width of a net that hears what to take out of flagged frames; 0 in the paper (see `Denoiser`).
    """

    sample_rate: int = 24000
    encoder_filters: int = 32
    decoder_filters: int = 32
    strides: tuple[int, ...] = (2, 4, 5, 8)
    dim: int = 128
    levels: int = 24
    size: int = 1024
    beam: int = 1
    ahead: int = 0
    denoiser: int = 0
    exact: bool = True


class FiLM(nn.Module):
    """gamma * a + beta with (gamma, beta) linear in the one-hot denoise flag of each frame (eq. 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 2 * width)  # a linear layer on a one-hot is a table
        nn.init.zeros_(self.table.weight)

    def forward(
        self, a: Float[Tensor, "batch width frame"], flag: Bool[Tensor, "batch frame"]
    ) -> Float[Tensor, "batch width frame"]:
        gamma, beta = self.table(flag.long()).transpose(1, 2).chunk(2, 1)
        return (1 + gamma) * a + beta


class Denoiser(Streaming):
    """FiLM whose gamma and beta a causal net hears out of the flagged frames so far (not in the paper).

    Two rows of a table (eq. 3) cannot tell one noise from another. It works ahead of the encoder's last stride, where a
    frame still has `stride` steps. No biases: frames without a flag are silence to it, and silence leaves nothing
    behind, so that a recording needs neither its work nor its state before the first flag.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        units = [ResidualUnit(inner, 2**i, 3, bias=False) for i in range(DOUBLINGS)]
        self.net = Chain(CausalConv1d(width, inner, 3, bias=False), *units, ELU())
        self.film = nn.Conv1d(inner, 2 * width, 1)
        for weight in (*(unit.mix.weight for unit in units), *self.film.parameters()):
            nn.init.zeros_(weight)

    def forward(
        self, a: Float[Tensor, "batch width time"], flag: Bool[Tensor, "batch frame"], state: State = None
    ) -> tuple[Float[Tensor, "batch width time"], State]:
        on = flag.repeat_interleave(a.shape[2] // flag.shape[1], 1)[:, None]
        y, state = self.net(a * on / LOUD, state)
        gamma, beta = conv(y, self.film.weight, self.film.bias).chunk(2, 1)
        return torch.where(on, (1 + gamma) * a + LOUD * beta, a), state


class SoundStream(AudioTokenizer):
    """Waveform codec: (batch 1 samples) -> (batch dim frame) -> codes and back, 1 frame = product(strides) samples."""

    Config = Config
    model_type = "senone_soundstream"

    def __init__(self, config: Config = Config()) -> None:
        """Raises ConfigError for sizes that cannot be."""
        super().__init__()
        configs.at_least(config, 1, "sample_rate", "encoder_filters", "decoder_filters", "strides", "dim")
        configs.at_least(config, 1, "levels", "size", "beam")
        configs.at_least(config, 0, "ahead", "denoiser")
        if config.ahead > 6:
            raise configs.ConfigError(f"ahead: {config.ahead} must be 6 or less: the first layer sees 7 frames")
        self.config = config
        self.sample_rate, self.hop, self.exact = config.sample_rate, prod(config.strides), config.exact
        self.delay = config.ahead * self.hop
        # without the flag: what a denoiser heard is in the state, and no matter for whoever cuts codes
        self.context = Context(reach(config.strides) / config.sample_rate)
        self.encoder = encoder(config.encoder_filters, config.strides)
        width = config.encoder_filters * 2 ** len(config.strides)
        self.denoiser = Denoiser(width // 2, config.denoiser) if config.denoiser else None
        self.film = FiLM(width)
        self.embed = CausalConv1d(width, config.dim, 3)
        self.quantizer = ResidualVQ(config.dim, config.size, config.levels, beam=config.beam)
        self.decoder = decoder(config.decoder_filters, config.strides, config.dim)
        start_linear(self.encoder, self.embed, self.decoder, config.strides, config.ahead)

    def analyse(
        self,
        wave: Float[Tensor, "batch 1 samples"],
        state: State = None,
        denoise: bool | Bool[Tensor, "#batch #frame"] = False,
    ) -> tuple[Float[Tensor, "batch dim frame"], State]:
        """Encoder, FiLM with the denoise flag (one for all, or one per frame), embedding (Figure 3)."""
        early, heard, late = (None, None, None) if state is None else state
        flag = torch.as_tensor(denoise, dtype=torch.bool, device=wave.device)
        flag = flag.expand(len(wave), wave.shape[2] // self.hop)
        if self.denoiser is not None and (heard is not None or bool(flag.any())):
            first, last = (None, None) if early is None else (early[:-1], early[-1:])
            a, first = self.encoder[:-3](wave, first)
            a, heard = self.denoiser(a, flag, heard)
            a, last = self.encoder[-3:](a, last)  # ELU, the last stride, ELU
            early = first + last
        else:
            a, early = self.encoder(wave, early)
        z, late = self.embed(self.film(a, flag), late)
        return z, [early, heard, late]

    def synthesise(
        self, z: Float[Tensor, "batch dim frame"], state: State = None
    ) -> tuple[Float[Tensor, "batch 1 samples"], State]:
        """Decoder (§III-B)."""
        return self.decoder(z, state)


def paper_24k() -> SoundStream:
    """The paper's net: 24 kHz, 75 frames a second, 24 levels = 18 kb/s."""
    return SoundStream(Config(exact=False))


def paper_16k() -> SoundStream:
    """The same net at 16 kHz, 50 frames a second (AudioLM's setting), 12 levels = 6 kb/s."""
    return SoundStream(Config(sample_rate=16000, levels=12, exact=False))
