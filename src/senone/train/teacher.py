"""Models that are done and teach a codec: targets for its first level, hidden states to compare sounds by."""

from fractions import Fraction
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone import hub
from senone.tokenizer import AudioTokenizer
from senone.train.task import TrainError

Layer = int | Literal["avg"] | None


class Teacher:
    """Features or units of the very sound that a codec hears, one a frame of the codec. Frozen, never part of a model.

    name: for `senone.load`: an encoder (a block's features; "avg": the mean over what enters the first block and all
    outputs; None: as it ends), or a tokenizer with one level, such as Units (its codes, which choose their own layer).
    codec: whose rates the teacher must match. width: of the features; the number of units.
    Raises TrainError for a model that teaches nothing, or has another frame rate.
    """

    def __init__(self, name: str, layer: Layer, codec: AudioTokenizer) -> None:
        self.model = frozen(name)
        self.name, self.layer, self.hop = name, layer, codec.hop
        kind = type(self.model).__name__
        self.units = isinstance(self.model, AudioTokenizer)
        if self.units and (self.model.decodes or len(self.model.quantizer.sizes) != 1):
            raise TrainError(f"teacher '{name}' is a {kind}: an encoder or Units can teach")
        if not self.units and not hasattr(self.model, "features"):
            raise TrainError(f"teacher '{name}' is a {kind} without features: an encoder or Units can teach")
        rates = [Fraction(each.sample_rate, each.hop) for each in (self.model, codec)]
        if rates[0] != rates[1]:
            theirs, ours = (f"{float(rate):g}" for rate in rates)
            raise TrainError(
                f"teacher '{name}' has {theirs} frames a second, {type(codec).__name__} has {ours}: they must be equal"
            )
        if self.units and layer is not None:
            raise TrainError(f"teacher '{name}' has units of its own layer: leave layer= out")
        if layer is not None:
            depth = len(blocks(self.model, name))
            if layer != "avg" and not 0 <= layer <= depth:
                raise TrainError(f"layer must be 0 to {depth} or avg with teacher '{name}', got {layer}")

    @property
    def width(self) -> int:
        """Of the features; the number of units."""
        if self.units:
            return self.model.quantizer.sizes[0]
        return hub.width_of(self.model)

    @torch.no_grad()
    def __call__(self, wave: Float[Tensor, "batch samples"]) -> Tensor:
        """ceil(samples / hop) frames of sound at the codec's rate: (batch frame width), or units (batch frame)."""
        model = self.model.to(wave.device)
        frames = -(-wave.shape[1] // self.hop)
        wave = resampled(F.pad(wave, (0, frames * self.hop - wave.shape[1])), frames * model.hop)
        if self.units:
            return model.quantizer.encode(model.analyse(wave[:, None])[0])[:, 0]
        side = model.reach - model.hop  # frame t around the middle of its hop, as `models.units` has it
        wave = F.pad(wave, (side // 2, side - side // 2))
        if self.layer == "avg":
            states = hidden(model, wave, tuple(range(len(model.encoder.layers) + 1)), self.name)
            return torch.stack(states).mean(0)
        return model.features(wave, layer=self.layer)


class Perceptual:
    """How far two sounds are apart in the hidden states of an encoder (X-codec2's late phase): mean square, averaged
    over `layers` as `Teacher` counts them. The gradient goes through the encoder into the second sound.

    relative: each channel counts by its own variance, so that a few loud ones do not drown the others; the loss is 1
    where the second sound says nothing of the first (not in the paper).
    """

    def __init__(self, name: str, layers: tuple[int, ...], codec: AudioTokenizer, relative: bool = False) -> None:
        self.model, self.name, self.rate = frozen(name), name, codec.sample_rate
        depth = len(blocks(self.model, name))
        if not layers or not 0 <= min(layers) <= max(layers) <= depth:
            raise TrainError(f"perceptual_layers must be some of 0 to {depth} with '{name}', got {list(layers)}")
        if getattr(self.model.config, "feature_grad", 1) == 0:
            raise TrainError(f"no gradient reaches a wave through '{name}', whose feature_grad is 0")
        self.layers, self.relative = layers, relative

    def __call__(self, real: Float[Tensor, "batch samples"], fake: Float[Tensor, "batch samples"]) -> Tensor:
        model = self.model.to(real.device)
        samples = round(real.shape[1] * model.sample_rate / self.rate)
        with torch.no_grad():
            truth = hidden(model, resampled(real, samples), self.layers, self.name)
        said = hidden(model, resampled(fake, samples), self.layers, self.name)
        return torch.stack([self._apart(a.float(), b.float()) for a, b in zip(said, truth, strict=True)]).mean()

    def _apart(self, said: Float[Tensor, "batch frame width"], truth: Float[Tensor, "batch frame width"]) -> Tensor:
        square = (said - truth).square()
        if self.relative:
            variance = truth.var((0, 1))
            square = square / (variance + 1e-4 * variance.mean())  # a channel that says nothing must not count for all
        return square.mean()


def frozen(name: str) -> Any:
    """The model of this name, in evaluation mode and without gradients of its own."""
    return hub.load(name).eval().requires_grad_(False)


def blocks(model: Any, name: str) -> nn.ModuleList:
    """The blocks of an encoder. Raises TrainError where there are none."""
    found = getattr(getattr(model, "encoder", None), "layers", None)
    if not isinstance(found, nn.ModuleList) or not hasattr(model, "features"):
        raise TrainError(f"'{name}' is a {type(model).__name__}, which has no layers")
    return found


def hidden(model: Any, wave: Float[Tensor, "batch samples"], layers: tuple[int, ...], name: str = "") -> list[Tensor]:
    """Several hidden states of one pass, with a gradient: 0 is what enters the first block, k the raw output of k."""
    stack, states = blocks(model, name), {}
    handles = [stack[0].register_forward_pre_hook(lambda _, given: states.__setitem__(0, given[0]))]
    for i, block in enumerate(stack[: max(layers)], 1):
        handles.append(block.register_forward_hook(lambda _, given, out, i=i: states.__setitem__(i, _first(out))))
    try:
        model(wave, layer=max(1, *layers))
    finally:
        for handle in handles:
            handle.remove()
    return [states[layer] for layer in layers]


def _first(out: Any) -> Tensor:
    """The state, of a block that says more than that, as Whisper's does."""
    return out[0] if isinstance(out, tuple) else out


def resampled(wave: Float[Tensor, "batch samples"], samples: int) -> Float[Tensor, "batch samples"]:
    """The same sound in another number of samples, by its Fourier series: any ratio, on any device, with a gradient."""
    if wave.shape[1] == samples:
        return wave
    return torch.fft.irfft(torch.fft.rfft(wave.float()), samples) * (samples / wave.shape[1])
