"""Spectral: senone's own small codec, in which everything learned runs at the frame rate.

STFT -> ConvNeXt -> residual FSQ -> ConvNeXt -> iSTFT (after Vocos, Siuzdak 2023, 2306.00814, and FSQ, Mentzer et al.
2023, 2309.15505). No layer works on samples, so it trains on two CPU cores and streams cheaply. Frame t sees hops t-1
and t; windows of two hops overlap by half; the decoder waits for `ahead` more frames, which its first layer sees at
once, and carries its state.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from senone import config as configs
from senone.features import frames, overlap_add, sine_window
from senone.nn.stream import CausalConv1d, Chain, State
from senone.nn.vocos import ConvNeXt, SpectrumHead
from senone.quantize.fsq import ResidualFSQ
from senone.tokenizer import AudioTokenizer, Context

KERNEL = 7  # frames that each ConvNeXt block sees


@dataclass(frozen=True)
class Config:
    """Widths and depths; hop in samples. `levels` residual levels of prod(steps) codes each.

    ahead: frames that the decoder waits for before it speaks; each costs a hop of latency.
    """

    sample_rate: int = 16000
    hop: int = 320
    steps: tuple[int, ...] = (8, 8, 8, 8)
    levels: int = 10
    encoder_dim: int = 256
    encoder_blocks: int = 8
    decoder_dim: int = 320
    decoder_blocks: int = 8
    ahead: int = 3


class Spectral(AudioTokenizer):
    """(batch 1 samples) -> (batch dim frame) -> codes and back; one frame a hop."""

    Config = Config
    model_type = "senone_spectral"

    def __init__(self, config: Config = Config()) -> None:
        """Raises ConfigError for sizes that cannot be."""
        super().__init__()
        configs.at_least(config, 1, "sample_rate", "hop", "steps", "levels", "encoder_dim", "decoder_dim")
        configs.at_least(config, 0, "encoder_blocks", "decoder_blocks", "ahead")
        self.config = config
        self.sample_rate, self.hop, self.n_fft = config.sample_rate, config.hop, 2 * config.hop
        self.delay = (1 + config.ahead) * config.hop
        past = 2 + config.ahead + (KERNEL - 1) * max(config.encoder_blocks, config.decoder_blocks)
        self.context = Context(past * config.hop / config.sample_rate)
        bins = self.n_fft // 2 + 1
        self.encoder_in = nn.Linear(3 * bins, config.encoder_dim)
        self.encoder = Chain(*[ConvNeXt(config.encoder_dim, KERNEL) for _ in range(config.encoder_blocks)])
        self.encoder_norm = nn.LayerNorm(config.encoder_dim)
        self.quantizer = ResidualFSQ(config.encoder_dim, config.steps, config.levels)
        self.decoder_in = CausalConv1d(config.encoder_dim, config.decoder_dim, 1 + config.ahead)
        self.decoder = Chain(*[ConvNeXt(config.decoder_dim, KERNEL) for _ in range(config.decoder_blocks)])
        self.decoder_norm = nn.LayerNorm(config.decoder_dim)
        self.head = SpectrumHead(config.decoder_dim, self.n_fft)

    def analyse(
        self, wave: Float[Tensor, "batch 1 samples"], state: State = None
    ) -> tuple[Float[Tensor, "batch dim frame"], State]:
        """Windowed spectra, compressed, through the encoder. State: the last hop, and that of the blocks."""
        past, kept = (wave.new_zeros(len(wave), 1, self.hop), None) if state is None else state
        wave = torch.cat([past, wave], 2)
        spectrum = torch.fft.rfft(frames(wave[:, 0], self.n_fft, self.hop) * sine_window(self.n_fft, wave))
        x, kept = self.encoder(self.encoder_in(compressed(spectrum)), kept)
        return self.encoder_norm(x).transpose(1, 2), [wave[:, :, -self.hop :].clone(), kept]

    def synthesise(
        self, z: Float[Tensor, "batch dim frame"], state: State = None
    ) -> tuple[Float[Tensor, "batch 1 samples"], State]:
        """The decoder, then overlap-add. State: the half window that the next frame completes, those of the layers."""
        tail, seen, kept = (z.new_zeros(len(z), self.hop), None, None) if state is None else state
        x, seen = self.decoder_in(z, seen)
        x, kept = self.decoder(x.transpose(1, 2), kept)
        spectrum = self.head(self.decoder_norm(x))
        pieces = torch.fft.irfft(spectrum, self.n_fft)
        wave = overlap_add(pieces * sine_window(self.n_fft, pieces), self.hop)
        wave = torch.cat([wave[:, : self.hop] + tail, wave[:, self.hop :]], 1)
        return wave[:, None, : -self.hop], [wave[:, -self.hop :].clone(), seen, kept]


def compressed(
    spectrum: Complex[Tensor, "batch frame bin"], power: float = 0.3
) -> Float[Tensor, "batch frame feature"]:
    """Real and imaginary part with the magnitude raised to `power`, and a tenth of the log of its square."""
    square = torch.view_as_real(spectrum).square().sum(-1) + 1e-8
    scale = square ** ((power - 1) / 2)
    return torch.cat([spectrum.real * scale, spectrum.imag * scale, square.log() / 10], -1)
