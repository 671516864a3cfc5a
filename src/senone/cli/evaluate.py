"""Verbs that measure: senone eval codec, pairs, ..."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from senone.cli.shared import app, bar, examples, say
from senone.errors import SenoneError

if TYPE_CHECKING:
    from senone.eval.bench import Plan
    from senone.eval.corpus import Corpus

evaluate = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Measure tokenizers, units, anyone's audio.")
app.add_typer(evaluate, name="eval")

Out = Annotated[Path, typer.Option("--out", "-o", help="The run's folder; the same call again goes on there.")]
Preset = Annotated[str, typer.Option(help="Metrics and protocol: table1, quick, soundstream, offline.")]
Metrics = Annotated[
    str | None, typer.Option(help="Names separated by commas; +x and -y change the preset.", metavar="LIST")
]
Limit = Annotated[int | None, typer.Option(help="The first N utterances only, speakers in turn.", min=1, metavar="N")]
Heavy = Annotated[int | None, typer.Option(help="Slow metrics on the first N only.", min=1, metavar="N")]
Text = Annotated[Path | None, typer.Option(help="What is said: a file of lines `name words`.", metavar="FILE")]
Align = Annotated[
    str | None, typer.Option(help="Take delay out: none, known (of the codec), estimate. Without: as the preset says.")
]
Against = Annotated[str | None, typer.Option(help="Compare all with this one (else all with all).", metavar="NAME")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Processes; 0: this one.", min=0, metavar="N")]
Retry = Annotated[bool, typer.Option("--retry-errors", help="Try again what failed or crashed.")]
Page = Annotated[bool, typer.Option("--report/--no-report", help="Write RUN/report.html.")]


@evaluate.command(
    epilog=examples(
        "senone eval codec spectral-mini opus:6k opus:12k --data clips/ -o runs/first",
        "senone eval codec soundstream-mini --levels 1,2,4,8 --data test.tsv --metrics +visqol --jobs 2 -o runs/levels",
        "senone eval codec mycodec.py:MyCodec hf:DIR --data LibriSpeech/test-clean --preset table1 -o runs/table1",
        "senone eval codec 'cmd:enc {in} {tok} && dec {tok} {out}' identity --data clips/ -o runs/theirs",
    )
)
def codec(
    tokenizers: Annotated[
        list[str],
        typer.Argument(
            help="A model (NAME@K: its first K levels), hf:DIR, file.py:Class, opus:12k, amrwb:12.65, codec2:3200, "
            "speex:8, lyra:6, pcm:8k, identity, files:DIR, cmd:'... {in} ... {out}'."
        ),
    ],
    data: Annotated[str, typer.Option(help="A folder, .tsv or .jsonl of recordings; LibriSpeech as it comes.")],
    out: Out,
    preset: Preset = "quick",
    metrics: Metrics = None,
    levels: Annotated[str | None, typer.Option(help="Tokenizers at several levels: 1,2,4,8.", metavar="LIST")] = None,
    limit: Limit = None,
    heavy: Heavy = None,
    split: Annotated[str | None, typer.Option(help="Only what the list says is of this split.")] = None,
    text: Text = None,
    align: Align = None,
    against: Against = None,
    jobs: Jobs = 1,
    ray: Annotated[str | None, typer.Option(help="A Ray cluster's address, or local.", metavar="ADDRESS")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    retry_errors: Retry = False,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Also time each, alone.")] = True,
    report: Page = True,
) -> None:
    """Measure tokenizers and codecs side by side, on your recordings.

    Scores are kept one by one: a run that was stopped goes on, one with more systems measures these. What cannot be
    measured is n/a with its reason, and in no mean; a mean of less than 99 % of the utterances is not shown. A file
    that cannot be read is told of, the others go on, and the exit status is 2.
    """
    from senone.eval import bench, corpus, systems

    counts = _numbers(levels)
    names = [name for one in tokenizers for name in (systems.at_several(one, counts) if counts else [one])]
    chosen = bench.choose(preset, metrics)
    plan = bench.Plan(tuple(dict.fromkeys(names)), chosen, bench.alignment(align, preset), heavy, seed, against)
    _measure(plan, corpus.read(data, split, text), limit, out, report, jobs, ray, retry_errors, speed, preset)


@evaluate.command(
    epilog=examples(
        "senone eval pairs --ref clips/ --deg decoded/ -o runs/pairs",
        "senone eval pairs --ref clips/ --deg theirs/ --deg ours/ --metrics stoi,pesq_wb,visqol -o runs/pairs",
    )
)
def pairs(
    ref: Annotated[str, typer.Option(help="The originals: a folder, .tsv or .jsonl.")],
    deg: Annotated[list[Path], typer.Option(help="A folder of decoded files with the same names; may be repeated.")],
    out: Out,
    preset: Preset = "quick",
    metrics: Metrics = None,
    limit: Limit = None,
    heavy: Heavy = None,
    text: Text = None,
    align: Align = None,
    jobs: Jobs = 1,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    retry_errors: Retry = False,
    report: Page = True,
) -> None:
    """Score anyone's audio: every original beside the decoded file of its name.

    Both sides must have the same names, whatever the suffixes; one that is missing is told of before anything is done.
    """
    from senone.eval import bench, corpus, systems

    found = corpus.read(ref, text=text)
    for folder in deg:
        systems.same_names(folder, [utterance.id for utterance in found.utterances], more=bool(found.unreadable))
    names = tuple(dict.fromkeys(f"files:{folder}" for folder in deg))
    plan = bench.Plan(names, bench.choose(preset, metrics), bench.alignment(align, preset), heavy, seed)
    _measure(plan, found, limit, out, report, jobs, None, retry_errors, False, preset)


@evaluate.command(
    epilog=examples(
        "senone eval report runs/first",
        "senone eval report runs/first --by stoi --phones alignments.tsv.gz --size 8",
    )
)
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that a measurement wrote.")],
    by: Annotated[
        str | None, typer.Option(help="The metric that says which clips are best and worst.", metavar="METRIC")
    ] = None,
    phones: Annotated[
        Path | None, typer.Option(help="Phones and their times: .tsv(.gz), .ctm, a folder of TextGrids.")
    ] = None,
    size: Annotated[float, typer.Option(help="Megabytes, at most, of the whole page.", min=0.5, metavar="MB")] = 25,
) -> None:
    """Write RUN/report.html: the tables, plots and clips of a run in one file, which opens from disk."""
    from senone.eval import alignments
    from senone.eval import report as page
    from senone.eval.rows import Run

    known = alignments.read(phones) if phones else None
    print(page.write(Run.open(folder), by=by, phones=known, limit=int(size * 1e6)))


@evaluate.command(
    epilog=examples(
        "senone eval listen runs/first --clips 12 --anchor 3500",
        "senone eval listen runs/first --system spectral-mini --system opus:6k",
        "senone eval listen runs/first --ratings ratings/",
    )
)
def listen(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that a measurement wrote.")],
    system: Annotated[list[str] | None, typer.Option(help="What to compare; without it, all.", metavar="NAME")] = None,
    clips: Annotated[int, typer.Option(help="How many clips to rate.", min=1, metavar="N")] = 10,
    anchor: Annotated[
        list[float] | None, typer.Option(help="Also the reference without what is above so many Hz.", metavar="HZ")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of clips, and of the intervals.")] = 0,
    ratings: Annotated[
        list[Path] | None, typer.Option(help="What raters saved: files or folders; prints means.", metavar="PATH")
    ] = None,
) -> None:
    """Make a listening test after MUSHRA, RUN/listen.html, or evaluate what its raters saved.

    Systems and the hidden reference are rated from 0 to 100, under numbers. RUN/listen.key.json knows which is which:
    keep it to yourself. Raters who miss the reference, or praise everything, are left out, as SoundStream's were.
    """
    from senone.eval import listen as test
    from senone.eval.rows import Run

    run = Run.open(folder)
    if not ratings:
        print(test.write(run, systems=system or (), count=clips, anchors=anchor or (), seed=seed))
        return
    result = test.score(run, ratings, seed)
    for one in result.systems:
        between = "" if one.low is None else f"  [{one.low:.1f}, {one.high:.1f}]"
        print(f"{one.mean:5.1f}{between}  {one.system}  ({one.ratings} ratings by {one.raters})")
    for rater, why in result.dropped.items():
        say(f"senone: {rater} is left out: {why}")


def _measure(
    plan: "Plan",
    found: "Corpus",
    limit: int | None,
    out: Path,
    report: bool,
    jobs: int,
    ray: str | None,
    retry: bool,
    speed: bool,
    preset: str,
) -> None:
    import shlex
    from dataclasses import replace

    from senone.eval import bench, tables

    found = replace(found, utterances=found.utterances[:limit])
    for sentence in found.unreadable:
        say(f"senone: {sentence}")
    command = shlex.join(["senone", *sys.argv[1:]])
    with bar("eval", sum(utterance.seconds for utterance in found.utterances) * len(plan.systems)) as advance:
        run = bench.run(
            plan, found, out, jobs=jobs, ray=ray, retry=retry, speed=speed, command=command, advance=advance
        )
    tables.write(run, preset == "table1")
    tables.show(run, preset == "table1")
    if report:
        from senone.eval import report as page

        say(f"senone: the report is {page.write(run)}")
    raise typer.Exit(2 if found.unreadable else 0)


def _numbers(text: str | None) -> list[int]:
    try:
        return [int(word) for word in text.split(",")] if text else []
    except ValueError:
        raise SenoneError(f"--levels must be numbers separated by commas, got '{text}'") from None
