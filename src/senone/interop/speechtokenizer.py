"""Checkpoints of the official SpeechTokenizer: config.json beside a state dict, or the state dict alone.

Files of its trainer, which hold the discriminators as well, are read too. Weight norm is folded, as torch computes it.
"""

from collections.abc import Iterator
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from senone import hub
from senone.errors import SenoneError
from senone.interop import InteropError, pickles
from senone.models.speechtokenizer import Config, SpeechTokenizer, turned
from senone.nn import discriminator as nets

START, BOOK = "encoder.model.0.conv.conv", "quantizer.vq.layers.{}._codebook."
SUFFIXES = (".pt", ".pth", ".bin", ".dev")
LONGEST = 4096  # samples of a frame
SETTLED = 1000  # moves of a codebook whose averages have become as slow as they get


def read(folder: str | Path) -> SpeechTokenizer:
    """The model of an official directory, in evaluation mode: config.json and SpeechTokenizer.pt, or the one other
    file of weights. Raises InteropError or HubError naming the file and the key."""
    folder = Path(folder)
    found = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    best = [path for path in found if path.name == "SpeechTokenizer.pt"] or found
    if len(best) != 1:
        has = ", ".join(path.name for path in best) or "none"
        raise InteropError(f"{folder} should have one file of weights beside config.json, and has {has}")
    return from_tree(pickles.read(best[0]), best[0])


def holds(tree: Any) -> bool:
    """Whether this is what the official code saves."""
    return _weights(tree) is not None


def from_tree(tree: Any, path: Path) -> SpeechTokenizer:
    """The model in what `pickles.read` gave of `path`, in evaluation mode and single precision.

    Sizes are those of the weights. A config.json beside the file must agree with them, and alone tells the sample rate
    (without it: 16 kHz). Codebooks are those of the file to the last bit; for that, all their entries start with the
    same usage where training goes on. Raises InteropError or HubError naming the file and the key.
    """
    inner = _weights(tree)
    if inner is None:
        raise InteropError(f"{path} is no SpeechTokenizer: it lacks '{START}.weight_v'")
    weights = pickles.tensors(inner, path)
    config = _config(weights, path)
    try:
        with torch.random.fork_rng(devices=[]):  # its start is overwritten
            model = SpeechTokenizer(config)
        ours = dict(_converted(weights, config))
    except (SenoneError, RuntimeError) as error:  # of torch: sizes that cannot be
        raise InteropError(f"{path}: {error}") from None
    hub.check_names(weights.keys(), {name for sources, _ in ours.values() for name in sources}, path)
    state = model.state_dict()
    for name, (sources, value) in ours.items():
        if value.shape != state[name].shape:
            have, want = tuple(weights[sources[-1]].shape), tuple(state[name].shape)
            raise InteropError(f"{path}: '{sources[-1]}' is {have}, which does not fit {name} {want}")
    model.load_state_dict({name: value for name, (_, value) in ours.items()}, assign=True)
    return model.eval()


def discriminators(path: str | Path) -> dict[str, nn.Module]:
    """The discriminators in a file of the official trainer, SpeechTokenizerTrainer_NUMBER (its SpeechTokenizer_*.pt
    have none), by the names that recipes call them: "period", "scale", "stfts"; in training mode.

    What is what is told by the weights, whatever the file calls it. Weight and spectral norm are folded. Raises
    InteropError or HubError naming the file and the key.
    """
    path = Path(path)
    tree = pickles.read(path)
    tables = tree.get("discriminators") if isinstance(tree, dict) else None
    if not isinstance(tables, dict) or not tables:
        raise InteropError(f"{path} holds no discriminators: only files of the official trainer do")
    found = {}
    for title, table in tables.items():
        weights = pickles.tensors(table, path)
        try:
            names = sorted(name for name in weights if name.endswith("spec_transform.window"))
            windows = tuple(len(weights[name]) for name in names)
            ours = _judges(weights)
            width, last = len(ours["nets.0.0.bias"]), list(ours)[-1].removesuffix("bias") + "weight"
            if windows:
                kind, judge = "stfts", nets.MultiSTFT(width, windows)
            elif ours["nets.0.0.weight"].ndim == 4:
                kind, judge = "period", nets.MultiPeriod(width, ours[last].shape[2])
            else:
                kind, judge = "scale", nets.MultiScale(width, len({name.split(".")[1] for name in ours}))
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:  # of names and shapes of others
            raise InteropError(f"{path}: '{title}' is no discriminator of SpeechTokenizer's: {error}") from None
        hub.load_weights(judge, ours, f"{path}: '{title}'")
        found[kind] = judge
    return found


