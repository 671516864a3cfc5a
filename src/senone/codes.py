"""CodeSpec and Codes: what a tokenizer writes, as plain values."""

import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import ceil, log2
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from senone.errors import SenoneError


class CodesError(SenoneError):
    """Codes that do not fit their specification, or a slice outside of them."""


@dataclass(frozen=True)
class CodeSpec:
    """The alphabet and clock of a tokenizer, and the fingerprint of the weights behind it."""

    sample_rate: int
    hop: int
    sizes: tuple[int, ...]
    fingerprint: str

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second, exactly."""
        return Fraction(self.sample_rate, self.hop)

    @property
    def token_rate(self) -> Fraction:
        """Tokens per second over all levels."""
        return self.frame_rate * len(self.sizes)

    @property
    def bitrate(self) -> float:
        """Bits per second over all levels, at log2(size) bits a token."""
        return float(self.frame_rate) * sum(log2(size) for size in self.sizes)

    def frames(self, samples: int) -> int:
        """Frames that `samples` samples need: the last one may be partly empty."""
        return ceil(samples / self.hop)


@dataclass(frozen=True)
class Codes:
    """Tokens of a batch of recordings.

    data: (batch, level, frame), int64, zero beyond each row's last frame; the first k levels of `spec.sizes`.
    samples: (batch,), exact length of each recording. Raises CodesError where shape, type or range do not fit.
    """

    data: Int[Tensor, "batch level frame"]
    samples: Int[Tensor, "batch"]
    spec: CodeSpec

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or self.data.dtype != torch.int64:
            shape, kind = tuple(self.data.shape), self.data.dtype
            raise CodesError(f"codes must be int64 of shape (batch, level, frame), got {kind} of shape {shape}")
        batch, level, frame = self.data.shape
        if not 1 <= level <= len(self.spec.sizes):
            raise CodesError(f"codes have {level} levels where the tokenizer has {len(self.spec.sizes)}")
        if self.samples.shape != (batch,) or self.samples.dtype != torch.int64 or bool((self.samples < 0).any()):
            raise CodesError(f"samples must be {batch} counts, int64, got {self.samples.tolist()}")
        if batch and self.spec.frames(int(self.samples.max())) != frame:
            raise CodesError(f"{int(self.samples.max())} samples do not make {frame} frames of {self.spec.hop}")
        sizes = torch.tensor(self.spec.sizes[:level], device=self.data.device)[:, None]
        if self.data.numel() and bool(((self.data < 0) | (self.data >= sizes)).any()):
            raise CodesError(f"codes outside of their sizes {self.spec.sizes[:level]}")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> "Codes":
        """One recording, as a batch of one without padding."""
        samples = self.samples[row : row + 1 or None]
        if not len(samples):
            raise IndexError(f"row {row} of a batch of {len(self)}")  # ends iteration, as Python expects
        frames = self.spec.frames(int(samples[0]))
        return Codes(self.data[row : row + 1 or None, :, :frames], samples, self.spec)

    def levels(self, which: int | slice) -> "Codes":
        """The first `which` levels, or a slice that starts at 0. Raises CodesError where there are fewer."""
        keep = which.stop if isinstance(which, slice) else which
        if isinstance(which, slice) and (which.start not in (None, 0) or which.step not in (None, 1)):
            raise CodesError("a residual code is only meaningful from level 0 on: slice levels as [:k]")
        have = self.data.shape[1]
        if keep is None:
            keep = have
        if not 1 <= keep <= have:
            raise CodesError(f"levels must be 1 to {have}, got {keep}")
        return Codes(self.data[:, :keep], self.samples, self.spec)

    def seconds(self, start: float, end: float) -> "Codes":
        """Whole frames from `start` to `end` seconds (rounded to the nearest frame), of every row."""
        rate = self.spec.frame_rate
        first, last = round(start * rate), round(end * rate)
        if not 0 <= first <= last:
            raise CodesError(f"cannot cut codes from {start} to {end} seconds")
        samples = (self.samples.clamp(max=last * self.spec.hop) - first * self.spec.hop).clamp(min=0)
        longest = self.spec.frames(int(samples.max())) if len(samples) else 0
        return Codes(self.data[:, :, first : first + longest], samples, self.spec)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, under a temporary name first."""
        path = Path(path)
        meta = {"spec": json.dumps(asdict(self.spec)), "format": "senone-codes-1"}
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_bytes(to_bytes({"data": self.data.contiguous(), "samples": self.samples}, meta))
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise CodesError(f"cannot write {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: str | Path) -> "Codes":
        """Read what `save` wrote. Raises CodesError naming the file."""
        try:
            with safe_open(str(path), "pt") as file:
                spec = json.loads((file.metadata() or {})["spec"])
                data, samples = file.get_tensor("data"), file.get_tensor("samples")
            return cls(data, samples, CodeSpec(**spec | {"sizes": tuple(spec["sizes"])}))
        except FileNotFoundError:
            raise CodesError(f"{path} does not exist") from None
        except (CodesError, SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise CodesError(f"{path} is not a file of codes: {error}") from None


def concat(parts: list[Codes]) -> Codes:
    """Join pieces of the same recordings along time; every piece but the last must hold whole frames."""
    if not parts:
        raise CodesError("nothing to join")
    if any(part.spec != parts[0].spec for part in parts):
        raise CodesError("cannot join codes of different tokenizers")
    hop = parts[0].spec.hop
    if any(bool((part.samples != part.data.shape[2] * hop).any()) for part in parts[:-1]):
        raise CodesError("only the last piece may end inside a frame")
    samples = torch.stack([part.samples for part in parts]).sum(0)
    return Codes(torch.cat([part.data for part in parts], 2), samples, parts[0].spec)


def swap(source: Codes, reference: Codes, from_level: int = 2) -> Codes:
    """`source` with its levels `from_level` and above (counted from 1) replaced by those of `reference`, which is
    repeated or cut to the length: where level 1 is content, the voice changes (SpeechTokenizer, 2308.16692 §4.4).

    Raises CodesError for codes of different tokenizers, a reference without frames, or a level that is not there.
    """
    if source.spec != reference.spec or source.data.shape[:2] != reference.data.shape[:2]:
        raise CodesError("cannot swap between codes of different tokenizers, or different numbers of rows or levels")
    levels, frames = source.data.shape[1:]
    if levels == 1:
        raise CodesError("codes of one level have nothing to swap")
    if not 2 <= from_level <= levels:
        raise CodesError(f"from_level must be 2 to {levels}, got {from_level}")
    short = int(reference.samples.min()) // source.spec.hop or reference.data.shape[2]  # no row shows its padding
    if not short:
        raise CodesError("the reference has no frames")
    upper = reference.data[:, from_level - 1 :, :short].repeat(1, 1, -(-frames // short))[:, :, :frames]
    return Codes(torch.cat([source.data[:, : from_level - 1], upper], 1), source.samples, source.spec)
