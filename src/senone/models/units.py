"""Units of speech: the clusters of an encoder's features, as a tokenizer (HuBERT, 2106.07447, section IV-B).

Any encoder, one of its layers, and k-means. One level, and no way back to sound. MFCC is the encoder without weights
that HuBERT's first iteration learns from.

An encoder is a `Pretrained` module with sample_rate, hop, reach (samples that a frame sees; the first starts at sample
0) and features(wave, lengths, layer) -> (batch frame width); its width is its own attribute, or its config's.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from senone import config as configs
from senone import features
from senone.errors import SenoneError
from senone.hub import Pretrained, fingerprint, part, table_of, width_of
from senone.nn.encoder import row_by_row
from senone.quantize.kmeans import KMeans
from senone.tokenizer import AudioTokenizer, Context


class UnitsError(SenoneError):
    """An encoder that is none, or a layer that is not there."""


@dataclass(frozen=True)
class NoConfig:
    """Nothing to choose."""


class MFCC(nn.Module, Pretrained):
    """Kaldi's 13 MFCC with deltas and delta-deltas, 100 frames a second, as an encoder without layers or weights."""

    Config = NoConfig
    model_type = "senone_mfcc"
    sample_rate, hop, reach, width = 16000, 160, 400, 39

    def __init__(self, config: NoConfig = NoConfig()) -> None:
        super().__init__()
        self.config = config

    def features(
        self,
        wave: Float[Tensor, "batch samples"],
        lengths: Int[Tensor, "batch"] | None = None,
        layer: int | None = None,
    ) -> Float[Tensor, "batch frame 39"]:
        """See `features.mfcc`; frames past the `lengths` of a row are 0. Raises UnitsError where a layer is named."""
        if layer is not None:
            raise UnitsError(f"MFCC have no layers, so no layer {layer}")
        x = features.mfcc(wave, self.sample_rate, lengths)
        if lengths is None:
            return x
        ends = features.kaldi_frames(lengths, self.sample_rate)
        return x * (torch.arange(x.shape[1], device=x.device) < ends.to(x.device)[:, None])[:, :, None]


@dataclass(frozen=True)
class DiscriminantConfig:
    """encoder, layer: whose features. around: frames before and after one that it sees. width: of what it says."""

    encoder: dict[str, Any] = field(default_factory=lambda: {"model_type": MFCC.model_type})
    layer: int | None = None
    around: int = 3
    width: int = 40


class Discriminant(nn.Module, Pretrained):
    """An encoder on top of another: its features, each standardised over the recording (the window, of a long one),
    a few frames in a row, projected to where units differ. `data.units.learn` finds the projection without labels.
    """

    Config = DiscriminantConfig
    model_type = "senone_discriminant"
    directions: Tensor

    def __init__(self, config: DiscriminantConfig = DiscriminantConfig(), encoder: Any = None) -> None:
        """`encoder`: used as it is, and must be what the config says. Raises ConfigError for sizes that cannot be."""
        super().__init__()
        configs.at_least(config, 0, "around")
        configs.at_least(config, 1, "width")
        self.config = config
        self.encoder: Any = part(config.encoder, "encoder") if encoder is None else encoder
        self.sample_rate, self.hop, self.reach = self.encoder.sample_rate, self.encoder.hop, self.encoder.reach
        self.register_buffer("directions", torch.zeros((1 + 2 * config.around) * width_of(self.encoder), config.width))

    @classmethod
    def of(
        cls,
        encoder: Any,
        layer: int | None = None,
        directions: Float[Tensor, "stack width"] | None = None,
        around: int = DiscriminantConfig.around,
    ) -> "Discriminant":
        """On top of this encoder, which is shared, not copied; without `directions` it says all that it stacks."""
        if directions is None:
            directions = torch.eye((1 + 2 * around) * width_of(encoder))
        table = table_of(encoder, encoder.config)
        made = cls(DiscriminantConfig(table, layer, around, directions.shape[1]), encoder)
        made.directions.copy_(directions)
        return made

    @torch.no_grad()
    def features(
        self,
        wave: Float[Tensor, "batch samples"],
        lengths: Int[Tensor, "batch"] | None = None,
        layer: int | None = None,
    ) -> Float[Tensor, "batch frame width"]:
        """As of any encoder; there are no layers. Raises UnitsError where one is named."""
        if layer is not None:
            raise UnitsError(f"a discriminant has no layers, so no layer {layer}")
        if lengths is not None:
            return row_by_row(self.features, wave, lengths)
        x = self.encoder.features(wave, layer=self.config.layer)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        around = self.config.around  # both ends are repeated
        x = torch.cat([x[:, :1].expand(-1, around, -1), x, x[:, -1:].expand(-1, around, -1)], 1)
        return x.unfold(1, 1 + 2 * around, 1).flatten(2) @ self.directions


