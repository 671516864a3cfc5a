"""Does a checkpoint compute what its authors computed? A user's official file against real features of HuBERT.

The reference is the folder examples/hubert/tests of the fairseq repository: one utterance of LibriSpeech (.flac), for
each size NAME.SIZE.LLAYER.npy with the features of that layer, (frame, width), and for BASE the k-means units (.km).
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from senone import hub
from senone.audio import Audio
from senone.interop import InteropError, upstream
from senone.nn.encoder import SpeechEncoder

TOLERANCE = 0.01  # of the features' size; Hugging Face's epsilon for the wave, where fairseq's is meant, is off by 8e-4


class Verified(NamedTuple):
    """features: the file compared with; frames: ours and theirs. largest, mean: of |ours - theirs|. relative:
    |ours - theirs| / |theirs| over all numbers. units: of how many frames ours, and the real features, fall to the
    stated unit by the means of the units' real features; None without units."""

    features: Path
    layer: int
    frames: tuple[int, int]
    largest: float
    mean: float
    relative: float
    units: tuple[int, int] | None

    @property
    def ok(self) -> bool:
        return self.frames[0] == self.frames[1] and self.relative <= TOLERANCE


def load(path: str | Path, heads: int | None = None) -> SpeechEncoder:
    """The encoder of a checkpoint, file or directory; `heads` as for `upstream.read`."""
    model = upstream.read(path, heads) if Path(path).is_file() else hub.load(path)
    if not isinstance(model, SpeechEncoder):
        raise InteropError(f"{path} is a {type(model).__name__}; HuBERT's features are what can be verified")
    return model


def verify(model: SpeechEncoder, folder: str | Path) -> Verified:
    """Compare with the reference features of the model's width. Raises InteropError naming what the folder lacks."""
    folder, width = Path(folder), model.config.width
    sounds = sorted(folder.glob("*.flac"))
    if not sounds:
        raise InteropError(f"{folder} holds no .flac; it has to be fairseq's examples/hubert/tests")
    for path in sorted(folder.glob("*.L*.npy")):
        theirs, number = _read(path), re.search(r"\.L(\d+)$", path.stem)
        if number and theirs.shape[1] == width and int(number[1]) <= model.config.layers:
            break
    else:
        raise InteropError(f"{folder} holds no features {width} wide of a layer that this model has")
    layer = int(number[1])
    wave = Audio.read(sounds[0]).mono().resample(model.sample_rate).wave
    ours = model.features(wave, layer=layer)[0].double().cpu()
    count = min(len(ours), len(theirs))
    off = (ours[:count] - theirs[:count]).abs()
    relative = float(off.norm() / theirs[:count].norm().clamp_min(1e-9))
    units = next((_units(path, ours, theirs) for path in sorted(folder.glob(f"{path.stem}.km*.km"))), None)
    return Verified(path, layer, (len(ours), len(theirs)), float(off.max()), float(off.mean()), relative, units)


def _read(path: Path) -> torch.Tensor:
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InteropError(f"{path} cannot be read: {error}") from None
    if features.ndim != 2 or not len(features) or features.dtype.kind != "f":
        raise InteropError(f"{path} does not hold features of shape (frame, width)")
    return torch.from_numpy(features).double()


def _units(path: Path, ours: torch.Tensor, theirs: torch.Tensor) -> tuple[int, int]:
    try:
        stated = torch.tensor([int(word) for word in path.read_text().split()])
    except (OSError, ValueError) as error:
        raise InteropError(f"{path} cannot be read: {error}") from None
    if len(stated) != len(theirs):
        raise InteropError(f"{path} holds {len(stated)} units for {len(theirs)} frames")
    names, place = stated.unique(return_inverse=True)
    means = torch.zeros(len(names), theirs.shape[1], dtype=theirs.dtype).index_add_(0, place, theirs)
    means = means / place.bincount()[:, None]
    count = min(len(ours), len(theirs))
    same = [int((torch.cdist(x[:count], means).argmin(1) == place[:count]).sum()) for x in (ours, theirs)]
    return same[0], same[1]
