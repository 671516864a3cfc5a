"""Verbs that turn sound into tokens and back: encode, decode, resynth, stream, swap, info."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from senone.cli.shared import Model, app, bar, examples, load, say
from senone.errors import SenoneError

if TYPE_CHECKING:
    from senone.bitstream import Reader
    from senone.codes import Codes
    from senone.tokenizer import AudioTokenizer

DEFAULT = "spectral-mini"
SEMANTIC = "speechtokenizer-mini"  # whose first level is content
BLOCK = 1.0  # seconds coded at once
Source = Annotated[str, typer.Argument(help="A recording in any format and rate; - for standard input.")]
Sound = Annotated[str, typer.Argument(help="wav, flac, mp3, ogg or opus; - for WAV on standard output.")]
Levels = Annotated[int | None, typer.Option(help="Use the first K levels only: fewer bits.", metavar="K")]
Kbps = Annotated[float | None, typer.Option(help="Use as many levels as fit into B kb/s.", metavar="B")]
Denoise = Annotated[bool, typer.Option("--denoise", help="Take the noise out, with a model that has learnt to.")]


@app.command(
    epilog=examples(
        "senone encode in.wav -o out.sno --kbps 1.2",
        "senone encode talk.mp3 -o talk.sno --levels 2 --entropy",
        "sox in.wav -t wav - | senone encode - -o - > out.sno",
    )
)
def encode(
    source: Source,
    out: Annotated[str, typer.Option("--out", "-o", help="The .sno file to write; - for standard output.")],
    model: Model = DEFAULT,
    levels: Levels = None,
    kbps: Kbps = None,
    entropy: Annotated[bool, typer.Option("--entropy", help="Range code it: 5 to 14 % smaller, slower.")] = False,
    denoise: Denoise = False,
) -> None:
    """Turn a recording into tokens."""
    from senone.bitstream import Writer

    tokenizer = load(model)
    count = _count(tokenizer, levels, kbps)
    with Writer(out, tokenizer.spec, count, entropy) as writer, _progress("encode", source) as advance:
        for codes in _encoded(tokenizer, source, count, denoise):
            writer.write(codes)
            advance(codes)


@app.command(epilog=examples("senone decode in.sno -o out.wav", "senone decode - -o - < in.sno | aplay"))
def decode(
    source: Annotated[str, typer.Argument(help="A .sno file; - for standard input.")],
    out: Annotated[str, typer.Option("--out", "-o", help="wav, flac, mp3, ogg or opus; - for WAV on standard output.")],
    model: Model = DEFAULT,
) -> None:
    """Turn tokens back into sound.

    A damaged file is decoded up to its last whole block; a sentence says what is lost, and the exit status is 2.
    """
    from senone.bitstream import read

    with read(source) as reader:
        tokenizer = load(model)
        reader.accept(tokenizer.spec)
        with _progress("decode") as advance:
            _write(out, tokenizer, _heard(reader, advance))
        _report(reader)


@app.command(
    epilog=examples(
        "senone resynth in.wav out.wav --levels 2",
        "senone resynth noisy.wav clean.flac --denoise --model soundstream-mini",
    )
)
def resynth(
    source: Source,
    out: Sound,
    model: Model = DEFAULT,
    levels: Levels = None,
    kbps: Kbps = None,
    denoise: Denoise = False,
) -> None:
    """Hear a recording as its tokens: encode and decode in one step."""
    tokenizer = load(model)
    count = _count(tokenizer, levels, kbps)
    with _progress("resynth", source) as advance:
        _write(out, tokenizer, _heard(_encoded(tokenizer, source, count, denoise), advance))


@app.command(
    epilog=examples(
        "arecord -f S16_LE -r 16000 | senone stream - - | aplay",
        "senone stream talk.wav out.wav --model xcodec2-mini --window 2",
    )
)
def stream(
    source: Source,
    out: Sound,
    model: Model = DEFAULT,
    levels: Levels = None,
    kbps: Kbps = None,
    denoise: Denoise = False,
    window: Annotated[
        float | None, typer.Option(help="Of a model that hears all: seconds heard at once; approximate.", metavar="S")
    ] = None,
) -> None:
    """Encode and decode as sound comes in, a frame at a time.

    Tokens are those of `encode`. A model that hears all waits for its blocks of many seconds; with --window S it hears
    S seconds at once and half as many on both sides. Tokens are then approximate, and of a file it is told how many
    are equal, and how near the sound comes.
    """
    from senone.audio import Writer

    tokenizer, whole = load(model), None
    if window is not None:
        whole = load(model)
        _narrow(tokenizer, window, model)
    count = _count(tokenizer, levels, kbps)
    player, kept, frame = tokenizer.stream(), [], tokenizer.hop / tokenizer.sample_rate
    said = "" if whole is None else f", and approximate: windows of {window:g} s"
    say(f"senone: sound comes {tokenizer.latency:.3g} s late, computing time aside{said}")
    with _progress("stream", source) as advance, Writer(out, tokenizer.sample_rate) as writer:
        for codes, last in _coded(tokenizer, source, count, denoise, frame):
            writer.write(player.decode(codes, last).wave)
            advance(codes)
            kept += [codes] if whole is not None and source != "-" else []
    if kept and whole is not None:
        share, ratio = _likeness((tokenizer, kept), (whole, list(_encoded(whole, source, count, denoise))))
        say(f"senone: {share:.1%} of the codes are those of `encode`, and SI-SDR to its sound is {ratio:.1f} dB")


@app.command(
    epilog=examples(
        "senone swap said.wav voice.wav -o out.wav",
        "senone swap said.wav voice.wav -o out.wav --from-level 3 -m runs/speechtokenizer/model",
    )
)
def swap(
    source: Annotated[str, typer.Argument(help="The recording to keep the words of; - for standard input.")],
    reference: Annotated[str, typer.Argument(help="The recording to take the voice of; - for standard input.")],
    out: Annotated[str, typer.Option("--out", "-o", help="wav, flac, mp3, ogg or opus; - for WAV on standard output.")],
    model: Model = SEMANTIC,
    from_level: Annotated[int, typer.Option(help="The first level to take from the reference.", metavar="K")] = 2,
) -> None:
    """Say the source in the voice of the reference, with a model whose first level is content: a SpeechTokenizer.

    Levels below K are the source's, the others the reference's, repeated or cut to the source's length.
    """
    from senone import codes

    if source == reference == "-":
        raise SenoneError("source and reference cannot both be standard input")
    tokenizer = load(model)
    count = tokenizer.levels_for()
    if not 2 <= from_level <= count:
        one = f"'{model}' has one level: nothing to swap"
        raise SenoneError(f"--from-level must be 2 to {count}, got {from_level}" if count > 1 else one)
    said, voice = (codes.concat(list(_encoded(tokenizer, name, count, denoise=False))) for name in (source, reference))
    _write(out, tokenizer, [codes.swap(said, voice, from_level)])


@app.command(epilog=examples("senone info spectral-mini", "senone info out.sno"))
def info(name: Annotated[str, typer.Argument(help="A model, as for --model, or a .sno file; - for standard input.")]):
    """Say what a model or a file of tokens is: sizes, rates, latency, fingerprint."""
    file = name == "-" or name.endswith(".sno") or Path(name).is_file()
    for key, value in _file_facts(name) if file else _model_facts(name):
        print(f"{key:<12} {value}")


def _count(tokenizer: "AudioTokenizer", levels: int | None, kbps: float | None) -> int:
    if levels is not None and kbps is not None:
        raise SenoneError("give --levels or --kbps, not both")
    return tokenizer.levels_for(levels, kbps)


def _narrow(tokenizer: "AudioTokenizer", window: float, name: str) -> None:
    """Have a model that hears all hear `window` seconds at once, and half as many before and after."""
    from senone.tokenizer import Context

    if tokenizer.block is None:
        raise SenoneError(f"'{name}' hears no further than it says, and streams as it is: leave --window out")
    if not tokenizer.hop / tokenizer.sample_rate <= window <= tokenizer.block:
        raise SenoneError(f"--window must be from one frame to {tokenizer.block:g} s, got {window:g}")
    tokenizer.block, tokenizer.context = window, Context(window / 2, window / 2)


def _likeness(*sides: tuple["AudioTokenizer", list["Codes"]]) -> tuple[float, float]:
    """Of what a model coded and of the truth, ten minutes at most: equal codes, and the SI-SDR of the sound in dB."""
    from math import inf

    from senone.codes import concat

    both = [(model, concat(codes).seconds(0, 600)) for model, codes in sides]
    (a, x), (b, y) = ((codes, model.decode(codes)[0].wave[0].double()) for model, codes in both)
    part = y * (x @ y / (y @ y).clamp(min=1e-9))
    left = (x - part).square().sum()
    ratio = float(10 * (part.square().sum() / left).log10()) if left > 0 else inf
    return float((a.data == b.data).double().mean()), ratio


def _encoded(tokenizer: "AudioTokenizer", source: str, levels: int, denoise: bool) -> Iterator["Codes"]:
    return (codes for codes, _ in _coded(tokenizer, source, levels, denoise, BLOCK))


def _coded(
    tokenizer: "AudioTokenizer", source: str, levels: int, denoise: bool, seconds: float
) -> Iterator[tuple["Codes", bool]]:
    """The codes of each `seconds` of a recording, as far as they are known by then, and whether it was the last."""
    from senone.audio import blocks

    stream, conditions = tokenizer.stream(levels=levels), {"denoise": True} if denoise else {}
    for wave, last in _ends(blocks(source, tokenizer.sample_rate, seconds)):
        yield stream.encode(wave, last, **conditions), last


def _write(out: str, tokenizer: "AudioTokenizer", pieces: Iterable["Codes"]) -> None:
    """Decode and write. Pieces are cut anew, so that sound does not depend on them to the last bit."""
    from senone.audio import Writer

    parts = _ends(_regrouped(pieces, max(1, round(BLOCK * tokenizer.spec.frame_rate))))
    first = next(parts, None)  # before a file is begun that stays empty
    if first is None:
        return
    stream = tokenizer.stream()
    with Writer(out, tokenizer.sample_rate) as writer:
        while first is not None:
            writer.write(stream.decode(*first).wave)
            first = next(parts, None)


def _regrouped(pieces: Iterable["Codes"], frames: int) -> Iterator["Codes"]:
    """The same codes, `frames` at once."""
    from senone.codes import concat

    held: list[Codes] = []
    for piece in pieces:
        *whole, last = _cut(concat([*held, piece]), frames)
        yield from whole
        held = [last]
    yield from held


def _cut(codes: "Codes", frames: int) -> Iterator["Codes"]:
    """Pieces of `frames`, and what is left."""
    from senone.codes import Codes

    for first in range(0, max(1, codes.data.shape[2]), frames):
        data = codes.data[:, :, first : first + frames]
        samples = (codes.samples - first * codes.spec.hop).clamp(max=frames * codes.spec.hop)
        yield Codes(data, samples, codes.spec)


def _heard(pieces: Iterable["Codes"], advance: Callable[["Codes"], None]) -> Iterator["Codes"]:
    for codes in pieces:
        yield codes
        advance(codes)


def _ends(items: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Each item, and whether it is the last."""
    rest = iter(items)
    for held in rest:
        for item in rest:
            yield held, False
            held = item
        yield held, True


