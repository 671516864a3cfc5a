"""From recordings to units: cluster what an encoder says of them, then label them; both in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from senone.audio import AudioError, blocks, duration
from senone.data.labels import Writer
from senone.data.manifest import SUFFIXES, Cut, DataError, read
from senone.models.units import Discriminant, DiscriminantConfig, Units
from senone.quantize.discriminant import Scatter
from senone.quantize.kmeans import Fitted, fit, nearest
from senone.tokenizer import AudioTokenizer

PIECE = 10.0  # seconds read at once
Hear = Callable[[Cut, str | None], None]  # a recording is done; or why it was left out


def learn(
    cuts: list[Cut],
    encoder: Any,
    clusters: int,
    layer: int | None = None,
    *,
    rounds: int = 0,
    hours: float | None = None,
    seed: int = 0,
    heard: Hear = lambda cut, skipped: None,
) -> tuple[Units, Fitted]:
    """Units of this encoder, clustered on whole recordings in random order, `hours` of them (None: all).

    With `rounds`, units of a `Discriminant` of it: so many times, cluster, and see in which directions clusters differ
    (`quantize.discriminant`). The recordings are gone through once, and twice more a round; `heard` is told each time.
    A file that cannot be read is left out, and `heard` told why. Raises KMeansError, DataError where none can be read.
    """
    if hours is not None and not hours > 0:
        raise DataError(f"hours must be above 0, got {hours:g}")
    if rounds < 0:
        raise DataError(f"rounds must be at least 0, got {rounds}")

    def features(units: Units) -> Iterator[Tensor]:
        left = inf if hours is None else 3600 * hours
        found = False
        for index in np.random.default_rng(seed).permutation(len(cuts)):
            if left <= 0:
                break
            cut = cuts[index]
            try:
                yield from vectors(units, sound(cut, units.sample_rate))
            except AudioError as error:
                heard(cut, str(error))
                continue
            found, left = True, left - cut.seconds
            heard(cut, None)
        if not found:
            raise DataError(f"none of {len(cuts)} recordings can be read")

    if rounds:
        whole = Discriminant.of(encoder, layer)
        encoder, layer = whole, None
        for _ in range(rounds):
            centroids = fit(features(Units.of(encoder, clusters)), clusters, seed).centroids
            scatter = Scatter(clusters, whole.config.width)
            for x in features(Units.of(whole, clusters)):
                scatter.add(x, nearest(x @ encoder.directions, centroids)[0])
            encoder = Discriminant.of(whole.encoder, whole.config.layer, scatter.directions(DiscriminantConfig.width))
    fitted = fit(features(Units.of(encoder, clusters, layer)), clusters, seed)
    return Units.of(encoder, fitted.centroids, layer), fitted


def write(cuts: Iterable[Cut], units: Units, writer: Writer, heard: Hear = lambda cut, skipped: None) -> None:
    """Label the cuts that `writer` does not have yet. A file that cannot be read is left out, and `heard` told why."""
    for cut in cuts:
        why = None
        if cut not in writer:
            try:
                writer.write(cut, label(cut, units).numpy())
            except AudioError as error:
                why = str(error)
        heard(cut, why)


def listed(sources: Iterable[str]) -> list[Cut]:
    """The cuts of recordings, and of folders and lists of them; every split. Raises AudioError, DataError."""
    cuts: list[Cut] = []
    for source in sources:
        if source == "-" or Path(source).suffix.lower() in SUFFIXES:
            cuts.append(Cut(source, source, duration(source) or inf))
        else:
            cuts += read(source, split=None)
    return cuts


def label(cut: Cut, units: Units) -> Int[Tensor, "frame"]:
    """The units of a cut, as `units.encode` gives them for the same samples. Raises AudioError naming the file."""
    stream = units.stream()
    parts = [stream.encode(wave).data for wave in sound(cut, units.sample_rate)]
    return torch.cat([*parts, stream.encode(torch.zeros(1, 0), last=True).data], 2)[0, 0]


def vectors(
    units: AudioTokenizer, pieces: Iterable[Float[Tensor, "1 samples"]]
) -> Iterator[Float[Tensor, "frame width"]]:
    """What `units` would cluster, or any tokenizer quantise: vectors of one recording, window by window, as `encode`
    sees them."""
    model, like = units._coder()
    state = None
    for piece in pieces:
        z, state = model._vectors(piece[None].to(like), state, False, {})
        if z is not None:
            yield z[0].T
    if state is not None:
        z, _ = model._vectors(like.new_zeros(1, 1, 0), state, True, {})
        if z is not None:
            yield z[0].T


def sound(cut: Cut, rate: int) -> Iterator[Float[Tensor, "1 samples"]]:
    """A cut at `rate`, mono, in pieces. Raises AudioError naming the file."""
    length = None if cut.seconds == inf else cut.seconds
    return blocks(cut.path, rate, PIECE, start=cut.start, length=length)
