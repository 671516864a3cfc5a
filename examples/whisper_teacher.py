"""Whisper's encoder as a teacher of codecs: how any net of yours can be one.

    senone train speechtokenizer data=train.tsv recipe=mini \\
        teacher=examples/whisper_teacher.py:WhisperEncoder layer=3 model.teacher_width=384
    senone train spectral data=train.tsv recipe=mini perceptual=examples/whisper_teacher.py:WhisperEncoder
    senone train xcodec2 data=train.tsv recipe=mini teacher=ENCODER \\
        perceptual=examples/whisper_teacher.py:WhisperEncoder 'perceptual_layers=[3, 5]'
    python examples/whisper_teacher.py train.tsv units.labels     # its k-means units, for `senone train hubert labels=`

The weights, whisper-tiny.en.pt, are read from the folder SENONE_METRICS (docs/metrics.md says where they are from). It
is supervised: it has read transcripts of 680,000 hours. An encoder that learns these units is no HuBERT.
"""

import sys
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from senone import Audio
from senone.data.labels import Provenance, Writer
from senone.data.manifest import read
from senone.eval import neural
from senone.eval.metrics import digest, folder
from senone.eval.whisper import SIZES, Encoder, spectrum
from senone.quantize.kmeans import fit

FILE, LAYER, CLUSTERS, HOURS = "whisper-tiny.en.pt", 3, 500, 0.6


class Reads(nn.Module):
    """One block more: what Whisper's decoder reads of its encoder, the keys and values of all its blocks."""

    def __init__(self, norm, weights):
        super().__init__()
        self.norm, self.weight = norm, nn.Parameter(torch.cat(weights).float())

    def forward(self, x):
        return F.linear(self.norm(x), self.weight), None


@dataclass(frozen=True)
class Config:
    """Nothing to choose: the file says it."""


class WhisperEncoder(nn.Module):
    """What a Teacher asks for: sample_rate, hop, reach, width, encoder.layers, and features(wave, layer=...).

    The last layer, one past Whisper's own, is for the loss "perceptual" alone: it is wider. What no word depends on,
    such as the noise between words, fills a good part of Whisper's last block, and is not in it.
    """

    Config, model_type = Config, "my_whisper_encoder"
    sample_rate, hop, reach = 16000, 320, 320

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config, path = config, folder() / FILE
        sizes, weights = neural.read(path)["dims"], neural.read(path, "model_state_dict")
        self.mels, *others = (sizes[name] for name in SIZES if name != "n_vocab")
        own = {name.removeprefix("encoder."): weight for name, weight in weights.items() if name.startswith("encoder.")}
        self.encoder = neural.fit(Encoder(self.mels, *others), own, path).float()
        parts = [f"{i}.cross_attn.{part}" for i in range(sizes["n_text_layer"]) for part in ("key", "value")]
        reads = Reads(self.encoder.ln_post, [weights[f"decoder.blocks.{part}.weight"] for part in parts])
        self.encoder.layers, self.width = nn.ModuleList([*self.encoder.blocks, reads]), others[1]

    @torch.no_grad()
    def features(self, wave, lengths=None, layer=None):
        """What a Teacher says: `forward`, without a gradient and in single precision."""
        with torch.autocast(wave.device.type, enabled=False):
            return self(wave, len(self.encoder.blocks) if layer is None else layer)

    def forward(self, wave, layer=None):
        """(batch samples), without the 30 s that Whisper fills up -> (batch frame width), the output of a block; with
        the gradient that the loss "perceptual" needs."""
        wave = F.pad(wave.float()[:, 160:], (0, 160))  # its frames stand where a hop begins, ours in the middle of one
        wave = wave[:, : wave.shape[1] // 320 * 320]
        with torch.autocast(wave.device.type, enabled=False):
            mel = spectrum(wave, self.mels)
        x = F.gelu(self.encoder.conv2(F.gelu(self.encoder.conv1(mel)))).transpose(1, 2)
        x = x + self.encoder.positional_embedding[: x.shape[1]]
        for block in self.encoder.layers[:layer]:
            x, _ = block(x)
        return x


def main(data: str, out: str) -> None:
    """Cluster the features of some of the data, and label all of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, cuts = WhisperEncoder().to(device), read(data)

    def hear(cut):
        wave = Audio.read(cut.path, start=cut.start, seconds=cut.seconds).mono().resample(16000).wave
        return model.features(F.pad(wave, (0, -wave.shape[1] % 320)).to(device), layer=LAYER)[0]

    some, heard = [], 0.0
    for k in torch.randperm(len(cuts), generator=torch.Generator().manual_seed(0)).tolist():
        if heard < 3600 * HOURS:
            some.append(hear(cuts[k]).cpu())
            heard += cuts[k].seconds
    centres = fit(some, CLUSTERS).centroids.float().to(device)
    source = Provenance(f"{FILE} {digest(folder() / FILE)}", LAYER, CLUSTERS, "", "50/1", "", data)
    with Writer(out, source) as writer:
        for cut in cuts:
            writer.write(cut, torch.cdist(hear(cut), centres).argmin(1).cpu().numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
