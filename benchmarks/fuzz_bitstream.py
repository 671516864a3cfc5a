"""Mutate .sno streams: no crash but typed errors, no hang, no wrong codes without a word.

    python benchmarks/fuzz_bitstream.py [streams] [seed]

Every stream is a small whole file that was bent: bits flipped, cut, spliced with another file, blocks moved, repeated
or left out, header bytes changed (also with a checksum made right again, as an attacker would), or plain noise.
Reading it must give the original codes, or a true beginning of them and a sentence on the loss, or a SenoneError.
"""

import io
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import torch

from senone import rangecoder
from senone.bitstream import Writer, read
from senone.codes import Codes, CodeSpec
from senone.errors import SenoneError

SECONDS = 5.0  # of computing; one stream takes milliseconds, a forged block half a second; more is a hang


def fuzz(streams: int, seed: int, folder: Path) -> Counter[str]:
    """Read `streams` mutated files. Returns how many were same, lost (a sentence) and refused (a SenoneError).

    Raises AssertionError for wrong codes without a word, and whatever a stream made the reader raise.
    """
    rangecoder.SLOTS = 1 << 10  # small tables are set up sooner, and contexts collide in them
    dice = random.Random(seed)
    originals = [_original(dice, folder, kind) for kind in range(12)]
    whole = {data: codes for data, _, codes in originals}
    counts: Counter[str] = Counter()
    for number in range(streams):
        which = dice.randrange(len(originals))
        data, ends, codes = originals[which]
        bent, forged = _mutate(dice, data, ends, originals[dice.randrange(len(originals))][0])
        codes = whole.get(bent, codes)  # a splice can be a whole file again
        sys.stdin = SimpleNamespace(buffer=io.BytesIO(bent))  # type: ignore[assignment]
        began = time.process_time()
        try:
            with read("-") as reader:
                pieces = list(reader)
            lost = reader.lost
        except SenoneError:
            counts["refused"] += 1
            continue
        finally:
            took = time.process_time() - began
            assert took < SECONDS, f"stream {number} of seed {seed} took {took:.1f} s"
        if forged:  # a right checksum over changed facts is another valid file: it only must not crash
            counts["forged"] += 1
            continue
        got = torch.cat([piece.data for piece in pieces], 2) if pieces else codes.data[:, :, :0]
        same = got.shape == codes.data.shape and sum(int(piece.samples[0]) for piece in pieces) == int(codes.samples[0])
        right = torch.equal(got, codes.data[:, :, : got.shape[2]]) and all(piece.spec == codes.spec for piece in pieces)
        assert right and (lost or same), f"wrong codes without a word: stream {number} of seed {seed}"
        counts["lost" if lost else "same"] += 1
    return counts


def _original(dice: random.Random, folder: Path, kind: int) -> tuple[bytes, list[int], Codes]:
    """A whole file of a few short blocks, where its header and blocks end, and its codes."""
    sizes = ((16, 16, 16), (1000,), (4096, 1024, 3, 1), (2,) * 8)[kind % 4]
    spec = CodeSpec(100, 20, sizes, f"{kind % 4:016x}")  # 5 frames a second: blocks of 10 frames
    frames = dice.randrange(1, 45)
    data = torch.tensor([[[dice.randrange(size) // dice.choice((1, 8)) for _ in range(frames)] for size in sizes]])
    codes = Codes(data, torch.tensor([frames * 20 - dice.randrange(20)]), spec)
    path = folder / "original.sno"
    with Writer(path, spec, entropy=kind % 3 == 0) as writer:
        writer.write(codes)
    with read(path) as reader:
        ends = [reader._file.tell()]
        for _ in reader:
            ends.append(reader._file.tell())
    return path.read_bytes(), ends, codes


def _mutate(dice: random.Random, data: bytes, ends: list[int], other: bytes) -> tuple[bytes, bool]:
    """Changed bytes, and whether their checksums were made right again."""
    way, bent = dice.randrange(8), bytearray(data)
    if way == 0:
        for _ in range(dice.choice((1, 1, 2, 8))):
            bent[dice.randrange(len(bent))] ^= 1 << dice.randrange(8)
    elif way == 1:
        del bent[dice.randrange(len(bent)) :]
    elif way == 2:  # a splice anywhere
        bent = bent[: dice.randrange(len(bent))] + other[dice.randrange(len(other)) :]
    elif way == 3:  # blocks in another order, left out, repeated, or of another file at a block's edge
        blocks = [data[a:b] for a, b in zip(ends, ends[1:], strict=False)]
        blocks = dice.choices(blocks, k=dice.randrange(len(blocks) + 2))
        bent = bytearray(data[: ends[0]] + b"".join(blocks) + (other[ends[0] :] if dice.random() < 0.3 else b""))
    elif way == 4:
        bent[dice.randrange(ends[0])] = dice.randrange(256)
    elif way == 5:  # bytes come or go
        at, count = dice.randrange(len(bent)), dice.randrange(1, 9)
        bent[at : at + dice.choice((0, count))] = dice.randbytes(dice.choice((0, count)))
    elif way == 6:  # noise, behind a whole header at times
        bent = bytearray(dice.choice((b"", b"SNO\x01", data[: ends[0]])) + dice.randbytes(dice.randrange(200)))
    else:  # a forger: any change to a header or block, with every checksum right
        for _ in range(dice.randrange(1, 4)):
            edge = dice.randrange(len(ends))
            start = ends[edge - 1] if edge else 4
            if start < ends[edge] - 4:
                bent[dice.randrange(start, ends[edge] - 4)] = dice.choice((0, 127, 128, 255, dice.randrange(256)))
        crc, start = 0, 0
        for end in ends:
            crc = crc32(bent[start : end - 4], crc)
            bent[end - 4 : end] = crc.to_bytes(4, "little")
            start = end
        return bytes(bent), True
    return bytes(bent), False


if __name__ == "__main__":
    streams, seed = (int(word) for word in [*sys.argv[1:], "100000", "0"][:2])
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(streams, seed, Path(folder))
    took = time.perf_counter() - began
    print(f"{streams} streams, seed {seed}, {took:.0f} s: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
