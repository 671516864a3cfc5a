"""Files of `torch.save`, read as plain data: a pickle is a program, and this one is read by a machine that cannot act.

Python's unpickler imports what a file names and calls it. Here a name stays a `Name`, an object of a listed package
becomes a `Stub` that holds its attributes, and of all functions only those that put tensors together mean anything.
Anything else ends in an InteropError. Both layouts of torch are read: the zip archive, and the stream of before 1.6.
"""

import io
import mmap
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from senone.interop import InteropError

# What real checkpoints name. All of it is inert: this list keeps out no danger, it says early and clearly that a file
# is not what it seems.
KNOWN = re.compile(
    r"(fairseq|omegaconf|s3prl)(\.\w+)+|argparse\.Namespace|pathlib\.PosixPath|typing\.\w+"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_\w+|torch\.nn\.parameter\.Parameter"
    r"|torch(\.storage)?\.\w+Storage|torch\.(Size|device|Tensor|b?float\d*|u?int\d+|bool)"
    r"|numpy\.(ndarray|dtype|dtypes\.\w+|_?core\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer))"
    r"|collections\.(OrderedDict|defaultdict|Counter)|_codecs\.encode|copy_?reg\._reconstructor"
    r"|(builtins|__builtin__)\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|set|str|tuple|unicode)"
)
DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
LEGACY = 0x1950A86A20F9469CFC6C  # the number that a file of before torch 1.6 begins with
REFUSED = ("PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER")
_MARK = object()


@dataclass(frozen=True)
class Name:
    """A function or class that a file names; `path` is `module.attribute`."""

    path: str


@dataclass(eq=False)
class Stub:
    """An object of a foreign class: what it was made of, never the class itself."""

    kind: Name
    arguments: Any = ()
    state: Any = None
    items: dict = field(default_factory=dict)


@dataclass(eq=False)
class Storage:
    """Numbers in the file, not read yet."""

    key: str
    dtype: torch.dtype
    count: int
    read: Callable[[], Any] = lambda: b""


@dataclass(eq=False)
class Weight:
    """A tensor in the file, not read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """Read it. Raises InteropError where the file is cut short or damaged."""
        parts = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or not all(type(part) is int and 0 <= part < 2**48 for part in parts):
            raise InteropError("holds a tensor of a shape that cannot be")
        count, steps = prod(self.shape), zip(self.shape, self.stride, strict=True)
        end = self.offset + 1 + sum((n - 1) * step for n, step in steps)
        if not count:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        if max(count, end) > self.storage.count:
            raise InteropError(f"holds a tensor of shape {self.shape} that goes beyond its storage")
        data = self.storage.read()
        if len(data) != self.storage.count * self.storage.dtype.itemsize:
            raise InteropError("is cut short: numbers are missing")
        flat = torch.frombuffer(bytearray(data), dtype=self.storage.dtype)
        view = flat.as_strided(self.shape, self.stride, self.offset)
        return view if count == self.storage.count else view.clone()


def read(path: str | Path) -> Any:
    """What `torch.save` wrote, as dictionaries, lists, numbers, `Stub`s, and `Weight`s whose numbers come on demand.

    Raises InteropError naming the file where it is cut short, or holds anything that a checkpoint does not.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            # mapped, not read: the optimizer's state, two thirds of many files, is never touched
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _zipped(path) if data[:2] == b"PK" else _stream(data)
    except InteropError as error:
        raise InteropError(f"{path} {error}") from None
    except OSError as error:
        raise InteropError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # whatever a damaged file may do to the reader
        raise InteropError(f"{path} is cut short or no file of torch.save: {error or type(error).__name__}") from None


def tensors(tree: Any, path: str | Path) -> dict[str, Tensor]:
    """The weights of a state dict in what `read` gave. Raises InteropError naming the file and the key."""
    if not isinstance(tree, dict):
        raise InteropError(f"{path} holds no weights where they should be")
    weights = {}
    for key, value in tree.items():
        if isinstance(key, str) and isinstance(value, Weight):
            try:
                weights[key] = value.tensor()
            except InteropError as error:
                raise InteropError(f"{path} {error}, at '{key}'") from None
            except Exception as error:  # as in `read`
                raise InteropError(f"{path}: '{key}' cannot be read: {error or type(error).__name__}") from None
    return weights


def plain(value: Any) -> Any:
    """Settings as dictionaries, lists and numbers: out of argparse's namespaces and omegaconf's nodes."""
    for _ in range(8):  # a node of omegaconf holds a node that holds the value
        if not isinstance(value, Stub):
            break
        state = value.state if isinstance(value.state, dict) else {}
        value = state.get("_content", state.get("_val", state))
    return value


