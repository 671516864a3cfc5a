"""Nothing in a pickle can act; what torch wrote comes back; damage ends in one sentence."""

import argparse
import collections
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import senone
from senone.errors import SenoneError
from senone.interop import InteropError, pickles


def attacks(flag: Path) -> dict[str, bytes]:
    """Programs that would create `flag`, each by another way."""
    act = f"open({str(flag)!r}, 'w').close()"
    touch = b"S'touch " + str(flag).encode() + b"'\n"

    class Reduce:
        def __init__(self, function, *arguments):
            self.call = function, arguments

        def __reduce__(self):
            return self.call

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return {
        "os.system": pickle.dumps(Reduce(os.system, f"touch {flag}"), 2),
        "exec": pickle.dumps(Reduce(exec, act), 2),
        "eval": pickle.dumps(Reduce(eval, f"open({str(flag)!r}, 'w')"), 4),
        "import": pickle.dumps(Reduce(__import__, "antigravity"), 2),
        "torch.load": pickle.dumps(Reduce(torch.load, str(flag)), 2),
        "getattr": b"c__builtin__\ngetattr\n(cargparse\nNamespace\nS'__init__'\ntR.",
        "nested getattr": b"\x80\x04" + text("fairseq.data") + text("os.system") + b"\x93" + text("true") + b"\x85R.",
        "a name of no text": b"\x80\x04]]\x93.",
        "posix": b"cposix\nsystem\n(" + touch + b"tR.",
        "nt": b"cnt\nsystem\n(" + touch + b"tR.",
        "inst": b"(" + touch + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + touch + b"o.",
        "newobj": b"\x80\x02csubprocess\nPopen\n(" + touch + b"t\x81.",
        "extension": b"\x80\x02\x82\x01.",
        "setstate": b"\x80\x04cfairseq.x\nY\n)\x81}"
        + text("__setstate__")
        + b"cbuiltins\nexec\nsb"
        + text(act)
        + b"b.",
        "build on a function": b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n}" + text("__code__") + b"K\x01sb.",
        "call a string": b"\x80\x04" + text("eval") + b")R.",
        "call a stub": b"\x80\x02cfairseq.x\nY\n)R)R.",
        "items of a function": b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n" + text("a") + b"K\x01s.",
        "persistent by text": b"Peval\n.",
        "deep key": b"\x80\x02})" + b"\x85" * 30_000 + b"K\x01s.",
    }


def zipped(path: Path, program: bytes, prefix: str = "archive") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{prefix}/data.pkl", program)
        archive.writestr(f"{prefix}/byteorder", "little")
    return path


def legacy(path: Path, program: bytes) -> Path:
    head = [pickle.dumps(value, 2) for value in (pickles.LEGACY, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head) + program + pickle.dumps([], 2))
    return path


@pytest.mark.parametrize("layout", [zipped, legacy])
@pytest.mark.parametrize("name", attacks(Path("x")))
def test_a_malicious_file_does_nothing(name, layout, tmp_path):
    flag = tmp_path / "flag"
    path = layout(tmp_path / "evil.pt", attacks(flag)[name])
    with pytest.raises(InteropError, match="evil.pt"):
        pickles.read(path)
    with pytest.raises(SenoneError, match="evil.pt"):
        senone.load(path)
    assert not flag.exists()
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(SenoneError, match="pytorch_model.bin"):
        senone.load(tmp_path)
    assert not flag.exists()


def test_the_attacks_are_real(tmp_path):
    """Python's own reader falls for them: the test above would be none otherwise."""
    for name in ("os.system", "exec", "posix"):
        flag = tmp_path / name.replace(".", "_")
        pickle.loads(attacks(flag)[name])
        assert flag.exists()


def test_the_name_refused_is_told(tmp_path):
    with pytest.raises(InteropError, match=r"evil.pt names 'posix.system', which no checkpoint of speech needs"):
        pickles.read(zipped(tmp_path / "evil.pt", attacks(tmp_path / "flag")["os.system"]))


