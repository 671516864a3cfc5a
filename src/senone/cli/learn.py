"""Verbs around learning: check, train, manifest, kmeans, units, verify-checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from senone.cli.shared import app, bar, examples, load, say


@app.command(epilog=examples("senone check spectral-mini", "senone check mycodec.py:MyCodec", "senone check hf:DIR"))
def check(
    name: Annotated[str, typer.Argument(help="A bundled name, a directory, org/repo, hf:DIR, or file.py:Class.")],
    hours: Annotated[float, typer.Option(help="Length of the long recording of the last law.", metavar="H")] = 0.01,
) -> None:
    """Try the laws that every tokenizer keeps; exits with 1 if one breaks, and prints the counter-example.

    Of a tokenizer of transformers (hf:DIR, hf:org/repo) it also says which laws the model keeps by itself.
    """
    from senone import hub
    from senone.testing import laws

    broken, tokenizer = 0, hub.load(name)
    for law in laws(tokenizer, hours=hours):
        print(f"{'ok    ' if law.ok else 'BROKEN'} {law.name:<10} {' '.join(law.detail.split())}", flush=True)
        broken += not law.ok
    if hasattr(tokenizer, "bare"):  # one of others: what of this is owed to the contract around it
        for law, share, detail in tokenizer.bare():
            print(f"{'keeps ' if share == 1 else 'breaks'} {law:<10} {detail}, in the bare model", flush=True)
    raise typer.Exit(1 if broken else 0)


@app.command(
    epilog=examples(
        "senone train soundstream data=clips/ recipe=mini",
        "senone train soundstream data=clips/ noise=noise/ recipe=denoise init=soundstream-mini --out runs/flag",
        "senone train spectral data=train.jsonl recipe=mini steps=1000 model.levels=4 --out runs/four",
        "senone train hubert data=train.tsv labels=mfcc.labels recipe=mini --out runs/hubert",
        "senone train speechtokenizer data=train.tsv recipe=mini --out runs/st",
        "senone train ctc encoder=runs/hubert/model data=train.tsv dev=train.tsv recipe=mini --out runs/ctc",
    )
)
def train(
    system: Annotated[
        str,
        typer.Argument(
            help="soundstream, spectral, speechtokenizer, xcodec2, hubert, wav2vec2, ctc, or file.py:Class."
        ),
    ],
    settings: Annotated[list[str], typer.Argument(help="data=DIR_OR_MANIFEST recipe=NAME_OR_FILE, any key=value.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to train in; without it runs/SYSTEM.")] = None,
) -> None:
    """Train a system by a recipe. The same call again goes on where it stopped."""
    from senone.train import run

    print(run(system, settings, out or Path("runs") / Path(system).stem))


@app.command(epilog=examples("senone manifest clips/ -o train.jsonl"))
def manifest(
    folder: Annotated[Path, typer.Argument(help="The folder to search for audio.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSONL file to write.")],
) -> None:
    """List the recordings below a folder as JSONL, one cut a line, as lhotse writes them."""
    from senone.data.manifest import build, write

    count = write(out, build(folder, lambda sentence: say(f"senone: {sentence}; it is left out")))
    say(f"{count} recordings in {out}")


@app.command(
    epilog=examples(
        "senone kmeans train.tsv --encoder mfcc --clusters 100 -o mfcc-100",
        "senone kmeans train.tsv --encoder mfcc --clusters 100 --rounds 3 -o mfcc-100-3",
        "senone kmeans train.tsv --encoder runs/hubert/model --layer 6 --clusters 500 --hours 10 -o hubert-500",
    )
)
def kmeans(
    data: Annotated[str, typer.Argument(help="A folder, a .tsv or a .jsonl of recordings; several, with commas.")],
    encoder: Annotated[str, typer.Option("--encoder", "-e", help="mfcc, or a model as for --model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory of the new tokenizer.")],
    layer: Annotated[int | None, typer.Option(help="Of the encoder; without it the last.", metavar="L")] = None,
    clusters: Annotated[int, typer.Option(help="How many units.", metavar="K")] = 100,
    rounds: Annotated[
        int, typer.Option(help="Find, so many times, in which directions clusters differ, and cluster there.", min=0)
    ] = 0,
    hours: Annotated[float | None, typer.Option(help="Learn from so much of it, at random.", metavar="H")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other clusters.", metavar="S")] = 0,
) -> None:
    """Learn units: cluster what an encoder says of speech, into a tokenizer.

    `--rounds 3` makes much of MFCC: what they say is put together from a few frames, standardised, and projected to
    where the clusters of the round before differ (linear discriminant analysis; no labels).
    """
    from senone import hub
    from senone.data.manifest import read
    from senone.data.units import learn
    from senone.models.units import MFCC

    cuts = read(data)
    model = MFCC() if encoder == "mfcc" else hub.load(encoder)
    seconds = min(sum(cut.seconds for cut in cuts), 3600 * (hours or float("inf")))
    with _hearing("kmeans", (1 + 2 * rounds) * seconds) as heard:
        units, fitted = learn(cuts, model, clusters, layer, rounds=rounds, hours=hours, seed=seed, heard=heard)
    units.save_pretrained(out)
    say(f"{clusters} units in {out}: inertia {fitted.inertia:.4g} over {fitted.frames} frames, {fitted.steps} batches")


@app.command(
    epilog=examples(
        "senone units train.tsv --model mfcc-100 -o labels.safetensors",
        "senone units talk.wav --model hubert-500 -o -",
    )
)
def units(
    sources: Annotated[list[str], typer.Argument(help="Recordings, folders, .tsv or .jsonl lists of recordings.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A tokenizer of units, as `senone kmeans` makes them.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The file of labels; - prints a line for each recording.")],
) -> None:
    """Write the units of recordings: labels to train on. Stopped and called again, it goes on.

    A file that cannot be read is told of, the others go on, and the exit status is 2.
    """
    from senone.data.labels import Provenance, Writer
    from senone.data.units import label, listed, write

    tokenizer: Any = load(model)
    provenance, cuts = Provenance.of(tokenizer, " ".join(sources)), listed(sources)
    if out == "-":
        for cut in cuts:
            print(*label(cut, tokenizer).tolist(), flush=True)
        return
    with Writer(out, provenance) as writer:
        with _hearing("units", sum(cut.seconds for cut in cuts)) as heard:
            write(cuts, tokenizer, writer, heard)
        count = len(writer.done)
    say(f"labels of {count} recordings in {out}")
    raise typer.Exit(2 if count < len(cuts) else 0)


@app.command(
    "verify-checkpoint",
    epilog=examples(
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


@contextmanager
def _hearing(verb: str, seconds: float) -> Iterator[Callable[[Any, str | None], None]]:
    """A bar that is moved by cuts; what is left out is told at once."""
    with bar(verb, seconds) as advance:

        def heard(cut: Any, skipped: str | None) -> None:
            if skipped is not None:
                say(f"senone: {skipped}; it is left out")
            advance(cut.seconds)

        yield heard