@dataclass(frozen=True)
class Config:
    """encoder: its model_type and config. layer, final_norm: as its `features` takes them; None: left to it.

    block, context: seconds analysed at once, and before and after that. A transformer's work and memory grow with the
    square of what it sees at once. Encoders are trained on crops of 16 s or less, and LibriSpeech's longest utterance,
    35 s, is one window of the defaults, so only long recordings are cut at all; there a block has 5 s on both sides,
    four times what the positional convolution sees (1.28 s). Both are part of what the units are.
    """

    encoder: dict[str, Any] = field(default_factory=lambda: {"model_type": MFCC.model_type})
    layer: int | None = None
    final_norm: bool | None = None
    clusters: int = 100
    block: float = 30.0
    context: float = 5.0


class Units(AudioTokenizer):
    """(batch 1 samples) -> (batch width frame) -> codes. Exactly ceil(samples / hop) frames, frame t around the middle
    of its hop: half of what an encoder's window has over a hop is padded on both sides.
    """

    Config = Config
    model_type = "senone_units"
    quantizer: KMeans
    causal = False
    # A window comes alone and in one shape, whatever the batch and the chunks: single precision is bit-equal as it is.
    # For HuBERT BASE it takes 1.4 GB where double takes 2.9, and 0.37 of the time. What `exact = True` adds: units that
    # lie on the edge of two clusters do not depend on threads and machines either.
    exact = False

    def __init__(self, config: Config = Config(), encoder: Any = None) -> None:
        """`encoder`: used as it is, and must be what the config says; without it one is made from the config."""
        super().__init__()
        self.config = config
        self.encoder: Any = part(config.encoder, "encoder") if encoder is None else encoder
        self.sample_rate, self.hop = self.encoder.sample_rate, self.encoder.hop
        self.block, self.context = config.block, Context(config.context, config.context)
        self.quantizer = KMeans(config.clusters, width_of(self.encoder))
        self.eval()

    @classmethod
    def of(
        cls,
        encoder: Any,
        centroids: Float[Tensor, "cluster width"] | int,
        layer: int | None = None,
        final_norm: bool | None = None,
    ) -> "Units":
        """Units of this encoder, which is shared, not copied. centroids: as `kmeans.fit` gives them; a number of
        clusters makes random ones, for `features` to be fitted on. Raises UnitsError for what is no encoder."""
        if not isinstance(encoder, Pretrained) or not hasattr(encoder, "features"):
            raise UnitsError(f"a {type(encoder).__name__} is no encoder: it has no features")
        clusters = centroids if isinstance(centroids, int) else len(centroids)
        table = table_of(encoder, encoder.config)
        units = cls(Config(table, layer, final_norm, clusters), encoder)
        if isinstance(centroids, Tensor):
            if centroids.shape != units.quantizer.centroids.shape:
                have, want = tuple(centroids.shape), tuple(units.quantizer.centroids.shape)
                raise UnitsError(f"centroids are {have}, the encoder's features need {want}")
            units.quantizer.centroids.copy_(centroids)
        return units

    @property
    def teacher(self) -> str:
        """Fingerprint of the encoder: its weights and config."""
        return fingerprint(self.encoder, self.encoder.model_type, configs.changed(self.encoder.config))

    @property
    def centroids(self) -> str:
        """Fingerprint of the centroids."""
        values = self.quantizer.centroids.detach().cpu().float().contiguous()
        return hashlib.sha256(repr(tuple(values.shape)).encode() + values.numpy().tobytes()).hexdigest()[:16]

    def train(self, mode: bool = True) -> "Units":
        """Nothing here is trained: dropout stays off."""
        return super().train(False)

    @torch.no_grad()
    def analyse(
        self, wave: Float[Tensor, "batch 1 samples"], state: None = None
    ) -> tuple[Float[Tensor, "batch width frame"], None]:
        """The features of a window."""
        more = {} if self.config.final_norm is None else {"final_norm": self.config.final_norm}
        side = self.encoder.reach - self.hop
        padded = F.pad(wave[:, 0], (side // 2, side - side // 2))
        return self.encoder.features(padded, layer=self.config.layer, **more).transpose(1, 2), None