def test_bombs(tmp_path):
    """Numbers that would fill the memory: refused before anything is reserved."""

    class Tensor:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Stored(), *self.arguments, False, {})

    class Stored:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):  # type: ignore[override]
            return ("storage", torch.FloatStorage, "0", "cpu", numbers) if isinstance(value, Stored) else None

    path = tmp_path / "x.pt"
    for numbers, offset, shape, stride, says in (  # noqa: B007
        (4, 0, (2**40,), (0,), "beyond its storage"),
        (4, 0, (5,), (1,), "beyond its storage"),
        (4, 0, (2, 2), (3, 1), "beyond its storage"),
        (4, 1, (4,), (1,), "beyond its storage"),
        (4, -1, (4,), (1,), "cannot be"),
        (4, 0, (-4,), (1,), "cannot be"),
        (4, 0, (4,), (1, 1), "cannot be"),
        (2**40, 0, (4,), (1,), "numbers are missing"),
        (2**60, 0, (4,), (1,), "of a size that cannot be"),
        (4, 0, (4,), (1,), None),
    ):
        with zipfile.ZipFile(path, "w") as archive, archive.open("a/data.pkl", "w") as file:
            Pickler(file, 2).dump({"w": Tensor(offset, shape, stride)})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("a/data/0", bytes(16))
        if says is None:
            assert pickles.tensors(pickles.read(path), path)["w"].shape == (4,)
            continue
        with pytest.raises(InteropError, match=says):
            pickles.tensors(pickles.read(path), path)
    squeezed = tmp_path / "squeezed.pt"
    with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
    with pytest.raises(InteropError, match="not of torch.save"):
        pickles.read(squeezed)


def test_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(zipped(tmp_path / "script.pt", b"\x80\x02}."), "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
        archive.writestr("archive/code/__torch__.py", b"")
    with pytest.raises(InteropError, match="script.pt is a TorchScript archive"):
        pickles.read(tmp_path / "script.pt")


# What torch.save writes


def sample() -> dict:
    half = torch.randn(2, 3).half()
    return {
        "model": collections.OrderedDict(
            a=torch.arange(12.0).view(3, 4), t=torch.arange(12.0).view(3, 4).T, part=torch.arange(9.0)[2:5], half=half,
            bf=half.bfloat16(), int=torch.arange(3), bool=torch.tensor([True, False]), zero=torch.zeros(0, 3),
            scalar=torch.tensor(2.5), parameter=torch.nn.Parameter(torch.ones(2)),
        ),
        "state": torch.nn.Linear(2, 3).state_dict(),
        "args": argparse.Namespace(heads=3, inner=argparse.Namespace(deep="yes")),
        "numpy": [np.float64(3), np.arange(3), np.dtype("f4")],
        "plain": [1, -1, 2**40, 2**80, 1.5, None, True, "é", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {1, 2}, [], ()],
        "long": list(range(3000)), ("a", 1): torch.float32, "default": collections.defaultdict(list, x=[1]),
    }  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new", [True, False])
def test_what_torch_wrote(new, protocol, tmp_path):
    path, want = tmp_path / "x.pt", sample()
    torch.save(want, path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    tree = pickles.read(path)
    for part in ("model", "state"):
        got = pickles.tensors(tree[part], path)
        assert got.keys() == want[part].keys()
        assert all(torch.equal(got[key], value) and got[key].dtype == value.dtype for key, value in want[part].items())
    assert tree["plain"] == want["plain"] and tree["long"] == want["long"] and tree["default"] == {"x": [1]}
    assert pickles.plain(tree["args"])["heads"] == 3
    assert pickles.plain(pickles.plain(tree["args"])["inner"]) == {"deep": "yes"}


@pytest.mark.parametrize("new", [True, False])
def test_mutations_end_in_a_sentence(new, tmp_path):
    """Bytes changed at random: an InteropError, or a value; nothing else. The program is hit, not the numbers only."""
    path, rng = tmp_path / "x.pt", random.Random(0)
    small = {k: v for k, v in sample().items() if k != "long"}
    torch.save(small, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    program = zipfile.ZipFile(path).read("x/data.pkl") if new else whole
    refused = 0
    for _ in range(400):
        bad = bytearray(program)
        for _ in range(rng.choice((1, 1, 2, 8))):
            bad[rng.randrange(len(bad))] = rng.choice((rng.randrange(256), *b".tRbs}](QcX\x81\x93"))
        path.write_bytes(bad) if not new else zipped(path, bytes(bad))
        try:
            tree = pickles.read(path)
            if isinstance(tree, dict):
                pickles.tensors(tree.get("model"), path)
        except InteropError as error:
            assert "x.pt" in str(error)
            refused += 1
    assert refused > 100
    if new:
        for _ in range(100):
            bad = bytearray(whole)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            try:
                pickles.tensors(pickles.read(path)["model"], path)
            except InteropError as error:
                assert "x.pt" in str(error)
