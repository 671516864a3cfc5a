"""Spectral: senone's own small codec, in which everything learned runs at the frame rate.

STFT -> ConvNeXt -> residual FSQ -> ConvNeXt -> iSTFT (after Vocos, Siuzdak 2023, and FSQ, Mentzer et al. 2023).
No layer works on samples, so it trains on two CPU cores and streams cheaply. Causal: frame t sees hops t-1 and t
and is heard one hop later (windows of two hops, half overlap). Not causal: windows of four hops, centred.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from senone.features import frames, overlap_add, sine_window
from senone.nn.stream import Chain, State
from senone.nn.vocos import ConvNeXt, SpectrumHead
from senone.quantize.fsq import ResidualFSQ


@dataclass(frozen=True)
class Config:
    """Widths and depths; hop in samples. `levels` residual levels of prod(steps) codes each."""

    sample_rate: int = 16000
    hop: int = 320
    steps: tuple[int, ...] = (8, 8, 8, 8)
    levels: int = 10
    encoder_dim: int = 256
    encoder_blocks: int = 4
    decoder_dim: int = 320
    decoder_blocks: int = 8
    causal: bool = True


class Output(NamedTuple):
    """What training needs."""

    wave: Float[Tensor, "batch 1 samples"]
    codes: Int[Tensor, "batch level frame"]
    losses: dict[str, Tensor]


class Spectral(nn.Module):
    Config = Config
    model_type = "senone_spectral"

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.n_fft = config.hop * (2 if config.causal else 4)
        bins = self.n_fft // 2 + 1
        self.encoder_in = nn.Linear(3 * bins, config.encoder_dim)
        self.encoder = Chain(*[ConvNeXt(config.encoder_dim, causal=config.causal) for _ in range(config.encoder_blocks)])
        self.encoder_out = nn.LayerNorm(config.encoder_dim)
        self.quantizer = ResidualFSQ(config.encoder_dim, config.steps, config.levels)
        self.decoder_in = nn.Linear(config.encoder_dim, config.decoder_dim)
        self.decoder = Chain(*[ConvNeXt(config.decoder_dim, causal=config.causal) for _ in range(config.decoder_blocks)])
        self.norm = nn.LayerNorm(config.decoder_dim)
        self.head = SpectrumHead(config.decoder_dim, self.n_fft)

    def spectrum(self, wave):
        pieces = frames(wave[:, 0], self.n_fft, self.config.hop)
        return torch.fft.rfft(pieces * sine_window(self.n_fft, wave))

    def analyse(self, wave, state: State = None):
        past = wave.new_zeros(len(wave), 1, self.config.hop) if state is None else state["wave"]
        wave = torch.cat([past, wave], 2)
        x = self.encoder_in(features(self.spectrum(wave)))
        x, kept = self.encoder(x, None if state is None else state["encoder"])
        return self.encoder_out(x).transpose(1, 2), {"wave": wave[:, :, -self.config.hop :].clone(), "encoder": kept}

    def synthesise(self, z, state: State = None):
        x, kept = self.decoder(self.decoder_in(z.transpose(1, 2)), None if state is None else state["decoder"])
        pieces = torch.fft.irfft(self.head(self.norm(x)), self.n_fft) * sine_window(self.n_fft, z.float())
        tail = pieces.new_zeros(len(z), self.config.hop) if state is None else state["tail"]
        wave = overlap_add(pieces, self.config.hop)
        wave = torch.cat([wave[:, : self.config.hop] + tail, wave[:, self.config.hop :]], 1)
        return wave[:, None, : -self.config.hop], {"decoder": kept, "tail": wave[:, -self.config.hop :].clone()}

    def forward(self, wave, levels=None):
        z, _ = self.analyse(wave)
        q = self.quantizer(z, levels)
        out, _ = self.synthesise(torch.cat([q.z, q.z[:, :, :1] * 0], 2))
        return Output(out[:, :, self.config.hop :], q.codes, q.losses)


def features(spectrum: Tensor, power: float = 0.3) -> Float[Tensor, "batch frame feature"]:
    """Power-compressed real and imaginary parts, and the log-magnitude."""
    import os
    square = torch.view_as_real(spectrum).square().sum(-1) + 1e-8
    if os.environ.get('FEAT')=='lin':
        g = square.mean(-1,keepdim=True).rsqrt()
        return torch.cat([spectrum.real * g, spectrum.imag * g, square.log() / 10], -1)
    if os.environ.get('FEAT')=='half':
        g = square.sqrt().mean(-1,keepdim=True).rsqrt()*square**(-.25)
        return torch.cat([spectrum.real * g, spectrum.imag * g, square.log() / 10], -1)
    scale = square ** ((power - 1) / 2)
    return torch.cat([spectrum.real * scale, spectrum.imag * scale, square.log() / 10], -1)