def _judges(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """nets.NET.LAYER.weight and bias, of discriminators.NET.convs.LAYER; conv_post is the last layer."""
    counts: dict[str, int] = {}
    for net, layer in (name.split(".")[1:4:2] for name in weights if ".convs." in name):
        counts[net] = max(counts.get(net, 0), int(layer) + 1)
    ours = {}
    for net in sorted(counts, key=int):
        for layer in range(counts[net] + 1):
            theirs = f"discriminators.{net}." + (f"convs.{layer}." if layer < counts[net] else "conv_post.")
            part = {name.split(".")[-1]: value.float() for name, value in weights.items() if name.startswith(theirs)}
            if "weight_orig" in part:  # spectral norm: the largest singular value, by its two vectors
                weight, u, v = part["weight_orig"], part["weight_u"], part["weight_v"]
                ours[f"nets.{net}.{layer}.weight"] = weight / (u @ weight.flatten(1) @ v)
            elif "weight_g" in part:
                ours[f"nets.{net}.{layer}.weight"] = _folded(part["weight_g"], part["weight_v"])
            else:
                ours[f"nets.{net}.{layer}.weight"] = part["weight"]
            ours[f"nets.{net}.{layer}.bias"] = part["bias"]
    return ours


def _weights(tree: Any) -> dict[str, Any] | None:
    """The state dict of the model: the whole file, or "generator" of a trainer's."""
    for inner in (tree, tree.get("generator") if isinstance(tree, dict) else None):
        if isinstance(inner, dict) and f"{START}.weight_v" in inner:
            return inner
    return None


def _config(weights: dict[str, Tensor], path: Path) -> Config:
    """What the shapes tell, and config.json."""
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    stages = next((i for i in range(1, 99) if f"encoder.model.{3 * i + 1}.lstm.weight_ih_l0" in shapes), 4)
    downs = [f"encoder.model.{3 * i + 3}.conv.conv.weight_v" for i in range(stages + 1)]  # the last one is the end
    levels = next(i for i in count() if BOOK.format(i) + "embed" not in shapes)
    try:
        sizes: dict[str, Any] = {
            "n_filters": shapes[f"{START}.weight_v"][0],
            "strides": [shapes[name][2] // 2 for name in reversed(downs[:-1])],
            "dimension": shapes[downs[-1]][0],
            "semantic_dimension": shapes.get("transform.weight", [0])[0] or shapes[downs[-1]][0],
            "activation": "Snake" if "encoder.model.2.alpha" in shapes else "ELU",
            "codebook_size": shapes[BOOK.format(0) + "embed"][0],
            "n_q": levels,
        }
    except KeyError as error:
        raise InteropError(f"{path} lacks the weight {error}") from None
    except IndexError:
        sizes = {"strides": [0]}
    if not 0 < prod(sizes["strides"]) <= LONGEST or 0 in sizes.values():
        raise InteropError(f"{path} holds weights of shapes that no SpeechTokenizer has")
    fixed = {"lstm_layers": 2, "bidirectional": True, "residual_kernel_size": 3, "n_residual_layers": 1}
    stated = hub.read_config(path.parent) if (path.parent / "config.json").exists() else {}
    for key, value in (sizes | fixed).items():
        if stated.get(key, value) != value:
            raise InteropError(f"{path.parent}/config.json: {key} is {stated[key]!r}, the weights have {value!r}")
    rate = stated.get("sample_rate", 16000)
    if type(rate) is not int or rate < 1:
        raise InteropError(f"{path.parent}/config.json: sample_rate is {rate!r}")
    return Config(
        sample_rate=rate,
        filters=sizes["n_filters"],
        strides=tuple(reversed(sizes["strides"])),
        dim=sizes["dimension"],
        activation="snake" if sizes["activation"] == "Snake" else "elu",
        levels=levels,
        size=sizes["codebook_size"],
        teacher_width=sizes["semantic_dimension"] if "transform.weight" in shapes else 0,
        exact=False,
    )


def convolutions(stages: int) -> Iterator[tuple[str, str, str]]:
    """Of each convolution: our name, theirs, and theirs of the activation before it ("": there is none)."""
    end = 3 * stages + 3
    yield "encoder.start", START, ""
    yield "decoder.start", "decoder.model.0.conv.conv", ""
    for i in range(stages):
        down, up = 3 * i + 3, 3 * i + 3
        yield f"encoder.stages.{i}.1", f"encoder.model.{down}.conv.conv", f"encoder.model.{down - 1}"
        yield f"decoder.stages.{i}.0", f"decoder.model.{up}.convtr.convtr", f"decoder.model.{up - 1}"
        for ours, theirs in (
            (f"encoder.stages.{i}.0", f"encoder.model.{down - 2}"),
            (f"decoder.stages.{i}.1", f"decoder.model.{up + 1}"),
        ):
            yield f"{ours}.conv", f"{theirs}.block.1.conv.conv", f"{theirs}.block.0"
            yield f"{ours}.mix", f"{theirs}.block.3.conv.conv", f"{theirs}.block.2"
            yield f"{ours}.skip", f"{theirs}.shortcut.conv.conv", ""
    for part in ("encoder", "decoder"):
        yield f"{part}.end", f"{part}.model.{end}.conv.conv", f"{part}.model.{end - 1}"


def _converted(weights: dict[str, Tensor], config: Config) -> Iterator[tuple[str, tuple[list[str], Tensor]]]:
    """Of each weight of ours: its name, the keys it is made of, and its value (empty, if one of them is missing)."""

    def made(keys: list[str], make: Any = lambda value: value) -> tuple[list[str], Tensor]:
        values = [weights[key].float() for key in keys if key in weights]
        try:
            return keys, make(*values) if len(values) == len(keys) else torch.empty(0)
        except (RuntimeError, IndexError) as error:  # of torch: shapes that cannot be
            raise InteropError(f"'{keys[-1]}': {error}") from None

    for ours, theirs, act in convolutions(len(config.strides)):
        keys = [f"{theirs}.weight_g", f"{theirs}.weight_v"]
        yield f"{ours}.weight", made(keys, _turned if "convtr" in theirs else _folded)
        yield f"{ours}.bias", made([f"{theirs}.bias"])
        if act and config.activation == "snake":
            yield f"{ours}.act.snake.alpha", made([f"{act}.alpha"], torch.flatten)
    for part, index, ways in (("encoder", 3 * len(config.strides) + 1, ("", "_reverse")), ("decoder", 1, ("",))):
        for name in (f"{kind}_l{layer}{way}" for layer in (0, 1) for way in ways for kind in LSTM):
            yield f"{part}.memory.lstm.{name}", made([f"{part}.model.{index}.lstm.{name}"])
    for i in range(config.levels):
        book, ours = BOOK.format(i), f"quantizer.books.{i}."
        yield f"{ours}embedding_sum", made([f"{book}embed_avg", f"{book}embed"], lambda _, codes: codes)
        yield f"{ours}cluster_usage", made([f"{book}cluster_size"], torch.ones_like)
        yield f"{ours}moves", made([f"{book}inited"], lambda done: torch.tensor(SETTLED if done.any() else 0))
    for name in ("weight", "bias") if config.teacher_width else ():
        yield f"transform.{name}", made([f"transform.{name}"])


LSTM = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _folded(g: Tensor, v: Tensor) -> Tensor:
    if v.ndim < 2 or not v.numel() or g.shape != (len(v), *(1,) * (v.ndim - 1)):  # torch would leave its memory
        raise RuntimeError(f"a length of shape {tuple(g.shape)} does not fit a direction of shape {tuple(v.shape)}")
    return torch._weight_norm(v, g, 0)  # pyright: ignore[reportPrivateImportUsage]


def _turned(g: Tensor, v: Tensor) -> Tensor:
    return turned(_folded(g, v))
