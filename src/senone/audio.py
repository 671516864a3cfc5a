"""Audio: sound as a value, and the streaming reader and writer beside it (soundfile, soxr).

One resampler serves everyone: `Audio.resample` and `blocks` feed the same soxr stream, so a file read whole and
a file read in pieces give the same samples.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from jaxtyping import Float
from torch import Tensor

from senone.errors import SenoneError

PIECE = 1 << 16  # frames read or resampled at once
SPOOL = 1 << 24  # bytes of standard input kept in memory


class AudioError(SenoneError):
    """A file that cannot be read or written as audio, or samples that are not sound."""


@dataclass(frozen=True)
class Audio:
    """A recording. wave: (channels, samples), float32, nominally within [-1, 1]; rate: samples per second.

    Raises AudioError for another shape or type, or a rate below 1.
    """

    wave: Float[Tensor, "channels samples"]
    rate: int

    def __post_init__(self) -> None:
        if self.wave.ndim != 2 or self.wave.dtype != torch.float32 or not len(self.wave):
            shape = tuple(self.wave.shape)
            raise AudioError(f"audio must be float32 of shape (channels, samples), got {self.wave.dtype} of {shape}")
        if self.rate < 1:
            raise AudioError(f"a sample rate must be at least 1, got {self.rate}")

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.wave.shape[1] / self.rate

    @classmethod
    def read(cls, path: str | Path, *, start: float = 0.0, seconds: float | None = None) -> "Audio":
        """Read wav, flac, mp3, ogg, opus ("-": standard input) from `start` for `seconds`, without loading the rest.

        Raises AudioError naming the file: missing, empty, not audio, no samples there, NaN or infinite samples.
        """
        with _open(path) as file:
            path = _name(path)
            _seek(file, path, start)
            frames = -1 if seconds is None else round(seconds * file.samplerate)
            with _naming(path):
                data = file.read(frames, dtype="float32", always_2d=True)
            _check(data, path)
            return cls(torch.from_numpy(np.ascontiguousarray(data.T)), file.samplerate)

    def mono(self) -> "Audio":
        """The mean of the channels."""
        return self if len(self.wave) == 1 else Audio(self.wave.mean(0, keepdim=True), self.rate)

    def resample(self, rate: int) -> "Audio":
        """Convert to `rate` samples per second (soxr, high quality); the same samples as `blocks` gives."""
        if rate == self.rate:
            return self
        pieces = (piece.T.numpy() for piece in self.wave.split(PIECE, dim=1))
        out = list(_resampled(pieces, self.rate, rate, len(self.wave)))
        return Audio(torch.from_numpy(np.concatenate(out).T.copy()), rate)

    def normalise(self, peak_db: float = -1.0) -> "Audio":
        """Scale so that the largest sample stands at `peak_db` dB below full scale; silence stays as it is."""
        peak = float(self.wave.abs().max()) if self.wave.numel() else 0.0
        return Audio(self.wave * (10 ** (peak_db / 20) / peak), self.rate) if peak > 0 else self

    def save(self, path: str | Path) -> None:
        """Write a file whose suffix names the format ("-": WAV on standard output), under a temporary name first.

        Raises AudioError naming the file: unknown suffix, folder missing or read-only, disk full.
        """
        with Writer(path, self.rate, channels=len(self.wave)) as writer:
            writer.write(self.wave)


def duration(path: str | Path) -> float | None:
    """Seconds, as far as the file says so without being read; None for pipes and what is no audio."""
    try:
        return soundfile.info(str(path)).duration if Path(path).is_file() else None
    except soundfile.SoundFileError:
        return None


def blocks(
    path: str | Path, rate: int, seconds: float = 1.0, *, start: float = 0.0, length: float | None = None
) -> Iterator[Float[Tensor, "1 samples"]]:
    """The file ("-": standard input) as mono pieces of `seconds` at `rate`, in bounded memory.

    start, length: the stretch of it to read, in seconds. Raises AudioError naming the file, as `Audio.read` does.
    """
    size, held, total = max(1, round(seconds * rate)), np.zeros((0, 1), np.float32), 0
    with _open(path) as file:
        path = _name(path)
        _seek(file, path, start)
        most = inf if length is None else round(length * file.samplerate)

        def mono() -> Iterator[np.ndarray]:
            nonlocal total
            while total < most:
                with _naming(path):
                    data = file.read(int(min(PIECE, most - total)), dtype="float32", always_2d=True)
                if not len(data):
                    break
                _check(data, path)
                total += len(data)
                yield data.mean(1, keepdims=True) if data.shape[1] > 1 else data

        for piece in _resampled(mono(), file.samplerate, rate, 1):
            held = np.concatenate([held, piece])
            while len(held) >= size:
                yield torch.from_numpy(held[:size].T.copy())
                held = held[size:]
    if not total:
        raise AudioError(f"{path} holds no samples")
    if len(held):
        yield torch.from_numpy(held.T.copy())


class Writer:
    """Write audio piece by piece: a context manager that renames its temporary file only on success.

    wav is 16 bit; "-" is a WAV stream on standard output. Raises AudioError naming the file.
    """

    def __init__(self, path: str | Path, rate: int, channels: int = 1) -> None:
        self.path, self.rate, self.channels = path, rate, channels

    def __enter__(self) -> "Writer":
        self.part, self.file = None, None
        if str(self.path) == "-":
            self._send(_wav_header(self.rate, self.channels))
            return self
        path = Path(self.path)
        kind = {".opus": "OGG", ".oga": "OGG"}.get(path.suffix.lower(), path.suffix[1:].upper())
        if kind not in soundfile.available_formats():
            raise AudioError(f"cannot write {path}: unknown audio suffix '{path.suffix}'")
        self.part = path.with_name(f".{path.name}.part")
        subtype = "OPUS" if path.suffix.lower() == ".opus" else "PCM_16" if kind == "WAV" else None
        try:
            self.part.touch()  # libsndfile would only say "System error"
        except OSError as error:
            raise AudioError(f"cannot write {path}: {error.strerror}") from None
        try:
            self.file = soundfile.SoundFile(self.part, "w", self.rate, self.channels, subtype, format=kind)
        except (OSError, soundfile.SoundFileError) as error:
            self.part.unlink(missing_ok=True)
            raise AudioError(f"cannot write {path}: {error}") from None
        return self

    def write(self, wave: Float[Tensor, "channels samples"]) -> None:
        """Append samples, clipped to [-1, 1]."""
        data = wave.detach().cpu().clamp(-1, 1).T.numpy()
        if self.file is None:
            self._send(_pcm(data).tobytes())
            return
        try:
            self.file.write(_pcm(data) if self.file.subtype == "PCM_16" else data)
        except (OSError, soundfile.SoundFileError) as error:
            # libsndfile does not say more than "System error"
            reason = getattr(error, "strerror", None) or "the system refused it, as where the disk is full"
            raise AudioError(f"cannot write {self.path}: {reason}") from None

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self.file is None or self.part is None:
            return
        try:
            self.file.close()
            if kind is None:
                os.replace(self.part, self.path)
        except OSError as error:
            raise AudioError(f"cannot write {self.path}: {error.strerror}") from None
        finally:
            self.part.unlink(missing_ok=True)

    def _send(self, data: bytes) -> None:
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise AudioError(f"cannot write standard output: {error.strerror}") from None


def _resampled(pieces: Iterator[np.ndarray], rate: int, target: int, channels: int) -> Iterator[np.ndarray]:
    if rate == target:
        yield from pieces
        return
    stream = soxr.ResampleStream(rate, target, channels, dtype="float32", quality="HQ")
    for piece in pieces:
        yield stream.resample_chunk(np.ascontiguousarray(piece)).reshape(-1, channels)
    yield stream.resample_chunk(np.zeros((0, channels), np.float32), last=True).reshape(-1, channels)


@contextmanager
def _open(path: str | Path) -> Iterator[soundfile.SoundFile]:
    name = _name(path)
    try:
        with ExitStack() as stack:
            source: Any = sys.stdin.buffer if str(path) == "-" else stack.enter_context(open(path, "rb"))
            if str(path) == "-" or not source.seekable():  # libsndfile seeks, so a pipe is laid down first
                spool = stack.enter_context(tempfile.SpooledTemporaryFile(SPOOL))
                shutil.copyfileobj(source, spool, PIECE)
                source = spool
            if not source.seek(0, os.SEEK_END):
                raise AudioError(f"{name} is empty")
            source.seek(0)
            keep = stack.pop_all()
    except OSError as error:
        raise AudioError(f"cannot read {name}: {error.strerror}") from None
    with keep:
        with _naming(name):
            file = soundfile.SoundFile(source)
        with file:
            yield file


def _name(path: str | Path) -> str:
    return "standard input" if str(path) == "-" else str(path)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{path} is not audio that can be read ({type(error).__name__})") from None


def _seek(file: soundfile.SoundFile, path: str | Path, start: float) -> None:
    first = round(start * file.samplerate)
    if first < 0 or (first and first >= file.frames):
        raise AudioError(f"{path} has no sample at {start} s: it is {file.frames / file.samplerate:.2f} s long")
    if first:
        with _naming(path):
            file.seek(first)


def _check(data: np.ndarray, path: str | Path) -> None:
    if not len(data):
        raise AudioError(f"{path} holds no samples")
    if not np.isfinite(data).all():
        raise AudioError(f"{path} holds NaN or infinite samples")


def _pcm(data: np.ndarray) -> np.ndarray:
    """16-bit integers, rounded (libsndfile truncates), at the scale that reading divides by."""
    return np.minimum(np.round(data * np.float32(32768)), 32767).astype("<i2")


def _wav_header(rate: int, channels: int) -> bytes:
    """A 16-bit WAV header whose sizes say 'until the end', for pipes."""
    width, endless = 2 * channels, (0xFFFFFFFF).to_bytes(4, "little")
    form = b"".join(
        value.to_bytes(size, "little")
        for value, size in ((16, 4), (1, 2), (channels, 2), (rate, 4), (rate * width, 4), (width, 2), (16, 2))
    )
    return b"RIFF" + endless + b"WAVEfmt " + form + b"data" + endless
