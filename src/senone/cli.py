"""The command line. Every verb imports what it needs inside, so that `senone --help` answers at once."""

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from senone import __version__
from senone.errors import SenoneError

if TYPE_CHECKING:
    from senone.bitstream import Reader
    from senone.codes import Codes
    from senone.tokenizer import AudioTokenizer

DEFAULT, RECOGNISER = "spectral-mini", "ctc-mini"
BLOCK = 1.0  # seconds coded at once


def _examples(*lines: str) -> str:
    return "\n\n".join(("Examples:", *(f"  [bold]{line}[/]" for line in lines)))


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
Model = Annotated[str, typer.Option("--model", "-m", help="A bundled name, a directory, org/repo, or file.py:Class.")]
Levels = Annotated[int | None, typer.Option(help="Use the first K levels only: fewer bits.", metavar="K")]
Kbps = Annotated[float | None, typer.Option(help="Use as many levels as fit into B kb/s.", metavar="B")]
Denoise = Annotated[bool, typer.Option("--denoise", help="Take the noise out, with a model that has learnt to.")]


def main() -> None:
    """Run the command line: a SenoneError is one sentence and status 2, Ctrl-C is 130, a closed pipe is quiet."""
    warnings.showwarning = lambda message, *_, **__: _say(f"senone: {message}")
    code: Any = 0
    try:
        app(prog_name="senone")
    except SystemExit as done:
        code = done.code
    except SenoneError as error:
        _say(f"senone: {' '.join(str(error).split())}")
        code = 2
    except OSError as error:  # of `print`; whoever else reads and writes names the file
        _say(f"senone: {error}")
        code = 2
    try:
        sys.__stdout__.flush()  # type: ignore[union-attr]
    except OSError as error:
        # nobody takes what is left: keep the interpreter from trying again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not code and not isinstance(error, BrokenPipeError):
            _say(f"senone: cannot write standard output: {error.strerror}")
            code = 2
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _senone(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Discrete units of speech: encode, decode, measure and train speech tokenizers.

    `-` is standard input or output. Errors are one sentence and exit status 2.
    """
    if version:
        print(f"senone {__version__}")
        raise typer.Exit


@app.command(
    epilog=_examples(
        "senone encode in.wav -o out.sno --kbps 1.2",
        "senone encode talk.mp3 -o talk.sno --levels 2 --entropy",
        "sox in.wav -t wav - | senone encode - -o - > out.sno",
    )
)
def encode(
    source: Annotated[str, typer.Argument(help="A recording in any format and rate; - for standard input.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The .sno file to write; - for standard output.")],
    model: Model = DEFAULT,
    levels: Levels = None,
    kbps: Kbps = None,
    entropy: Annotated[bool, typer.Option("--entropy", help="Range code it: 5 to 14 % smaller, slower.")] = False,
    denoise: Denoise = False,
) -> None:
    """Turn a recording into tokens."""
    from senone.bitstream import Writer

    tokenizer = _load(model)
    count = _count(tokenizer, levels, kbps)
    with Writer(out, tokenizer.spec, count, entropy) as writer, _progress("encode", source) as advance:
        for codes in _encoded(tokenizer, source, count, denoise):
            writer.write(codes)
            advance(codes)


@app.command(epilog=_examples("senone decode in.sno -o out.wav", "senone decode - -o - < in.sno | aplay"))
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
        tokenizer = _load(model)
        reader.accept(tokenizer.spec)
        with _progress("decode") as advance:
            _write(out, tokenizer, _heard(reader, advance))
        _report(reader)


@app.command(
    epilog=_examples(
        "senone resynth in.wav out.wav --levels 2",
        "senone resynth noisy.wav clean.flac --denoise --model soundstream-mini",
    )
)
def resynth(
    source: Annotated[str, typer.Argument(help="A recording in any format and rate; - for standard input.")],
    out: Annotated[str, typer.Argument(help="wav, flac, mp3, ogg or opus; - for WAV on standard output.")],
    model: Model = DEFAULT,
    levels: Levels = None,
    kbps: Kbps = None,
    denoise: Denoise = False,
) -> None:
    """Hear a recording as its tokens: encode and decode in one step."""
    tokenizer = _load(model)
    count = _count(tokenizer, levels, kbps)
    with _progress("resynth", source) as advance:
        _write(out, tokenizer, _heard(_encoded(tokenizer, source, count, denoise), advance))


@app.command(epilog=_examples("senone info spectral-mini", "senone info out.sno"))
def info(name: Annotated[str, typer.Argument(help="A model, as for --model, or a .sno file; - for standard input.")]):
    """Say what a model or a file of tokens is: sizes, rates, latency, fingerprint."""
    file = name == "-" or name.endswith(".sno") or Path(name).is_file()
    for key, value in _file_facts(name) if file else _model_facts(name):
        print(f"{key:<12} {value}")


@app.command(epilog=_examples("senone check spectral-mini", "senone check mycodec.py:MyCodec"))
def check(
    name: Annotated[str, typer.Argument(help="A bundled name, a directory, org/repo, or file.py:Class.")],
    hours: Annotated[float, typer.Option(help="Length of the long recording of the last law.", metavar="H")] = 0.01,
) -> None:
    """Try the laws that every tokenizer keeps; exits with 1 if one breaks, and prints the counter-example."""
    from senone import hub
    from senone.testing import laws

    broken = 0
    for law in laws(hub.load(name), hours=hours):
        print(f"{'ok    ' if law.ok else 'BROKEN'} {law.name:<10} {' '.join(law.detail.split())}", flush=True)
        broken += not law.ok
    raise typer.Exit(1 if broken else 0)


@app.command(
    epilog=_examples(
        "senone train soundstream data=clips/ recipe=mini",
        "senone train spectral data=train.jsonl recipe=mini steps=1000 model.levels=4 --out runs/four",
    )
)
def train(
    system: Annotated[str, typer.Argument(help="soundstream, spectral, or a codec of your own as file.py:Class.")],
    settings: Annotated[list[str], typer.Argument(help="data=DIR_OR_MANIFEST recipe=NAME_OR_FILE, any key=value.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to train in; without it runs/SYSTEM.")] = None,
) -> None:
    """Train a system by a recipe. The same call again goes on where it stopped."""
    from senone.train import run

    print(run(system, settings, out or Path("runs") / Path(system).stem))


@app.command(epilog=_examples("senone manifest clips/ -o train.jsonl"))
def manifest(
    folder: Annotated[Path, typer.Argument(help="The folder to search for audio.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSONL file to write.")],
) -> None:
    """List the recordings below a folder as JSONL, one cut a line, as lhotse writes them."""
    from senone.data.manifest import build, write

    count = write(out, build(folder, lambda sentence: _say(f"senone: {sentence}; it is left out")))
    _say(f"{count} recordings in {out}")


@app.command(
    "verify-checkpoint",
    epilog=_examples(
        "senone verify-checkpoint hubert_base_ls960.pt --fixture fairseq/examples/hubert/tests",
        "senone verify-checkpoint hubert-large-ll60k/ --fixture fairseq/examples/hubert/tests",
    ),
)
def verify_checkpoint(
    path: Annotated[Path, typer.Argument(help="HuBERT: a .pt of fairseq, s3prl or torchaudio; a directory.")],
    fixture: Annotated[Path, typer.Option(help="examples/hubert/tests of the fairseq repository.", metavar="DIR")],
    heads: Annotated[int | None, typer.Option(help="For a file that does not say it itself.", metavar="N")] = None,
) -> None:
    """Compare a checkpoint's features with those its authors computed; exits with 1 if they differ."""
    from senone.interop.verify import TOLERANCE, load, verify

    model = load(path, heads)
    config, found = model.config, verify(model, fixture)
    count = sum(weight.numel() for weight in model.parameters())
    print(f"model        {type(model).__name__}, {count:,} parameters, {config.layers} layers, {config.heads} heads")
    print(f"compared     layer {found.layer} with {found.features.name}: {found.frames[0]} of {found.frames[1]} frames")
    print(f"difference   at most {found.largest:.2e}, {found.mean:.2e} on average; relative {found.relative:.2e}")
    if found.units is not None:
        print(f"units        {found.units[0]} frames get the stated unit, {found.units[1]} by the real features")
    print("ok" if found.ok else f"BROKEN: the relative difference may be {TOLERANCE:g}, frames have to be as many")
    raise typer.Exit(0 if found.ok else 1)


@app.command(
    epilog=_examples(
        "senone transcribe talk.mp3",
        "senone transcribe *.wav --json > said.jsonl",
        "senone transcribe film.wav --srt > film.srt",
        "senone transcribe talk.wav --lm 4-gram.arpa.gz --beam 200",
    )
)
def transcribe(
    files: Annotated[list[str], typer.Argument(help="Recordings of any format and length; - for standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A bundled name, a directory, or org/repo.")] = RECOGNISER,
    words: Annotated[bool, typer.Option("--words", help="A line a word: start, end (seconds), word.")] = False,
    srt: Annotated[bool, typer.Option("--srt", help="Subtitles, of one recording.")] = False,
    json: Annotated[bool, typer.Option("--json", help="A line a file: an object of file, text, words.")] = False,
    lm: Annotated[str | None, typer.Option(help="An n-gram model; without it the one beside the model.")] = None,
    lexicon: Annotated[str | None, typer.Option(help="The words that may be heard, one a line.")] = None,
    beam: Annotated[int | None, typer.Option(help="Hypotheses to keep.", min=1, metavar="N")] = None,
    lm_weight: Annotated[float | None, typer.Option(help="How much the n-gram model counts.")] = None,
    word_score: Annotated[float | None, typer.Option(help="What a word is worth.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="No language model: letter by letter.")] = False,
) -> None:
    """Write down what is said. A file that cannot be read is told of, the others go on, and the exit status is 2."""
    from senone.audio import duration
    from senone.ctc import transcribe as ctc

    if words + srt + json > 1 or (srt and len(files) > 1):
        raise SenoneError("--words, --srt and --json exclude one another, and --srt is for one recording")
    if greedy and any(value is not None for value in (lm, lexicon, beam, lm_weight, word_score)):
        raise SenoneError("--greedy needs no language model, no lexicon and no beam")
    net = ctc.load(model)
    decode = ctc.decoder(net, None if greedy else lm or ctc.beside(model), lexicon, beam, lm_weight, word_score)
    failed = False
    for file in files:
        try:
            with _bar("transcribe", duration(file)) as advance:
                found = list(ctc.transcribe(net, file, decode, advance))
        except SenoneError as error:
            _say(f"senone: {' '.join(str(error).split())}")
            failed = True
            continue
        style = ctc.as_json if json else ctc.as_srt if srt else ctc.as_table if words else ctc.as_text
        name = f"{file}\t" if len(files) > 1 and not json else ""
        for line in style(file, found):
            print(name + line, flush=True)
    raise typer.Exit(2 if failed else 0)


@app.command(epilog=_examples('senone align talk.wav "what was said"', "senone align talk.wav said.txt --json"))
def align(
    audio: Annotated[str, typer.Argument(help="A recording; - for standard input.")],
    text: Annotated[str, typer.Argument(help="What is said in it, or a file that holds that.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A bundled name, a directory, or org/repo.")] = RECOGNISER,
    json: Annotated[bool, typer.Option("--json", help="One object: file, text, words.")] = False,
) -> None:
    """Say when each word of a known text is spoken: start, end (seconds), word."""
    from senone.ctc import transcribe as ctc

    said, source = ctc.read_text(text)
    found = ctc.aligned(ctc.load(model), audio, said, source)
    print("\n".join((ctc.as_json if json else ctc.as_table)(audio, found)))


@app.command(
    epilog=_examples(
        "senone kmeans train.tsv --encoder mfcc --clusters 100 -o mfcc-100",
        "senone kmeans train.tsv --encoder runs/hubert/model --layer 6 --clusters 500 --hours 10 -o hubert-500",
    )
)
def kmeans(
    data: Annotated[str, typer.Argument(help="A folder, a .tsv or a .jsonl of recordings; several, with commas.")],
    encoder: Annotated[str, typer.Option("--encoder", "-e", help="mfcc, or a model as for --model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory of the new tokenizer.")],
    layer: Annotated[int | None, typer.Option(help="Of the encoder; without it the last.", metavar="L")] = None,
    clusters: Annotated[int, typer.Option(help="How many units.", metavar="K")] = 100,
    hours: Annotated[float | None, typer.Option(help="Learn from so much of it, at random.", metavar="H")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other clusters.", metavar="S")] = 0,
) -> None:
    """Learn units: cluster what an encoder says of speech, into a tokenizer."""
    from senone import hub
    from senone.data.manifest import read
    from senone.data.units import learn
    from senone.models.units import MFCC

    cuts = read(data)
    model = MFCC() if encoder == "mfcc" else hub.load(encoder)
    with _hearing("kmeans", min(sum(cut.seconds for cut in cuts), 3600 * (hours or float("inf")))) as heard:
        units, fitted = learn(cuts, model, clusters, layer, hours=hours, seed=seed, heard=heard)
    units.save_pretrained(out)
    _say(f"{clusters} units in {out}: inertia {fitted.inertia:.4g} over {fitted.frames} frames, {fitted.steps} batches")


@app.command(
    epilog=_examples(
        "senone units train.tsv --model mfcc-100 -o labels.safetensors",
        "senone units talk.wav --model hubert-500 -o -",
    )
)
def units(
    sources: Annotated[list[str], typer.Argument(help="Recordings, folders, .tsv or .jsonl lists of recordings.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A tokenizer of units, as `senone kmeans` makes them.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The file of labels; - prints a line for each recording.")],
) -> None:
    """Write the units of recordings: labels to train on. Stopped and called again, it goes on."""
    from senone.data.labels import Provenance, Writer
    from senone.data.units import label, listed, write

    tokenizer: Any = _load(model)
    provenance, cuts = Provenance.of(tokenizer, " ".join(sources)), listed(sources)
    if out == "-":
        for cut in cuts:
            print(*label(cut, tokenizer).tolist(), flush=True)
        return
    with Writer(out, provenance) as writer:
        with _hearing("units", sum(cut.seconds for cut in cuts)) as heard:
            write(cuts, tokenizer, writer, heard)
        count = len(writer.done)
    _say(f"labels of {count} recordings in {out}")


def _load(name: str) -> "AudioTokenizer":
    from senone import hub
    from senone.tokenizer import AudioTokenizer

    tokenizer = hub.load(name)
    if not isinstance(tokenizer, AudioTokenizer):
        raise SenoneError(f"'{name}' is no tokenizer but a {type(tokenizer).__name__}")
    return tokenizer


def _count(tokenizer: "AudioTokenizer", levels: int | None, kbps: float | None) -> int:
    if levels is not None and kbps is not None:
        raise SenoneError("give --levels or --kbps, not both")
    return tokenizer.levels_for(levels, kbps)


def _encoded(tokenizer: "AudioTokenizer", source: str, levels: int, denoise: bool) -> Iterator["Codes"]:
    from senone.audio import blocks

    stream, conditions = tokenizer.stream(levels=levels), {"denoise": True} if denoise else {}
    for wave, last in _ends(blocks(source, tokenizer.sample_rate, BLOCK)):
        yield stream.encode(wave, last, **conditions)


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
        held = [concat([*held, piece])]
        while held[0].data.shape[2] > frames:
            head, tail = _cut(held[0], frames)
            yield head
            held = [tail]
    yield from held


def _cut(codes: "Codes", frames: int) -> tuple["Codes", "Codes"]:
    from senone.codes import Codes

    samples = codes.samples.new_tensor([frames * codes.spec.hop])
    head = Codes(codes.data[:, :, :frames], samples, codes.spec)
    return head, Codes(codes.data[:, :, frames:], codes.samples - samples, codes.spec)


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
    tokenizer = _load(name)
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

    with _bar(verb, duration(source) if source else None) as advance:
        yield lambda codes: advance(int(codes.samples[0]) / codes.spec.sample_rate)


@contextmanager
def _hearing(verb: str, seconds: float) -> Iterator[Callable[[Any, str | None], None]]:
    """A bar that is moved by cuts; what is left out is told at once."""
    with _bar(verb, seconds) as advance:

        def heard(cut: Any, skipped: str | None) -> None:
            if skipped is not None:
                _say(f"senone: {skipped}; it is left out")
            advance(cut.seconds)

        yield heard


@contextmanager
def _bar(verb: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """On a terminal, a bar on standard error; elsewhere nothing. It is moved by seconds of sound."""
    if not sys.stderr.isatty():
        yield lambda seconds: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn(verb), BarColumn(), TextColumn("{task.completed:.0f} s of sound"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=total)
        yield lambda seconds: bar.advance(task, seconds)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