def _report(reader: "Reader") -> None:
    if reader.lost:
        raise SenoneError(reader.lost)


def _model_facts(name: str) -> Iterator[tuple[str, Any]]:
    tokenizer = load(name)
    spec = tokenizer.spec
    yield "model", f"{name} ({type(tokenizer).__name__})"
    yield "parameters", f"{sum(weight.numel() for weight in tokenizer.parameters()):,}"
    yield from _spec_facts(spec)
    for level in range(1, len(spec.sizes) + 1):
        rate = type(spec)(spec.sample_rate, spec.hop, spec.sizes[:level], "").bitrate
        yield f"--levels {level}", f"{rate / 1000:g} kb/s"
    end = "" if tokenizer.decodes else "; no decoder"
    yield "latency", f"{1000 * tokenizer.latency:g} ms, computing time aside{end}"


def _file_facts(name: str) -> Iterator[tuple[str, Any]]:
    from senone.bitstream import read

    with read(name) as reader:
        for _ in reader:
            pass
        seconds = reader.samples / reader.spec.sample_rate
        yield "file", reader.path
        yield from _spec_facts(reader.spec)
        kind = "range coded" if reader.entropy else "packed"
        yield "stored", f"{reader.levels} of {len(reader.spec.sizes)} levels, {kind}, {reader.blocks} blocks"
        yield "length", f"{reader.samples} samples, {seconds:.2f} s"
        yield "size", f"{reader.bytes} bytes, {reader.bytes / 125 / max(seconds, 1e-9):.3g} kb/s"
        _report(reader)


def _spec_facts(spec: Any) -> Iterator[tuple[str, Any]]:
    yield "sample rate", f"{spec.sample_rate} Hz"
    yield "frames", f"{float(spec.frame_rate):g} a second, of {spec.hop} samples"
    yield "sizes", " ".join(map(str, spec.sizes))
    yield "fingerprint", spec.fingerprint


@contextmanager
def _progress(verb: str, source: str | None = None) -> Iterator[Callable[["Codes"], None]]:
    """A bar that is moved by codes."""
    from senone.audio import duration

    with bar(verb, duration(source) if source else None) as advance:
        yield lambda codes: advance(int(codes.samples[0]) / codes.spec.sample_rate)
