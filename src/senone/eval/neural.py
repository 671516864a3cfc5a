"""What metrics with a neural net share: weights from the user's folder with strict keys, and results that are kept.

No net ever sees a batch: padding changes what most of them say. Files are read as plain data, never executed.
"""

import hashlib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from senone import hub
from senone.eval.metrics import RATE, Item, Unmeasurable, folder
from senone.interop import pickles

Net = TypeVar("Net", bound=nn.Module)
Result = TypeVar("Result")
KEPT = 4096  # results of one net; WER and CER need the same words, and all systems the same original
SHORTEST = RATE // 10  # samples that a net is given


def read(path: Path, *keys: str) -> Any:
    """What `torch.save` wrote into a file, as plain data; with `keys`, the weights that lie under these in turn ("" for
    the whole). Raises InteropError naming the file."""
    tree = pickles.read(path)
    if not keys:
        return tree
    for key in filter(None, keys):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return pickles.tensors(tree, path)


def fit(net: Net, weights: dict[str, Tensor], path: Path) -> Net:
    """The net with these weights and no others, to evaluate. Raises HubError naming the file and the key: a net that
    keeps a random weight gives numbers too, and they look fine."""
    hub.load_weights(net, weights, path)
    return net.eval().requires_grad_(False)


def remembered(function: Callable[[np.ndarray], Result]) -> Callable[[np.ndarray], Result]:
    """The function of a wave, its last KEPT results kept by the hash of the wave."""
    kept: dict[bytes, Result] = {}

    @wraps(function)
    def call(wave: np.ndarray) -> Result:
        if len(wave) < SHORTEST:
            raise Unmeasurable("too_short", f"{len(wave)} samples are too short for a net: {SHORTEST} are the least")
        key = hashlib.blake2b(wave.tobytes(), digest_size=16).digest()
        if key not in kept:
            if len(kept) >= KEPT:
                del kept[next(iter(kept))]
            kept[key] = function(wave)
        return kept[key]

    return call


def cosine(embed: Callable[[Path], Callable[[np.ndarray], np.ndarray]]) -> Callable[[Item], float]:
    """Of the embeddings of both waves by the net whose weights lie in a folder, that of metrics."""

    def score(item: Item) -> float:
        ref, deg = (embed(folder())(wave) for wave in (item.ref, item.deg))
        return float(ref @ deg / (np.linalg.norm(ref) * np.linalg.norm(deg)))

    return score
