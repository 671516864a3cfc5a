"""The laws of tokenizers, as a kit that anyone can run on a codec of their own: `senone check`.

Tokens are a function of the audio: not of batch size, padding, chunk length or streaming. Each law is a property that
hypothesis tries to break with sounds, lengths and splits of its choice; a broken one comes with its smallest
counter-example. Codes must be equal bit for bit, audio to `CLOSE` of its peak (single precision, half a 16-bit step).
"""

import gc
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from senone.audio import Audio, AudioError
from senone.codes import Codes, concat
from senone.errors import SenoneError
from senone.tokenizer import AudioTokenizer, Stream

CLOSE = 1.5e-5
FRAMES = 12  # length of the sounds, beyond the context that the codec declares
FAR = 30.0  # seconds; a context beyond is not tried out


@dataclass(frozen=True)
class Law:
    """A law and whether it holds; detail: what was tried, or the counter-example in one sentence."""

    name: str
    ok: bool
    detail: str


class Broken(Exception):
    """The counter-example."""


class Inapplicable(Exception):
    """Why a law says nothing about a tokenizer."""


def laws(tokenizer: AudioTokenizer, *, examples: int = 12, hours: float = 0.01) -> Iterator[Law]:
    """Try the eight laws in turn. examples: how many cases each; hours: how long the recording of the last law is.

    A law that says nothing about this tokenizer (decoding, where there is no decoder) holds, and says why.
    Raises SenoneError for something that is no AudioTokenizer.
    """
    if not isinstance(tokenizer, AudioTokenizer):
        raise SenoneError(f"the laws are about an AudioTokenizer, not a {type(tokenizer).__name__}")
    training = tokenizer.training
    tokenizer.eval()
    try:
        for check in (length, batch, chunks, levels, time, sessions, storage, extremes):
            try:
                yield Law(check.__name__, True, check(Bench(tokenizer, examples, hours)))
            except Inapplicable as reason:
                yield Law(check.__name__, True, f"does not apply: {reason}")
            except Broken as example:
                yield Law(check.__name__, False, str(example))
            except Exception as error:  # the author's code may raise anything: that breaks the law too
                first = (str(error).splitlines() or [""])[0]
                yield Law(check.__name__, False, f"raises {type(error).__name__}: {first}")
    finally:
        tokenizer.train(training)


