"""The contract of every tokenizer: its author writes four things, its users get the rest.

The author writes `analyse`, `quantizer`, `synthesise` and says what context they need. `encode`, `decode`, `stream`
and `forward` follow from these. A whole recording goes through the same session as a stream does, in blocks of
bounded size, so a stream *is* the whole; and codes are computed in double precision, because in single precision
the last bit depends on the shape of the batch, and a code on the edge between two cells with it.
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from senone.audio import Audio, AudioError
from senone.codes import Codes, CodesError, CodeSpec
from senone.hub import Pretrained, fingerprint
from senone.quantize import Quantizer

State = Any
BLOCK_SECONDS = 10.0  # how much of a long recording is in work at once


@dataclass(frozen=True)
class Context:
    """Seconds before and after a frame that it may depend on, in analysis and in synthesis each."""

    past: float
    future: float = 0.0


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
    exact: codes in double precision, bit-equal whatever the batch and the chunks (False: faster, equal up to ties).
    """

    sample_rate: int
    hop: int
    quantizer: Quantizer
    causal: bool = True
    context: Context = Context(float("inf"))
    delay: int = 0
    exact: bool = True

    def analyse(
        self, wave: Float[Tensor, "batch 1 samples"], state: State = None, **conditions: Any
    ) -> tuple[Float[Tensor, "batch dim frame"], State]:
        """Samples (a multiple of `hop`) to vectors, one per frame."""
        raise CodesError(f"{type(self).__name__} does not say how to analyse")

    def synthesise(
        self, z: Float[Tensor, "batch dim frame"], state: State = None
    ) -> tuple[Float[Tensor, "batch 1 samples"], State]:
        """Vectors to samples. A tokenizer without a decoder leaves this out."""
        raise CodesError(f"{type(self).__name__} has no decoder")

    def forward(
        self, wave: Float[Tensor, "batch 1 samples"], levels: Tensor | int | None = None, **conditions: Any
    ) -> Output:
        """Training: analyse, quantise with the first `levels` (a number, or one for each row), synthesise."""
        samples = wave.shape[2]
        z, _ = self.analyse(nn.functional.pad(wave, (0, -samples % self.hop)), **conditions)
        quantized = self.quantizer(z, levels)
        out, _ = self.synthesise(nn.functional.pad(quantized.z, (0, self.flush)))
        return Output(out[:, :, self.delay : self.delay + samples], quantized.codes, quantized.losses)

    @property
    def spec(self) -> CodeSpec:
        """Alphabet, clock and fingerprint; the fingerprint is of the weights as they are now."""
        return self._cached("spec", self._spec)

    @property
    def flush(self) -> int:
        """Frames of zeros that push the last `delay` samples out."""
        return -(-self.delay // self.hop)

    @property
    def latency(self) -> float:
        """Seconds from a sample going in to its copy coming out, computing time aside: frame, overlap, look-ahead."""
        future = 0.0 if self.causal else 2 * self.context.future
        return (self.hop + self.delay) / self.sample_rate + future

    def levels_for(self, levels: int | None = None, kbps: float | None = None) -> int:
        """The number of levels asked for: all of them, `levels`, or the most that fit into `kbps`.

        Raises CodesError where there are fewer, or where not even one fits.
        """
        most = len(self.quantizer.sizes)
        if kbps is not None:
            rates = [
                CodeSpec(self.sample_rate, self.hop, self.quantizer.sizes[:k], "").bitrate / 1000
                for k in range(1, most + 1)
            ]
            fit = sum(rate <= kbps + 1e-9 for rate in rates)
            if not fit:
                raise CodesError(f"one level takes {rates[0]:g} kb/s; {kbps:g} kb/s is not enough")
            return fit
        if levels is not None and not 1 <= levels <= most:
            raise CodesError(f"levels must be 1 to {most}, got {levels}")
        return most if levels is None else levels

    def encode(self, audio: Audio | list[Audio], *, levels: int | None = None, **conditions: Any) -> Codes:
        """Tokens of one recording or of several of any lengths; mixed down and resampled as needed.

        conditions: what `analyse` of this model takes, such as `denoise=True`.
        Raises AudioError for no samples or samples that are not finite, CodesError for wrong levels.
        """
        rows = [audio] if isinstance(audio, Audio) else audio
        waves = [row.mono().resample(self.sample_rate).wave for row in rows]
        if not waves:
            raise AudioError("no audio to encode")
        groups = [waves] if self.causal else [[wave] for wave in waves]  # rows with a future would see the padding
        parts = [self._encode(group, self.levels_for(levels), conditions) for group in groups]
        return parts[0] if len(parts) == 1 else _stack(parts)

    def decode(self, codes: Codes) -> list[Audio]:
        """One recording per row, each with exactly the samples that were encoded."""
        self._accept(codes)
        if not self.causal:
            return [self._decode(row)[0] for row in codes]
        return self._decode(codes)

    def stream(self, *, levels: int | None = None, state: State = None) -> "Stream":
        """A session of its own on these weights; `state` resumes one from its `Stream.state`."""
        return Stream(self, self.levels_for(levels), state)

    def _encode(self, waves: list[Tensor], levels: int, conditions: dict[str, Any]) -> Codes:
        samples = torch.tensor([wave.shape[1] for wave in waves])
        if not bool((samples > 0).all()):
            raise AudioError("cannot encode a recording without samples")
        batch = torch.zeros(len(waves), 1, int(samples.max()))
        for row, wave in zip(batch, waves, strict=True):
            row[:, : wave.shape[1]] = wave
        block, state, parts = self._block(), None, []
        for start in range(0, batch.shape[2], block):
            last = start + block >= batch.shape[2]
            codes, state = self._push(batch[:, :, start : start + block], state, last, levels, conditions)
            parts.append(codes)
        data = torch.cat(parts, 2)
        frame = torch.arange(data.shape[2])
        data = data.where((frame < -(-samples[:, None] // self.hop))[:, None], 0)
        return Codes(data, samples, self.spec)

    def _decode(self, codes: Codes) -> list[Audio]:
        block, state, parts, frames = self._block() // self.hop, None, [], codes.data.shape[2]
        ends = -(-codes.samples // self.hop)
        for start in range(0, frames, block):
            data = codes.data[:, :, start : start + block]
            wave, state = self._pull(data, state, start + block >= frames, (ends - start).clamp(min=0))
            parts.append(wave)
        wave = torch.cat(parts, 2) if parts else torch.zeros(len(codes), 1, 0)
        return [Audio(row[:, : int(n)], self.sample_rate) for row, n in zip(wave, codes.samples, strict=True)]

    @torch.no_grad()
    def _push(
        self, wave: Tensor, state: State, last: bool, levels: int, conditions: dict[str, Any]
    ) -> tuple[Tensor, State]:
        """One step of encoding: as many frames as `wave` (batch 1 samples) completes, all of them at `last`."""
        if not bool(torch.isfinite(wave).all()):
            raise AudioError("cannot encode NaN or infinite samples")
        model = self._cached("exact", lambda: copy.deepcopy(self).double()) if self.exact else self
        parameter = next(model.parameters())
        wave = wave.to(parameter)
        if state is not None:
            wave = torch.cat([state["wave"], wave], 2)
        if last:
            wave = nn.functional.pad(wave, (0, -wave.shape[2] % self.hop))
        whole = wave.shape[2] // self.hop
        if self.causal:
            ready, rest, inner = whole, wave[:, :, whole * self.hop :], None if state is None else state["inner"]
            if not ready:
                return torch.zeros(len(wave), levels, 0, dtype=torch.long), {"wave": rest.clone(), "inner": inner}
            z, inner = model.analyse(wave[:, :, : whole * self.hop], inner, **conditions)
            kept = {"wave": rest.clone(), "inner": inner}
        else:
            first, ready, drop = self._window(whole, 0 if state is None else state["seen"], last)
            if ready <= first:
                return torch.zeros(len(wave), levels, 0, dtype=torch.long), {"wave": wave, "seen": first}
            z = model.analyse(wave[:, :, : whole * self.hop], None, **conditions)[0][:, :, first:ready]
            kept = {"wave": wave[:, :, drop * self.hop :].clone(), "seen": ready - drop}
        return model.quantizer.encode(z, levels).cpu(), None if last else kept

    @torch.no_grad()
    def _pull(
        self, data: Tensor, state: State, last: bool, ends: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch 1 samples"], State]:
        """One step of decoding. Frames at or beyond a row's `ends` are silence between the rows of a batch."""
        parameter = next(self.parameters())
        z = self.quantizer.decode(data.to(parameter.device))
        if ends is not None:
            z = z * (torch.arange(z.shape[2]) < ends[:, None])[:, None].to(z)
        if not self.causal:
            return self._pull_window(z, state, last)
        if last:
            z = nn.functional.pad(z, (0, self.flush))
        behind, inner = (self.delay, None) if state is None else (state["behind"], state["inner"])
        if not z.shape[2]:
            return torch.zeros(len(z), 1, 0), state
        wave, inner = self.synthesise(z, inner)
        drop = min(behind, wave.shape[2])
        wave = wave[:, :, drop:]
        if last:
            wave = wave[:, :, : max(0, wave.shape[2] - (self.flush * self.hop - self.delay))]
        return wave.float().cpu(), None if last else {"behind": behind - drop, "inner": inner}

    def _pull_window(self, z: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        if state is not None:
            z = torch.cat([state["z"], z], 2)
        first, ready, drop = self._window(z.shape[2], 0 if state is None else state["seen"], last)
        if ready <= first:
            return torch.zeros(len(z), 1, 0), {"z": z, "seen": first}
        wave = self.synthesise(z)[0][:, :, first * self.hop : ready * self.hop]
        kept = {"z": z[:, :, drop:].clone(), "seen": ready - drop}
        return wave.float().cpu(), None if last else kept

    def _window(self, held: int, seen: int, last: bool) -> tuple[int, int, int]:
        """Of `held` frames, `seen` of them given out before: the first to give, their end, how many to forget."""
        past, future = (
            -(-round(seconds * self.sample_rate) // self.hop) for seconds in (self.context.past, self.context.future)
        )
        ready = held if last else max(seen, held - future)
        return seen, ready, max(0, ready - past)

    def _accept(self, codes: Codes) -> None:
        if codes.spec.fingerprint != self.spec.fingerprint:
            raise CodesError(
                f"these codes are of another model: fingerprint {codes.spec.fingerprint}, here {self.spec.fingerprint}"
            )

    def _block(self) -> int:
        """Samples of a block: whole frames."""
        return max(1, round(BLOCK_SECONDS * self.sample_rate / self.hop)) * self.hop

    def _cached(self, name: str, make: Any) -> Any:
        """`make()`, kept until a weight changes."""
        tensors = [*self.parameters(), *self.buffers()]
        key = [(value.data_ptr(), value._version) for value in tensors]
        kept = self.__dict__.setdefault("_kept", {})
        if name not in kept or kept[name][0] != key:
            kept.pop(name, None)
            kept[name] = key, make()
        return kept[name][1]

    def _spec(self) -> CodeSpec:
        facts = (type(self).__name__, self.sample_rate, self.hop, self.quantizer.sizes)
        return CodeSpec(self.sample_rate, self.hop, tuple(self.quantizer.sizes), fingerprint(self, *facts))


class Stream:
    """A session: encodes sound and decodes codes as they come. Any split gives what the whole gives.

    `last=True` ends the recording; the next call begins another. `state` is a plain tree of tensors and numbers.
    """

    def __init__(self, tokenizer: AudioTokenizer, levels: int, state: State = None) -> None:
        self.tokenizer, self.levels = tokenizer, levels
        # in: samples taken but not yet given out as frames; due: samples that frames taken in still owe
        self.state = state or {"encoder": None, "in": 0, "decoder": None, "due": 0}

    @property
    def latency(self) -> float:
        """Seconds, computing time aside."""
        return self.tokenizer.latency

    def encode(self, wave: Float[Tensor, "1 samples"], last: bool = False, **conditions: Any) -> Codes:
        """The frames that these samples (at the tokenizer's rate) complete; at `last` the rest, padded with zeros."""
        if wave.ndim != 2 or len(wave) != 1:
            raise AudioError(f"a stream takes mono samples of shape (1, samples), got {tuple(wave.shape)}")
        data, state = self.tokenizer._push(wave[None], self.state["encoder"], last, self.levels, conditions)
        held = self.state["in"] + wave.shape[1]
        samples = held if last else data.shape[2] * self.tokenizer.hop
        self.state = self.state | {"encoder": state, "in": held - samples}
        return Codes(data, torch.tensor([samples]), self.tokenizer.spec)

    def decode(self, codes: Codes, last: bool = False) -> Audio:
        """The samples that these frames (a batch of one) complete; at `last` the rest, exact to the sample."""
        self.tokenizer._accept(codes)
        wave, state = self.tokenizer._pull(codes.data, self.state["decoder"], last)
        due = self.state["due"] + int(codes.samples[0])
        wave = wave[:, :, :due]
        self.state = self.state | {"decoder": state, "due": 0 if last else due - wave.shape[2]}
        return Audio(wave[0], self.tokenizer.sample_rate)


def _stack(parts: list[Codes]) -> Codes:
    """Rows of different lengths as one batch."""
    longest = max(part.data.shape[2] for part in parts)
    data = [nn.functional.pad(part.data, (0, longest - part.data.shape[2])) for part in parts]
    return Codes(torch.cat(data), torch.cat([part.samples for part in parts]), parts[0].spec)
