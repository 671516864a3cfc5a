"""The .sno file: codes packed to ceil(log2 size) bits or range coded, in checksummed blocks that stream through pipes.

    "SNO", version     4 bytes
    body length        2 bytes, little-endian
    body               varints: flags (1: entropy), sample rate, hop, levels stored, then the sizes of all levels as
                       runs of (size, how many levels) up to a 0; then the fingerprint as text
    checksum           4 bytes
    blocks, each       flags (1: the last one, 2: range coded), varint frames; of the last one: varint samples of the
                       whole recording; of a range coded one: varint length of what follows; codes; checksum, 4 bytes

Codes are packed frame by frame, level by level, highest bit first. A checksum is a CRC-32 that goes on from the one
before, so a block that is missing, repeated, moved or from another file does not fit where it stands. The length of
the recording comes last, because a pipe knows it last. Range coding never makes a block longer: one that does not
gain is packed. Varints are base 128, low digits first (LEB128).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
import torch

from senone.codes import Codes, CodesError, CodeSpec
from senone.errors import SenoneError
from senone.rangecoder import Adaptive

MAGIC = b"SNO\x01"
BLOCK_SECONDS = 2.0
ENTROPY = 1  # flag of the file
LAST, CODED = 1, 2  # flags of a block
MOST_LEVELS, LARGEST = 1024, 1 << 24  # levels, and entries of one


class BitstreamError(SenoneError):
    """A file that is not .sno or cannot be written, or codes that do not belong into it."""


class _Damage(Exception):
    """What is wrong with a block, in a few words."""


class Writer:
    """Write one recording piece by piece: a context manager that renames its temporary file only on success.

    path: "-" is standard output. spec: of the tokenizer; levels: how many of its levels the pieces have.
    entropy: range code the blocks that gain by it (5 to 14 % of speech, at 4 microseconds a bit).
    Raises BitstreamError naming the file.
    """

    def __init__(self, path: str | Path, spec: CodeSpec, levels: int | None = None, entropy: bool = False) -> None:
        self.path, self.spec, self.entropy = path, spec, entropy
        self.levels = len(spec.sizes) if levels is None else levels
        if not 1 <= self.levels <= len(spec.sizes) <= MOST_LEVELS or max(spec.sizes) > LARGEST:
            raise BitstreamError(f"cannot write {path}: {self.levels} levels of sizes {spec.sizes}")
        self._bits = _bits(spec, self.levels)
        self._block = _block(spec, self._bits)
        self._pending = np.zeros((self.levels, 0), np.int64)
        self._samples, self._ended, self._crc = 0, False, 0
        self._adaptive = Adaptive(self._bits) if entropy else None

    def __enter__(self) -> "Writer":
        path = Path(self.path)
        self._part = None
        with self._naming():
            if str(self.path) == "-":
                self._file: BinaryIO = sys.stdout.buffer
            elif path.exists() and not path.is_file():  # a device stays one
                self._file = open(path, "wb")
            else:
                self._part = path.with_name(f".{path.name}.part")
                self._file = open(self._part, "wb")
        self._send(_header(self.spec, self.levels, self.entropy))  # cannot fail: it stays in the buffer
        return self

    def write(self, codes: Codes) -> None:
        """Append frames of the one recording; only the last piece may end inside a frame."""
        if codes.spec != self.spec or len(codes) != 1 or codes.data.shape[1] != self.levels:
            shape = tuple(codes.data.shape)
            raise BitstreamError(f"codes of shape {shape} of another model or number of levels than {self.path}")
        frames = codes.data.shape[2]
        if self._ended and frames:
            raise BitstreamError("only the last piece may end inside a frame")
        samples = int(codes.samples[0])
        self._samples, self._ended = self._samples + samples, self._ended or samples != frames * self.spec.hop
        self._pending = np.concatenate([self._pending, codes.data[0].cpu().numpy()], 1)
        while self._pending.shape[1] > self._block:  # not at equal: the last block must be known as such
            self._send(self._pack(self._pending[:, : self._block], 0))
            self._pending = self._pending[:, self._block :]
            with self._naming():
                self._file.flush()  # who listens at the other end of a pipe hears it now

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            with self._naming():
                if kind is None:
                    self._send(self._pack(self._pending, LAST))
                    self._file.flush()
                if str(self.path) != "-":
                    self._file.close()
                if kind is None and self._part is not None:
                    os.replace(self._part, self.path)
        finally:
            if self._part is not None:
                self._part.unlink(missing_ok=True)

    def _pack(self, data: np.ndarray, flags: int) -> bytes:
        payload = _pack(data, self._bits)
        head = _varint(data.shape[1]) + (_varint(self._samples) if flags & LAST else b"")
        if self._adaptive is not None:
            coded = self._adaptive.encode(data.T.tolist())  # also of a block that stays packed: the models learn
            coded = _varint(len(coded)) + coded
            if len(coded) < len(payload):
                payload, flags = coded, flags | CODED
        return bytes([flags]) + head + payload

    def _send(self, part: bytes) -> None:
        """Write one part and its checksum."""
        self._crc = crc32(part, self._crc)
        with self._naming():
            self._file.write(part + self._crc.to_bytes(4, "little"))

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            name = "standard output" if str(self.path) == "-" else self.path
            raise BitstreamError(f"cannot write {name}: {error.strerror}") from None


class Reader:
    """One recording, block by block: iterate for `Codes` (batch of one) whose samples add up to the whole.

    spec, levels, entropy: what the header says. lost: None, or after iteration one sentence on what did not arrive;
    what was given out before is right. samples, blocks, bytes: read so far. Raises BitstreamError naming the
    file where it is missing, empty, no .sno, or its header is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.lost = "standard input" if str(path) == "-" else str(path), None
        self.samples = self.blocks = self.bytes = self._crc = 0
        try:
            self._file: BinaryIO = sys.stdin.buffer if str(path) == "-" else open(path, "rb")
        except OSError as error:
            raise BitstreamError(f"cannot read {path}: {error.strerror}") from None
        try:
            self.spec, self.levels, self.entropy = self._header()
        except _Damage as damage:
            self.close()
            raise BitstreamError(f"{self.path} {damage}") from None
        except OSError as error:
            self.close()
            raise BitstreamError(f"cannot read {self.path}: {error.strerror}") from None
        self._bits = _bits(self.spec, self.levels)
        self._block = _block(self.spec, self._bits)
        self._adaptive = Adaptive(self._bits) if self.entropy else None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def accept(self, spec: CodeSpec) -> None:
        """Raise BitstreamError unless these are codes of the tokenizer of `spec`."""
        if self.spec != spec:
            raise BitstreamError(
                f"{self.path} is of another model: its fingerprint is {self.spec.fingerprint}, here {spec.fingerprint}"
            )

    def __iter__(self) -> Iterator[Codes]:
        last = False
        try:
            while not last:
                codes, last = self._codes()
                self.samples, self.blocks = self.samples + int(codes.samples[0]), self.blocks + 1
                yield codes
            if self._file.read(1):
                self.lost = f"{self.path} goes on after its end: bytes that belong to no recording are left out"
        except (_Damage, CodesError, OSError) as damage:
            seconds = self.samples / self.spec.sample_rate
            reason = getattr(damage, "strerror", None) or damage
            self.lost = (
                f"{self.path} {reason} in block {self.blocks + 1}: "
                + (f"the first {seconds:.2f} s are whole, " if self.blocks else "nothing of it is whole, ")
                + "what followed is lost"
            )

    def _header(self) -> tuple[CodeSpec, int, bool]:
        part = self._file.read(4)
        self.bytes = len(part)
        if not part:
            raise _Damage("is empty")
        if part[:3] != MAGIC[:3]:
            raise _Damage("is not a .sno file")
        if part != MAGIC:
            raise _Damage(f"is of version {part[3:].hex() or '?'}, this reads version {MAGIC[3]:02x}")
        part += self._take(2)
        body = self._take(int.from_bytes(part[4:], "little"))
        self._check(part + body)
        rest = iter(body)
        flags, rate, hop, levels = (_number(rest) for _ in range(4))
        sizes: list[int] = []
        while size := _number(rest):
            count = _number(rest)
            if size > LARGEST or len(sizes) + count > MOST_LEVELS:  # before anything is made of that size
                raise _Damage("has a header that makes no sense")
            sizes += [size] * count
        try:
            spec = CodeSpec(rate, hop, tuple(sizes), bytes(rest).decode())
        except UnicodeDecodeError:
            raise _Damage("has a header that makes no sense") from None
        clock = 1 <= rate < 1 << 31 and 1 <= hop < 1 << 31
        if flags > ENTROPY or not 1 <= levels <= len(sizes) or not clock:
            raise _Damage("has a header that makes no sense")
        return spec, levels, flags == ENTROPY

    def _codes(self) -> tuple[Codes, bool]:
        """The next block, and whether it is the last."""
        part = self._take(1)
        flags = part[0]
        if flags > (LAST | CODED if self.entropy else LAST):
            raise _Damage("is damaged")
        frames, part = self._varint(part)
        samples, part = self._varint(part) if flags & LAST else (self.samples + frames * self.spec.hop, part)
        size = packed = -(-frames * sum(self._bits) // 8)
        if flags & CODED:
            size, part = self._varint(part)
        if frames > self._block or size > packed or samples < self.samples:  # not from a writer; and memory is bounded
            raise _Damage("is damaged")
        payload = self._take(size)
        self._check(part + payload)
        if flags & CODED:
            assert self._adaptive is not None
            rows = self._adaptive.decode(payload, frames)
            data = np.array(rows, np.int64).reshape(frames, self.levels).T
        else:
            data = _unpack(payload, self._bits, frames)
            if self._adaptive is not None:
                self._adaptive.encode(data.T.tolist())  # to learn what the writer learnt
        tensor = torch.from_numpy(np.ascontiguousarray(data))[None]
        return Codes(tensor, torch.tensor([samples - self.samples]), self.spec), bool(flags & LAST)

    def _take(self, count: int) -> bytes:
        part = self._file.read(count)
        self.bytes += len(part)
        if len(part) < count:
            raise _Damage("is cut off")
        return part

    def _varint(self, part: bytes) -> tuple[int, bytes]:
        """A number from the file, and `part` with its bytes behind."""
        digits = b""
        while len(digits) < 9 and (not digits or digits[-1] & 128):
            digits += self._take(1)
        return _number(iter(digits)), part + digits

    def _check(self, part: bytes) -> None:
        self._crc = crc32(part, self._crc)
        if self._take(4) != self._crc.to_bytes(4, "little"):
            raise _Damage("is damaged")


def read(path: str | Path) -> Reader:
    """Open a .sno file ("-": standard input). Raises BitstreamError naming the file."""
    return Reader(path)


def _bits(spec: CodeSpec, levels: int) -> tuple[int, ...]:
    """Bits of a code of each level: ceil(log2 size)."""
    return tuple((size - 1).bit_length() for size in spec.sizes[:levels])


def _block(spec: CodeSpec, bits: tuple[int, ...]) -> int:
    """Frames of a block: what a header can make a reader do, in memory and, range coded, in time, ends at these."""
    most = min((1 << 16) // max(1, sum(bits)), (1 << 14) // len(bits))  # 8 KiB, and as many codes
    return max(1, min(round(BLOCK_SECONDS * spec.frame_rate), most))


def _header(spec: CodeSpec, levels: int, entropy: bool) -> bytes:
    runs = [(size, len(list(run))) for size, run in groupby(spec.sizes)]
    numbers = [ENTROPY * entropy, spec.sample_rate, spec.hop, levels, *(n for run in runs for n in run), 0]
    body = b"".join(map(_varint, numbers)) + spec.fingerprint.encode()
    return MAGIC + len(body).to_bytes(2, "little") + body


def _pack(data: np.ndarray, bits: tuple[int, ...]) -> bytes:
    """(level, frame) to bytes, frame by frame, highest bit first."""
    columns = [data[i][:, None] >> np.arange(n - 1, -1, -1) & 1 for i, n in enumerate(bits)]
    return np.packbits(np.concatenate(columns, 1).astype(bool)).tobytes()


def _unpack(payload: bytes, bits: tuple[int, ...], frames: int) -> np.ndarray:
    total = sum(bits)
    table = np.unpackbits(np.frombuffer(payload, np.uint8), count=frames * total).reshape(frames, total)
    columns = np.split(table, np.cumsum(bits)[:-1], 1)
    return np.stack([c.astype(np.int64) @ (1 << np.arange(n - 1, -1, -1)) for c, n in zip(columns, bits, strict=True)])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def _number(digits: Iterator[int]) -> int:
    """The varint at the front. Raises _Damage where it does not end, or exceeds 63 bits."""
    value = 0
    for place in range(0, 63, 7):
        digit = next(digits, None)
        if digit is None:
            break
        value |= (digit & 127) << place
        if digit < 128:
            return value
    raise _Damage("is damaged")
