"""State is a value: trees of tensors, numbers, text, lists and dictionaries, mapped over and kept in files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from senone.errors import SenoneError

Tree = Any


class TreeError(SenoneError):
    """Something in a state that is no plain value, or a file that holds no state."""


def walk(tree: Tree, change: Callable[[Tensor], Any]) -> Tree:
    """The same tree with `change` applied to every tensor. Raises TreeError for anything but plain values."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: walk(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([walk(value, change) for value in tree])
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TreeError(f"a state holds tensors, numbers, text, lists and dictionaries, not a {type(tree).__name__}")


def save(tree: Tree, path: str | Path) -> None:
    """Write a safetensors file whose header holds the shape of the tree; under a temporary name first."""
    path, tensors = Path(path), {}

    def take(value: Tensor) -> dict[str, str]:
        name = f"{len(tensors):04}"
        tensors[name] = value.detach().cpu().contiguous().clone()  # clone: safetensors refuses shared memory
        return {"tensor": name}

    shape = json.dumps(walk(_tagged(tree), take))
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(to_bytes(tensors, {"tree": shape, "format": "senone-state-1"}))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise TreeError(f"cannot write {path}: {error.strerror}") from None


def load(path: str | Path) -> Tree:
    """Read what `save` wrote. Raises TreeError naming the file."""
    try:
        with safe_open(str(path), "pt") as file:
            shape = json.loads((file.metadata() or {})["tree"])
            return _untagged(shape, {name: file.get_tensor(name) for name in file.keys()})
    except FileNotFoundError:
        raise TreeError(f"{path} does not exist") from None
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise TreeError(f"{path} is not a saved state: {error}") from None


def _tagged(tree: Tree) -> Tree:
    """Dictionaries and tuples marked as such, so that JSON brings them back."""
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, str):
                raise TreeError(f"the keys of a state are text, not {key!r}")
        return {"dict": {key: _tagged(value) for key, value in tree.items()}}
    if isinstance(tree, tuple):
        return {"tuple": [_tagged(value) for value in tree]}
    return [_tagged(value) for value in tree] if isinstance(tree, list) else tree


def _untagged(shape: Any, tensors: dict[str, torch.Tensor]) -> Tree:
    if isinstance(shape, list):
        return [_untagged(value, tensors) for value in shape]
    if not isinstance(shape, dict):
        return shape
    ((tag, value),) = shape.items()
    if tag == "tensor":
        return tensors[value]
    if tag == "tuple":
        return tuple(_untagged(item, tensors) for item in value)
    return {key: _untagged(item, tensors) for key, item in value.items()}
