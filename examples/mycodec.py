"""A codec of one's own: one strided convolution each way about a residual FSQ. Nothing else is needed to check, train,
encode and stream with it: `senone check examples/mycodec.py:MyCodec`."""

from dataclasses import dataclass

from torch import nn

from senone.nn.stream import CausalConv1d, CausalConvTranspose1d, Chain
from senone.quantize.fsq import ResidualFSQ
from senone.tokenizer import AudioTokenizer, Context


@dataclass(frozen=True)
class Config:
    sample_rate: int = 16000
    hop: int = 320
    dim: int = 128
    levels: int = 4


class MyCodec(AudioTokenizer):
    Config, model_type = Config, "mycodec"

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config, self.sample_rate, self.hop = config, config.sample_rate, config.hop
        dim, hop = config.dim, config.hop
        self.encoder = Chain(CausalConv1d(1, dim, 2 * hop, hop), nn.GELU(), CausalConv1d(dim, dim, 3))
        self.quantizer = ResidualFSQ(dim, steps=(8, 8, 8, 8), levels=config.levels)
        self.decoder = Chain(CausalConv1d(dim, dim, 3), nn.GELU(), CausalConvTranspose1d(dim, 1, 2 * hop, hop))
        self.context = Context(past=3 * hop / config.sample_rate)  # two frames of a convolution, one of overlap

    def analyse(self, wave, state=None):
        return self.encoder(wave, state)

    def synthesise(self, z, state=None):
        return self.decoder(z, state)
