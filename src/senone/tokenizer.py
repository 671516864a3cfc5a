"""The contract of every tokenizer: its author writes four things, its users get the rest.

The author writes `analyse`, `quantizer`, `synthesise` and says what context they need. `encode`, `decode`, `stream`
and `forward` follow from these. A whole recording goes through the same session as a stream does, in blocks of
bounded size, so a stream *is* the whole. Codes are computed in double precision: in single precision the last bit
depends on the shape of the batch, and with it a code on the edge between two cells. Exact edges, such as silence or a
codebook with one vector twice, are settled by the quantizers (`quantize.TIE`). What remains is the chance that a value
comes within a rounding error of an edge: SoundStream's vectors, whole and in chunks, differ by 3e-15 of their peak.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from senone import config as configs
from senone import tree
from senone.audio import Audio, AudioError
from senone.codes import Codes, CodesError, CodeSpec
from senone.hub import Pretrained, fingerprint
from senone.quantize import Quantized, Quantizer

State = Any
BLOCK_SECONDS = 10.0  # how much sound, over all rows, is in work at once
# tokenizer -> name -> (key, value): beside the modules, so that copies and files of them do not carry it
_KEPT: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Context:
    """Seconds before and after a frame that it may depend on, in analysis and in synthesis each."""

    past: float
    future: float = 0.0

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "past", "future")


class Output(NamedTuple):
    """What training needs of a codec: the wave, the codes behind it, and the losses of its quantizer by name."""

    wave: Float[Tensor, "batch 1 samples"]
    codes: Int[Tensor, "batch level frame"]
    losses: dict[str, Tensor]


class AudioTokenizer(nn.Module, Pretrained):
    """Base of all tokenizers. A subclass sets, in `__init__`, the attributes below and writes the two methods.

    sample_rate, hop: samples per second, samples per frame. quantizer: see `senone.quantize`.
    causal: True where the methods carry a state and see the past only; else they see `context.future` as well.
    context: how far they reach. delay: samples by which `synthesise` runs behind (a causal overlap).
    block: seconds worked on at once, always the same ones, where nothing bounds the reach: attention, a norm over time.
    exact: codes in double precision, bit-equal whatever the batch and the chunks (False: faster, equal up to ties).
    ragged: `analyse` of a model that is not causal takes the end as it is, else with zeros up to a whole frame.
    """

    sample_rate: int
    hop: int
    quantizer: Quantizer
    causal: bool = True
    context: Context = Context(inf)
    block: float | None = None
    delay: int = 0
    exact: bool = True
    ragged: bool = False

    def analyse(
        self, wave: Float[Tensor, "batch 1 samples"], state: State = None, **conditions: Any
    ) -> tuple[Float[Tensor, "batch dim frame"], State]:
        """Samples (a multiple of `hop`, unless `ragged`) to vectors, one per frame."""
        raise CodesError(f"{type(self).__name__} does not say how to analyse")

    def synthesise(
        self, z: Float[Tensor, "batch dim frame"], state: State = None
    ) -> tuple[Float[Tensor, "batch 1 samples"], State]:
        """Vectors to samples. A tokenizer without a decoder leaves this out."""
        raise CodesError(f"{type(self).__name__} has no decoder")

    def forward(
        self,
        wave: Float[Tensor, "batch 1 samples"],
        levels: Tensor | int | None = None,
        *,
        quantise: bool = True,
        **conditions: Any,
    ) -> Output:
        """Training: analyse, quantise with the first `levels` (a number, or one for each row), synthesise.

        Without `quantise` the vectors go through as they are, and there are no codes.
        """
        samples = wave.shape[2]
        z, _ = self.analyse(nn.functional.pad(wave, (0, -samples % self.hop)), **conditions)
        none = z.new_zeros(len(z), 0, z.shape[2], dtype=torch.long)
        quantized = self.quantizer(z, levels) if quantise else Quantized(z, none, {})
        out, _ = self.synthesise(nn.functional.pad(quantized.z, (0, self.flush)))
        return Output(out[:, :, self.delay : self.delay + samples], quantized.codes, quantized.losses)

    @property
    def spec(self) -> CodeSpec:
        """Alphabet, clock and fingerprint; the fingerprint is of the weights and the config as they are now."""
        return self._cached("spec", self._spec)

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder."""
        return type(self).synthesise is not AudioTokenizer.synthesise

    @property
    def flush(self) -> int:
        """Frames of zeros that push the last `delay` samples out."""
        return -(-self.delay // self.hop)

    @property
    def latency(self) -> float:
        """Seconds from a sample going in to its copy (without a decoder: its code) coming out, computing time aside.

        The sum of frame, overlap, look-ahead, and, for the sample that waits longest, block.
        """
        future = 0.0 if self.causal else (1 + self.decodes) * self.context.future + (self.block or 0.0)
        return (self.hop + self.delay) / self.sample_rate + future

    def levels_for(self, levels: int | None = None, kbps: float | None = None) -> int:
        """The number of levels asked for: all of them, `levels`, or the most that fit into `kbps`.

        Raises CodesError where there are fewer, or where not even one fits.
        """
        sizes = self.quantizer.sizes
        if kbps is not None:
            rates = [CodeSpec(self.sample_rate, self.hop, sizes[: k + 1], "").bitrate / 1000 for k in range(len(sizes))]
            fit = sum(rate <= kbps + 1e-9 for rate in rates)
            if not fit:
                raise CodesError(f"one level takes {rates[0]:g} kb/s; {kbps:g} kb/s is not enough")
            return fit
        if levels is not None and not 1 <= levels <= len(sizes):
            raise CodesError(f"levels must be 1 to {len(sizes)}, got {levels}")
        return len(sizes) if levels is None else levels

    def encode(self, audio: Audio | list[Audio], *, levels: int | None = None, **conditions: Any) -> Codes:
        """Tokens of one recording or of several of any lengths; mixed down and resampled as needed.

        conditions: what `analyse` of this model takes, such as `denoise=True`; of a causal model, also a tensor with
        one value a frame, (batch, frame). Raises AudioError for no samples or samples that are not finite, CodesError
        for wrong levels or conditions.
        """
        rows = [audio] if isinstance(audio, Audio) else audio
        waves = [row.mono().resample(self.sample_rate).wave for row in rows]
        if not waves:
            raise AudioError("no audio to encode")
        self._know(conditions)
        groups = [waves] if self.causal else [[wave] for wave in waves]  # rows with a future would see the padding
        parts = [self._encode(group, self.levels_for(levels), conditions) for group in groups]
        return parts[0] if len(parts) == 1 else _stack(parts)

    def decode(self, codes: Codes) -> list[Audio]:
        """One recording per row, each with exactly the samples that were encoded.

        Raises CodesError for codes of another model, or if there is no decoder.
        """
        _accept(codes, self.spec)
        if not self.causal:
            return [self._decode(row)[0] for row in codes]
        return self._decode(codes)

    def stream(self, *, levels: int | None = None, state: State = None) -> "Stream":
        """A session of its own on these weights, which stay as they are meanwhile; `state` resumes a `Stream.state`."""
        return Stream(self, levels, state)

    def resume(self, path: str | Path) -> "Stream":
        """The session that `Stream.save` wrote. Raises TreeError naming the file, CodesError for another model's."""
        state = tree.load(path)
        if not isinstance(state, dict) or not state.keys() >= {"fingerprint", "levels", "encoder", "decoder"}:
            raise tree.TreeError(f"{path} holds no session")
        return Stream(self, None, state)

    def _encode(self, waves: list[Tensor], levels: int, conditions: dict[str, Any]) -> Codes:
        samples = torch.tensor([wave.shape[1] for wave in waves])
        if not bool((samples > 0).all()):
            raise AudioError("cannot encode a recording without samples")
        ends = -(-samples // self.hop)
        frames, step, hop = int(ends.max()), self._step(len(waves)), self.hop
        model, like = self._coder()
        state, parts = None, []
        for first in range(0, frames, step):
            end = min(first + step, frames)
            pieces = [wave[0, first * hop : end * hop] for wave in waves]
            block = torch.zeros(len(waves), 1, (end - first) * hop if self.causal else len(pieces[0]))
            for row, piece in zip(block[:, 0], pieces, strict=True):
                row[: len(piece)] = piece
            now = {key: _between(value, first, end) if self.causal else value for key, value in conditions.items()}
            codes, state = model._push(block.to(like), state, end == frames, levels, now)
            parts.append(codes)
        data = torch.cat(parts, 2)
        return Codes(data.where(torch.arange(frames) < ends[:, None, None], 0), samples, self.spec)

    def _decode(self, codes: Codes) -> list[Audio]:
        step, state, parts, frames = self._step(len(codes)), None, [], codes.data.shape[2]
        ends = -(-codes.samples // self.hop)
        for first in range(0, frames, step):
            data = codes.data[:, :, first : first + step]
            wave, state = self._pull(data, state, first + step >= frames, (ends - first).clamp(min=0))
            parts.append(wave)
        wave = torch.cat(parts, 2) if parts else torch.zeros(len(codes), 1, 0)
        return [Audio(row[:, : int(n)], self.sample_rate) for row, n in zip(wave, codes.samples, strict=True)]

    @torch.no_grad()
    def _push(
        self, wave: Tensor, state: State, last: bool, levels: int, conditions: dict[str, Any]
    ) -> tuple[Tensor, State]:
        """One step of encoding: as many frames as `wave` (batch 1 samples) completes, all of them at `last`."""
        z, state = self._vectors(wave, state, last, conditions)
        if z is None:
            return torch.zeros(len(wave), levels, 0, dtype=torch.long), state
        return self.quantizer.encode(z, levels).cpu(), state

    @torch.no_grad()
    def _vectors(
        self, wave: Tensor, state: State, last: bool, conditions: dict[str, Any]
    ) -> tuple[Tensor | None, State]:
        """`_push` short of the quantizer; None for no frames."""
        if not bool(torch.isfinite(wave).all()):
            raise AudioError("cannot encode NaN or infinite samples")
        if state is not None:
            wave = torch.cat([state["wave"], wave], 2)
        if last and not self.ragged:
            wave = nn.functional.pad(wave, (0, -wave.shape[2] % self.hop))
        whole = -(-wave.shape[2] // self.hop) if last else wave.shape[2] // self.hop
        # what the states keep is cloned: a view would hold the whole input alive, or be the caller's own memory
        if self.causal:
            z, inner = None, None if state is None else state["inner"]
            if whole:
                z, inner = self.analyse(wave[:, :, : whole * self.hop], inner, **conditions)
            return z, None if last else {"wave": wave[:, :, whole * self.hop :].clone(), "inner": inner}
        seen, parts = 0 if state is None else state["seen"], []
        for start, stop, end in self._windows(whole, seen, last):
            z = self.analyse(wave[:, :, start * self.hop : stop * self.hop], None, **conditions)[0]
            parts.append(z[:, :, seen - start : end - start])
            seen = end
        drop = int(max(0, seen - self._frames(self.context.past)))
        kept = None if last else {"wave": wave[:, :, drop * self.hop :].clone(), "seen": seen - drop}
        return torch.cat(parts, 2) if parts else None, kept

    @torch.no_grad()
    def _pull(
        self, data: Tensor, state: State, last: bool, ends: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch 1 samples"], State]:
        """One step of decoding. Frames at or beyond a row's `ends` are silence between the rows of a batch."""
        z = self.quantizer.decode(data.to(self._like().device))
        if ends is not None:
            z = z * (torch.arange(z.shape[2]) < ends[:, None])[:, None].to(z)
        if not self.causal:
            return self._pull_window(z, state, last)
        behind, inner = (self.delay, None) if state is None else (state["behind"], state["inner"])
        if last:
            z = nn.functional.pad(z, (0, self.flush))
        wave = z.new_zeros(len(z), 1, 0)
        if z.shape[2]:
            wave, inner = self.synthesise(z, inner)
        drop = min(behind, wave.shape[2])
        wave = wave[:, :, drop:]
        if last:
            wave = wave[:, :, : max(0, wave.shape[2] - (self.flush * self.hop - self.delay))]
        return wave.float().cpu(), None if last else {"behind": behind - drop, "inner": inner}

    def _pull_window(self, z: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        if state is not None:
            z = torch.cat([state["z"], z], 2)
        seen = 0 if state is None else state["seen"]
        parts = [z.new_zeros(len(z), 1, 0)]
        for start, stop, end in self._windows(z.shape[2], seen, last):
            wave = self.synthesise(z[:, :, start:stop])[0]
            parts.append(wave[:, :, (seen - start) * self.hop : (end - start) * self.hop])
            seen = end
        drop = int(max(0, seen - self._frames(self.context.past)))
        return torch.cat(parts, 2).float().cpu(), None if last else {"z": z[:, :, drop:].clone(), "seen": seen - drop}

    def _windows(self, held: int, seen: int, last: bool) -> Iterator[tuple[int, int, int]]:
        """What to work on of `held` frames, `seen` of them given out: from, to, and up to where its frames are final.

        With `block`, block k is always seen from `past` before it to `future` after it, and given out once there is
        more than that: what is left at the end, more than `future` but at most block + future, goes together. What a
        frame sees, and the shape it comes in, then depend on the recording alone: results are equal to the last bit.
        """
        if self.block is None:
            ready = held if last else int(max(seen, held - self._frames(self.context.future)))
            if ready > seen:
                yield 0, held, ready
            return
        past, future, size = map(self._frames, (self.context.past, self.context.future, self.block))
        size = max(1, size)  # or it would never end
        while held - seen > size + future or (last and held > seen):
            end = seen + size if held - seen > size + future else held
            yield int(max(0, seen - past)), int(min(end + future, held)), int(end)
            seen = int(end)

    def _frames(self, seconds: float) -> float:
        """Whole frames that cover `seconds`, or infinity."""
        return seconds if seconds == inf else -(-round(seconds * self.sample_rate) // self.hop)

    def _step(self, rows: int) -> int:
        """Frames of a block: BLOCK_SECONDS over all rows, but no less than the context that a window repeats."""
        frames = BLOCK_SECONDS * self.sample_rate / self.hop / max(1, rows)
        if not self.causal:
            frames = max(frames, self._frames(self.context.past) + self._frames(self.context.future))
        return max(1, round(min(frames, 2**40)))

    def _like(self) -> Tensor:
        """A weight, for its device and type."""
        floats = (value for value in chain(self.parameters(), self.buffers()) if value.is_floating_point())
        return next(floats, torch.zeros(()))

    def _coder(self) -> tuple["AudioTokenizer", Tensor]:
        """The model that computes codes, and a tensor of the device and type it wants its waves in."""
        return self._cached("coder", self._twin) if self.exact else (self, self._like())

    @torch.inference_mode(False)  # whoever asks first, this serves all
    def _twin(self) -> tuple["AudioTokenizer", Tensor]:
        twin = copy.deepcopy(self).eval()
        if twin._like().device.type == "mps":  # no double precision there
            twin = twin.cpu()
        return twin.double(), twin._like().double()

    def _know(self, conditions: dict[str, Any]) -> None:
        """Refuse conditions that `analyse` does not take."""
        if conditions:
            known = [key for key in inspect.signature(self.analyse).parameters if key not in ("wave", "state")]
            for key in conditions.keys() - set(known):
                kind = type(self).__name__
                raise CodesError(f"{kind} takes no condition '{key}'" + (f", only {', '.join(known)}" if known else ""))

    def _cached(self, name: str, make: Callable[[], Any]) -> Any:
        """`make()`, kept until a weight changes."""
        key = [(value.data_ptr(), value._version) for value in chain(self.parameters(), self.buffers())]
        kept = _KEPT.setdefault(self, {})
        if name not in kept or kept[name][0] != key:
            kept.pop(name, None)
            kept[name] = key, make()
        return kept[name][1]

    def _spec(self) -> CodeSpec:
        facts = (self.model_type, self.sample_rate, self.hop, tuple(self.quantizer.sizes), configs.changed(self.config))
        return CodeSpec(self.sample_rate, self.hop, tuple(self.quantizer.sizes), fingerprint(self, *facts))


class Stream:
    """A session: encodes sound and decodes codes as they come. Any split gives what the whole gives.

    `last=True` ends the recording; the next call begins another. `state` is a value, never changed in place: a plain
    tree of tensors and numbers that `save` writes, and that `AudioTokenizer.stream(state=...)` and `resume` go on from.
    """

    def __init__(self, tokenizer: AudioTokenizer, levels: int | None = None, state: State = None) -> None:
        self.tokenizer, self.spec = tokenizer, tokenizer.spec
        self._model, self._like = tokenizer._coder()
        if state is None:
            # in: samples taken but not yet given out as frames; due: samples that frames taken in still owe
            empty = {"encoder": None, "in": 0, "decoder": None, "due": 0}
            state = {"fingerprint": self.spec.fingerprint, "levels": tokenizer.levels_for(levels), **empty}
        elif state["fingerprint"] != self.spec.fingerprint:
            raise CodesError(f"this session is of another model: {state['fingerprint']}, here {self.spec.fingerprint}")
        encoder = tree.walk(state["encoder"], lambda value: value.to(self._like.device))
        decoder = tree.walk(state["decoder"], lambda value: value.to(tokenizer._like().device))
        self.levels = tokenizer.levels_for(levels or state["levels"])
        self.state = state | {"levels": self.levels, "encoder": encoder, "decoder": decoder}

    @property
    def latency(self) -> float:
        """Seconds, computing time aside."""
        return self.tokenizer.latency

    def encode(self, wave: Float[Tensor, "1 samples"], last: bool = False, **conditions: Any) -> Codes:
        """The frames that these samples (at the tokenizer's rate) complete; at `last` the rest, padded with zeros."""
        if wave.ndim != 2 or len(wave) != 1:
            raise AudioError(f"a stream takes mono samples of shape (1, samples), got {tuple(wave.shape)}")
        self.tokenizer._know(conditions)
        wave = wave[None].to(self._like)
        with torch.inference_mode():  # a tenth faster than without gradients only
            data, state = self._model._push(wave, self.state["encoder"], last, self.levels, conditions)
        data = data.clone()  # what leaves the session may go where gradients are wanted
        held = self.state["in"] + wave.shape[2]
        samples = held if last else data.shape[2] * self.spec.hop
        self.state = self.state | {"encoder": state, "in": held - samples}
        return Codes(data, torch.tensor([samples]), self.spec)

    def decode(self, codes: Codes, last: bool = False) -> Audio:
        """The samples that these frames (a batch of one) complete; at `last` the rest, exact to the sample."""
        _accept(codes, self.spec)
        if len(codes) != 1:
            raise CodesError(f"a stream takes one recording, got a batch of {len(codes)}")
        samples = int(codes.samples[0])
        if not last and samples != codes.data.shape[2] * self.spec.hop:
            raise CodesError("only the last piece of a stream may end inside a frame: decode it with last=True")
        with torch.inference_mode():
            wave, state = self.tokenizer._pull(codes.data, self.state["decoder"], last)
        due = self.state["due"] + samples
        wave = wave[0, :, :due].clone()
        self.state = self.state | {"decoder": state, "due": 0 if last else due - wave.shape[1]}
        return Audio(wave, self.spec.sample_rate)

    def save(self, path: str | Path) -> None:
        """Write the session as a safetensors file. Raises TreeError naming the file."""
        tree.save(self.state, path)


def _accept(codes: Codes, spec: CodeSpec) -> None:
    if codes.spec.fingerprint != spec.fingerprint:
        raise CodesError(
            f"these codes are of another model: fingerprint {codes.spec.fingerprint}, here {spec.fingerprint}"
        )


def _between(value: Any, first: int, end: int) -> Any:
    """The frames `first` to `end` of a condition that has one value a frame."""
    return value[..., first:end] if isinstance(value, Tensor) and value.ndim else value


def _stack(parts: list[Codes]) -> Codes:
    """Rows of different lengths as one batch."""
    longest = max(part.data.shape[2] for part in parts)
    data = [nn.functional.pad(part.data, (0, longest - part.data.shape[2])) for part in parts]
    return Codes(torch.cat(data), torch.cat([part.samples for part in parts]), parts[0].spec)