@dataclass
class Bench:
    """A tokenizer and how thoroughly to try it."""

    tokenizer: AudioTokenizer
    examples: int
    hours: float

    @property
    def longest(self) -> int:
        """Samples of the longest sound to try: twice the declared context and a few frames, or two blocks."""
        context, block = self.tokenizer.context, self.tokenizer.block
        seconds = 2 * sum(value for value in (context.past, context.future) if value <= FAR)
        if block is not None:
            seconds = block + min(context.future, FAR)
        return FRAMES * self.tokenizer.hop + round(seconds * self.tokenizer.sample_rate)

    def sound(self, samples: int, seed: int) -> Audio:
        """A tone and noise, with pauses and jumps in loudness every other frame."""
        random, rate, part = torch.Generator().manual_seed(seed), self.tokenizer.sample_rate, 2 * self.tokenizer.hop
        noise = torch.randn(samples, generator=random)
        tone = torch.sin(torch.arange(samples) * (400 + 1600 * torch.rand(1, generator=random)) / rate)
        gains = torch.tensor([0.0, 0.01, 0.1, 0.5])[torch.randint(4, (samples // part + 1,), generator=random)]
        return Audio(((tone + 0.3 * noise) * gains.repeat_interleave(part)[:samples])[None], rate)

    def try_all(self, law: Callable[..., None], **choices: Any) -> None:
        """Call `law` with what the strategies `choices` give; on failure raise for the smallest case."""
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis.errors import Flaky

        options = settings(
            max_examples=self.examples,
            deadline=None,
            database=None,
            derandomize=True,
            print_blob=False,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),  # type: ignore[arg-type]
        )
        try:
            given(**choices)(options(law))()
        except Flaky:
            raise Broken("the same sound does not give the same result twice") from None

    def samples(self) -> Any:
        """Lengths, with those about the edges of frames more often."""
        from hypothesis import strategies

        hop = self.tokenizer.hop
        edges = strategies.sampled_from([1, max(1, hop - 1), hop, hop + 1, 2 * hop, self.longest])
        return edges | strategies.integers(1, self.longest)

    def seeds(self) -> Any:
        from hypothesis import strategies

        return strategies.integers(0, 2**16)

    def decoder(self) -> None:
        """Stop here if there is none."""
        if not self.tokenizer.decodes:
            raise Inapplicable("it has no decoder")


def length(bench: Bench) -> str:
    """1: a recording of n samples becomes ceil(n / hop) frames, and n samples again."""
    tokenizer = bench.tokenizer

    def law(samples: int, seed: int) -> None:
        sound = bench.sound(samples, seed)
        codes = tokenizer.encode(sound)
        frames = -(-samples // tokenizer.hop)
        if codes.data.shape[2] != frames or codes.samples.tolist() != [samples]:
            raise Broken(f"{samples} samples became {codes.data.shape[2]} frames of {codes.samples.tolist()} samples")
        if tokenizer.decodes:
            (back,) = tokenizer.decode(codes)
            if back.wave.shape != sound.wave.shape or back.rate != sound.rate:
                raise Broken(f"{samples} samples at {sound.rate} Hz came back as {_shape(back)}")

    for samples in (1, 2, tokenizer.hop - 1, tokenizer.hop, tokenizer.hop + 1):
        if samples > 0:
            law(samples, 0)
    bench.try_all(law, samples=bench.samples(), seed=bench.seeds())
    return f"1 to {bench.longest} samples come back to the sample" if tokenizer.decodes else "frames only: no decoder"


def batch(bench: Bench) -> str:
    """2: row i of a ragged batch equals the same recording alone."""
    from hypothesis import strategies

    tokenizer = bench.tokenizer

    def law(rows: list[int], seed: int) -> None:
        sounds = [bench.sound(samples, seed + i) for i, samples in enumerate(rows)]
        together = tokenizer.encode(sounds)
        waves = tokenizer.decode(together) if tokenizer.decodes else None
        for i, sound in enumerate(sounds):
            which = f"row {i} of a batch of {rows} samples"
            alone = tokenizer.encode(sound)
            _same_codes(together[i], alone, f"{which} and the same sound alone")
            if bool(together.data[i, :, alone.data.shape[2] :].any()):
                raise Broken(f"{which} has codes beyond its end")
            if waves:
                _same_sound(waves[i], tokenizer.decode(alone)[0], f"{which}, decoded there and alone,")

    rows = strategies.lists(bench.samples(), min_size=2, max_size=4)
    bench.try_all(law, rows=rows, seed=bench.seeds())
    return f"{bench.examples} ragged batches of 2 to 4"


def chunks(bench: Bench) -> str:
    """3: a stream in any pieces equals the whole."""
    from hypothesis import strategies

    tokenizer, seen = bench.tokenizer, set()

    def law(samples: int, cuts: list[int], seed: int) -> None:
        sound = bench.sound(samples, seed)
        whole = tokenizer.encode(sound)
        cuts = sorted(cut % (samples + 1) for cut in cuts)
        split = f"{samples} samples streamed in pieces cut at {cuts}"
        seen.update(whole.data.flatten().tolist())
        # the vectors before the quantizer too: an untrained one may give the same code for anything
        _same_vectors(tokenizer, sound.wave, cuts, split)
        session = tokenizer.stream()
        _same_codes(_encode(session, _pieces(sound.wave, cuts)), whole, f"{split}, and whole,")
        if tokenizer.decodes:
            hop = tokenizer.hop
            ends = [0, *sorted({cut // hop for cut in cuts}), whole.data.shape[2]]
            parts = [_frames(whole, a, b) for a, b in zip(ends, ends[1:], strict=False)]
            wave = [session.decode(part, last=i == len(parts) - 1).wave for i, part in enumerate(parts)]
            joined = Audio(torch.cat(wave, 1), tokenizer.sample_rate)
            _same_sound(joined, tokenizer.decode(whole)[0], f"{len(ends)} pieces of frames cut at {ends}, and whole,")

    cuts = strategies.lists(strategies.integers(0, bench.longest), max_size=6)
    bench.try_all(law, samples=bench.samples(), cuts=cuts, seed=bench.seeds())
    return f"{bench.examples} splits, {len(seen)} different codes"


def levels(bench: Bench) -> str:
    """4: fewer levels are the first levels of more."""
    tokenizer = bench.tokenizer
    most = len(tokenizer.quantizer.sizes)
    if most == 1:
        raise Inapplicable("it has one level")

    def law(samples: int, seed: int) -> None:
        sound = bench.sound(samples, seed)
        full = tokenizer.encode(sound)
        for k in range(1, most + 1):
            few = tokenizer.encode(sound, levels=k)
            if few.data.shape[1] != k:
                raise Broken(f"levels={k} gives {few.data.shape[1]} levels")
            _same_codes(few, full.levels(k), f"{samples} samples at levels={k} and the first {k} of {most}")
            if tokenizer.decodes and not bool(torch.isfinite(tokenizer.decode(few)[0].wave).all()):
                raise Broken(f"{k} levels decode to values that are not finite")

    bench.try_all(law, samples=bench.samples(), seed=bench.seeds())
    return f"1 to {most} levels"


def time(bench: Bench) -> str:
    """5: codes cut out by seconds decode to what the whole decodes to there, beyond the context from the cut."""
    from hypothesis import strategies

    bench.decoder()
    tokenizer = bench.tokenizer
    context, hop, rate = tokenizer.context, tokenizer.hop, tokenizer.sample_rate
    if max(context.past, context.future) > FAR:
        raise Inapplicable("its context is not bounded")
    if tokenizer.block is not None:
        raise Inapplicable(f"it decodes in blocks of {tokenizer.block:g} s, counted from where the codes begin")
    past, future = round(context.past * rate), round(context.future * rate) + tokenizer.delay
    reach = -(-(past + future) // hop)

    def law(before: int, inside: int, after: int, seed: int) -> None:
        first, last = before, before + reach + inside
        codes = tokenizer.encode(bench.sound((last + after) * hop, seed))
        (piece,) = tokenizer.decode(codes.seconds(first * hop / rate, last * hop / rate))
        (whole,) = tokenizer.decode(codes)
        start, end = first * hop + (past if first else 0), last * hop - (future if after else 0)
        cut = Audio(piece.wave[:, start - first * hop : end - first * hop], rate)
        where = f"frames {first} to {last} of {last + after}, decoded alone, from sample {start} on"
        _same_sound(cut, Audio(whole.wave[:, start:end], rate), where)

    few = strategies.integers(0, FRAMES)
    bench.try_all(law, before=few, inside=strategies.integers(1, FRAMES), after=few, seed=bench.seeds())
    return f"{bench.examples} slices, equal {past} samples after the first frame"


def sessions(bench: Bench) -> str:
    """6: two sessions in turn do not touch; one that was paused, saved and reloaded goes on as if it had not been."""
    from hypothesis import strategies

    tokenizer = bench.tokenizer

    def law(samples: int, size: int, seed: int) -> None:
        size = max(1 + size % samples, -(-samples // 20))  # at most 20 pieces, for time's sake
        waves = [bench.sound(samples, seed + i).wave.split(size, 1) for i in range(2)]
        alone = [_both(tokenizer.stream(), wave) for wave in waves]
        turns = [tokenizer.stream(), tokenizer.stream()]
        mixed = [_Pieces(), _Pieces()]
        kept = None
        for i in range(len(waves[0])):
            for who in range(2):
                mixed[who].add(turns[who], waves[who][i], last=i == len(waves[0]) - 1)
            if i == len(waves[0]) // 2:
                kept = i, turns[0].state
                with tempfile.TemporaryDirectory() as folder:
                    turns[0].save(f"{folder}/session")
                    turns[0] = tokenizer.resume(f"{folder}/session")
        what = f"{samples} samples in pieces of {size}"
        for who in range(2):
            mixed[who].compare(alone[who], f"{what}, with another session in between (and saved half-way),")
        assert kept is not None
        for _ in range(2):
            again, session = _Pieces(), tokenizer.stream(state=kept[1])
            for i in range(kept[0] + 1, len(waves[0])):
                again.add(session, waves[0][i], last=i == len(waves[0]) - 1)
            again.compare(alone[0].after(kept[0]), f"{what}, going on twice from the state half-way,")

    bench.try_all(law, samples=bench.samples(), size=strategies.integers(0, bench.longest), seed=bench.seeds())
    return f"{bench.examples} pairs, each saved and reloaded half-way"


def storage(bench: Bench) -> str:
    """7: saved and loaded, it gives the same codes; its fingerprint is of the weights and the specification."""
    tokenizer, sound = bench.tokenizer, bench.sound(bench.longest, 0)
    before = tokenizer.encode(sound)
    with tempfile.TemporaryDirectory() as folder:
        again = type(tokenizer).from_pretrained(tokenizer.save_pretrained(folder))
        if again.spec != tokenizer.spec:
            raise Broken(f"saved and loaded, the specification {tokenizer.spec} becomes {again.spec}")
        _same_codes(again.encode(sound), before, "the codes before saving and after loading")
        half = type(tokenizer).from_pretrained(tokenizer.save_pretrained(f"{folder}/half", half=True))
        once = half.encode(sound)
        twice = type(tokenizer).from_pretrained(half.save_pretrained(f"{folder}/again", half=True))
        if twice.spec != half.spec:
            raise Broken("saved in half precision for the second time, the fingerprint changes again")
        _same_codes(twice.encode(sound), once, "the codes of a model saved once and twice in half precision")
    names = [name for name, value in tokenizer.state_dict().items() if value.numel()]
    for name in sorted({*names[:1], *names[len(names) // 2 :][:1], *names[-1:]}):
        other = deepcopy(tokenizer)
        value = other.state_dict()[name].view(-1)
        value[0] = ~value[0] if value.dtype == torch.bool else value[0] * 1.5 + 1
        if other.spec.fingerprint == tokenizer.spec.fingerprint:
            raise Broken(f"the fingerprint stays the same when '{name}' changes")
    for name in ("sample_rate", "hop"):
        other = deepcopy(tokenizer)
        setattr(other, name, 2 * getattr(tokenizer, name))
        if other.spec.fingerprint == tokenizer.spec.fingerprint:
            raise Broken(f"the fingerprint stays the same when {name} changes")
    return f"fingerprint {tokenizer.spec.fingerprint}"


def extremes(bench: Bench) -> str:
    """8: silence, one sample, clipping, not-a-number (refused), and a long recording in bounded memory."""
    tokenizer, rate = bench.tokenizer, bench.tokenizer.sample_rate
    loud = bench.sound(bench.longest, 1).wave
    cases = {
        "silence": torch.zeros(1, bench.longest),
        "one sample": torch.full((1, 1), 0.5),
        "clipping": (100 * loud).clamp(-1, 1),
        "samples far beyond full scale": 1000 * loud,
    }
    for name, wave in cases.items():
        codes = tokenizer.encode(Audio(wave, rate))
        _same_codes(tokenizer.encode([Audio(wave, rate)] * 2)[1], codes, f"{name}, alone and twice in a batch,")
        if tokenizer.decodes and not bool(torch.isfinite(tokenizer.decode(codes)[0].wave).all()):
            raise Broken(f"{name} decodes to values that are not finite")
    for name, value in {"NaN": float("nan"), "infinity": float("inf")}.items():
        wave = loud.clone()
        wave[0, -1] = value
        for encode in (lambda x: tokenizer.encode(Audio(x, rate)), tokenizer.stream().encode):
            try:
                encode(wave)
            except AudioError:
                continue
            raise Broken(f"a sample that is {name} is not refused")
    return _long(bench)


def _long(bench: Bench) -> str:
    """Stream seconds of sound; once the context is full, no tensor may stay alive for each."""
    tokenizer, rate = bench.tokenizer, bench.tokenizer.sample_rate
    context = tokenizer.context
    if not tokenizer.causal and max(context.past, context.future) > FAR:
        return "short ones only: its context is not bounded"
    session, sound = tokenizer.stream(), bench.sound(rate, 2)
    seconds = max(4, round(3600 * bench.hours), round(8 * (context.past if context.past <= FAR else 0)))
    if tokenizer.block is not None:  # what is held comes and goes with the blocks: compare after whole ones,
        whole = 6 * ceil(tokenizer.block)  # three at least: codes come a block late, then the past has to fill
        seconds = whole * ceil(seconds / whole)
    alive = 0
    gc.collect()
    gc.freeze()  # count only what is made from here on: that is quick
    try:
        for second in range(seconds):
            codes = session.encode(sound.wave)
            if tokenizer.decodes:
                session.decode(codes)
            if second + 1 == seconds // 2:
                alive = _alive()
        grown = _alive() - alive
    finally:
        gc.unfreeze()
    if grown > 1 << 16:
        raise Broken(f"from {seconds // 2} to {seconds} seconds of one recording, {grown:,} bytes more stay in memory")
    return f"silence, one sample, clipping, NaN refused; {seconds} seconds in bounded memory"


class _Pieces:
    """What a session gave, call by call."""

    def __init__(self) -> None:
        self.codes: list[Tensor] = []
        self.waves: list[Tensor] = []

    def add(self, session: Stream, wave: Tensor, last: bool) -> None:
        codes = session.encode(wave, last)
        self.codes.append(codes.data)
        if session.tokenizer.decodes:
            self.waves.append(session.decode(codes, last).wave)

    def after(self, call: int) -> "_Pieces":
        rest = _Pieces()
        rest.codes, rest.waves = self.codes[call + 1 :], self.waves[call + 1 :]
        return rest

    def compare(self, other: "_Pieces", what: str) -> None:
        for i, (ours, theirs) in enumerate(zip(self.codes, other.codes, strict=True)):
            if not torch.equal(ours, theirs):
                raise Broken(f"{what} gives other codes in piece {i} of {len(self.codes)}")
        for i, (ours, theirs) in enumerate(zip(self.waves, other.waves, strict=True)):
            if _far(ours, theirs):
                raise Broken(f"{what} gives another sound in piece {i} of {len(self.waves)}")


def _both(session: Stream, waves: Any) -> _Pieces:
    pieces = _Pieces()
    for i, wave in enumerate(waves):
        pieces.add(session, wave, last=i == len(waves) - 1)
    return pieces


def _pieces(wave: Tensor, cuts: list[int]) -> list[Tensor]:
    ends = [0, *cuts, wave.shape[1]]
    return [wave[:, a:b] for a, b in zip(ends, ends[1:], strict=False)]


def _encode(session: Stream, pieces: list[Tensor]) -> Codes:
    return concat([session.encode(piece, last=i == len(pieces) - 1) for i, piece in enumerate(pieces)])


def _frames(codes: Codes, first: int, end: int) -> Codes:
    samples = (codes.samples.clamp(max=end * codes.spec.hop) - first * codes.spec.hop).clamp(min=0)
    return Codes(codes.data[:, :, first:end], samples, codes.spec)


def _same_vectors(tokenizer: AudioTokenizer, wave: Tensor, cuts: list[int], what: str) -> None:
    model, like = tokenizer._coder()
    whole, _ = model._vectors(wave[None].to(like), None, True, {})
    state, parts, pieces = None, [], _pieces(wave, cuts)
    for i, piece in enumerate(pieces):
        z, state = model._vectors(piece[None].to(like), state, i == len(pieces) - 1, {})
        if z is not None:
            parts.append(z)
    assert whole is not None
    joined = torch.cat(parts, 2)
    close = 1e-9 if whole.dtype == torch.float64 else 1e-4
    if joined.shape != whole.shape or float((joined - whole).abs().max()) > close * (1 + float(whole.abs().max())):
        raise Broken(f"{what} give other vectors than whole")


def _same_codes(a: Codes, b: Codes, what: str) -> None:
    if a.data.shape != b.data.shape:
        raise Broken(f"{what} differ in shape: {tuple(a.data.shape)} and {tuple(b.data.shape)}")
    wrong = (a.data != b.data).nonzero()
    if len(wrong):
        _, level, frame = wrong[0].tolist()
        raise Broken(f"{what} differ in {len(wrong)} of {a.data.numel()} codes, first at level {level} frame {frame}")


def _same_sound(a: Audio, b: Audio, what: str) -> None:
    if a.wave.shape != b.wave.shape or a.rate != b.rate:
        raise Broken(f"{what} differ in length: {_shape(a)} and {_shape(b)}")
    if _far(a.wave, b.wave):
        wrong = int(((a.wave - b.wave).abs() > CLOSE * _peak(b.wave)).nonzero()[0, 1])
        gap = float((a.wave - b.wave).abs().max())
        raise Broken(f"{what} differ by up to {gap:.2g}, first at sample {wrong} of {a.wave.shape[1]}")


def _far(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or bool(((a - b).abs() > CLOSE * _peak(b)).any())


def _peak(wave: Tensor) -> float:
    return max(1.0, float(wave.abs().max())) if wave.numel() else 1.0


def _shape(audio: Audio) -> str:
    return f"{audio.wave.shape[1]} samples at {audio.rate} Hz"


def _alive() -> int:
    """Bytes of all tensors that Python can reach, but for those frozen."""
    gc.collect()
    found = {id(value): value for value in gc.get_objects() if issubclass(type(value), Tensor)}
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in found.values()}
    return sum(storages.values())