def _zipped(path: Path) -> Any:
    """The layout of torch 1.6 and later: NAME/data.pkl, and NAME/data/KEY for each storage, not compressed."""
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1 or any(info.compress_type for info in archive.infolist()):
        raise InteropError("is a zip archive, but not of torch.save")
    root = names[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in archive.namelist():
        raise InteropError("is a TorchScript archive: it holds code, and senone reads weights only")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise InteropError("was written on a big-endian machine")

    def find(key: str, storage: Storage) -> None:
        archive.getinfo(f"{root}data/{key}")
        storage.read = lambda: archive.read(f"{root}data/{key}")

    return _load(io.BytesIO(archive.read(names[0])), find)


def _stream(data: mmap.mmap) -> Any:
    """The layout before: pickles of a number, a version and the machine; then the tree, the keys, the numbers."""
    storages: dict[str, Storage] = {}
    if _load(data) != LEGACY:
        raise InteropError("is not a file of torch.save")
    for _ in range(2):
        _load(data)
    tree = _load(data, storages.__setitem__)
    for key in _load(data):
        start, size = data.tell() + 8, storages[key].count * storages[key].dtype.itemsize
        if int.from_bytes(data[start - 8 : start], "little") != storages[key].count or start + size > len(data):
            raise InteropError("is cut short: numbers are missing")
        storages[key].read = lambda start=start, size=size: data[start : start + size]
        data.seek(start + size)
    return tree


def _load(file: Any, found: Callable[[str, Storage], None] | None = None) -> Any:
    """Run one pickle on a stack of plain data. `found` hears of every storage."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}

    def above() -> list[Any]:
        at = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    operations: Iterator[Any] = pickletools.genops(file)
    for op, argument, _ in operations:
        match op.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                above()
            case "DUP":
                stack.append(stack[-1])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[op.name])
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET" | "EMPTY_TUPLE":
                stack.append({"LIST": list, "DICT": dict, "SET": set, "TUPLE": tuple}[op.name[6:]]())
            case "LIST":
                stack.append(above())
            case "TUPLE":
                stack.append(tuple(above()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-int(op.name[5]) :] = [tuple(stack[-int(op.name[5]) :])]
            case "DICT":
                stack.append(_put({}, above()))
            case "FROZENSET":
                stack.append(frozenset(map(_key, above())))
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if op.name == "APPEND" else above()
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
                elif not isinstance(stack[-1], Stub):
                    raise InteropError("appends to what is no list")
            case "ADDITEMS":
                items = above()
                if not isinstance(stack[-1], set):
                    raise InteropError("adds to what is no set")
                stack[-1].update(map(_key, items))
            case "SETITEM":
                items = [stack.pop(-2), stack.pop()]
                _put(stack[-1], items)
            case "SETITEMS":
                items = above()
                _put(stack[-1], items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_name(module, attribute))
            case "REDUCE" | "NEWOBJ":
                arguments, kind = stack.pop(), stack.pop()
                stack.append(_call(kind, arguments))
            case "NEWOBJ_EX":
                stack.pop()
                arguments, kind = stack.pop(), stack.pop()
                stack.append(_call(kind, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Stub):
                    stack[-1].state = state
                elif not isinstance(stack[-1], dict):  # an OrderedDict's own attributes: `_metadata` of a state dict
                    raise InteropError("sets the state of what is no object")
            case "BINPERSID":
                stack.append(_storage(stack.pop(), storages, found))
            case _ if op.stack_before or len(op.stack_after) != 1 or op.name in REFUSED:
                raise InteropError(f"uses the pickle operation {op.name}, which checkpoints do not")
            case _:  # a number, a string or bytes
                stack.append(argument)
    raise InteropError("is cut short")


def _put(target: Any, items: list[Any]) -> Any:
    if isinstance(target, Stub):
        target = target.items
    if not isinstance(target, dict) or len(items) % 2:
        raise InteropError("puts items into what is no dictionary")
    target.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
    return target


def _key(value: Any) -> Any:
    """A value that is safe to hash: nothing deep."""
    kinds = (str, bytes, int, float, bool, type(None), Name)
    if not all(isinstance(part, kinds) for part in (value if isinstance(value, tuple) else (value,))):
        raise InteropError(f"has a {type(value).__name__} as a key")
    return value


def _name(module: Any, attribute: Any) -> Name:
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise InteropError("names what is no name")
    path = f"{module}.{attribute}"
    if attribute.isidentifier() and KNOWN.fullmatch(path):
        return Name(path)
    raise InteropError(f"names '{path[:80]}', which no checkpoint of speech needs: it is not read")


def _call(kind: Any, arguments: Any) -> Any:
    """What stands for a call: the few that make tensors are understood, the others become a `Stub`."""
    if not isinstance(kind, Name) or not isinstance(arguments, tuple):
        raise InteropError("calls what is no function")
    match kind.path, arguments:
        case "collections.OrderedDict", (list() as pairs,):
            return _put({}, [part for pair in pairs for part in pair])
        case "collections.OrderedDict" | "collections.defaultdict" | "collections.Counter", _:
            return {}
        case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", (Storage() as storage, at, n, s, *_):
            return Weight(storage, at, tuple(n), tuple(s))
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (data, *_):
            return data
        case "torch.Size", (parts,):
            return tuple(parts)
        case "builtins.set" | "__builtin__.set", (list() as parts,):
            return set(map(_key, parts))
    return Stub(kind, arguments)


def _storage(ident: Any, storages: dict[str, Storage], found: Callable[[str, Storage], None] | None) -> Storage:
    """Of ("storage", class, key, device, count), and in older files a view, which none has had for years."""
    mark, kind, key, _, count, *view = ident
    dtype = DTYPES.get(kind.path.rpartition(".")[2])
    if found is None or mark != "storage" or dtype is None or view not in ([], [None]) or not isinstance(key, str):
        raise InteropError(f"holds a storage that cannot be read: {kind.path}")
    if type(count) is not int or not 0 <= count < 2**48:
        raise InteropError("holds a storage of a size that cannot be")
    if key not in storages:
        storages[key] = Storage(key, dtype, count)
        found(key, storages[key])
    return storages[key]
