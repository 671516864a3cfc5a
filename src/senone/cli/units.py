"""Verbs that measure units, and what models know of them: senone eval units, slmtok, lm, standins."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from senone.cli.evaluate import Jobs, evaluate
from senone.cli.shared import bar, examples, load, say
from senone.errors import SenoneError

if TYPE_CHECKING:
    from senone.eval.unitbench import Measured, Spoken
    from senone.eval.zerospeech import Judged

Units = Annotated[list[str], typer.Argument(help="Tokenizers: a name, a directory, hf:DIR, file.py:Class.")]
Json = Annotated[Path | None, typer.Option("--out", "-o", help="Also write all of it as JSON.", metavar="FILE")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]


@evaluate.command(
    epilog=examples(
        "senone eval units hubert-500 mfcc-100 --data clips/ --phones alignments.tsv.gz",
        "senone eval units spectral-mini --levels 2 --data clips/ --phones textgrids/ --abx features -o units.json",
        "senone eval units hubert-500 --data clips/ --phones ali.ctm --only held_out.txt --use test",
    )
)
def units(
    tokenizers: Units,
    data: Annotated[str, typer.Option(help="A folder, .tsv or .jsonl of recordings; LibriSpeech as it comes.")],
    phones: Annotated[
        Path | None, typer.Option(help="When they are said: .tsv[.gz], .ctm, a folder of .TextGrid or .lab.")
    ] = None,
    only: Annotated[Path | None, typer.Option(help="Names of the utterances to measure, one a line.")] = None,
    use: Annotated[str | None, typer.Option(help="Of --only, the lines whose second word is this.")] = None,
    levels: Annotated[int | None, typer.Option(help="Use the first K levels only.", metavar="K")] = None,
    abx: Annotated[str, typer.Option(help="What ABX compares: codes (as vectors), features, tokens.")] = "codes",
    slicing: Annotated[str, typer.Option(help="librilight, as published figures have it, or exact.")] = "librilight",
    disturbed: Annotated[int, typer.Option(help="Utterances for stability; 0: none.", min=0, metavar="N")] = 20,
    limit: Annotated[int | None, typer.Option(help="The first N only, speakers in turn.", min=1, metavar="N")] = None,
    seed: Seed = 0,
    out: Json = None,
) -> None:
    """Measure units: what they know of phones (purities, PNMI, ABX), what they cost, whether they are stable.

    PNMI and purities are of the first level; they grow with the number of units, so compare like with like. Without
    --phones there are rates and stability. A recording without an alignment is left out.
    """
    from dataclasses import asdict

    from senone.eval.rows import write_json
    from senone.eval.unitbench import measure

    spoken = _spoken(data, phones, only, use, limit)
    settings: Any = {"levels": levels, "on": abx, "slicing": slicing, "disturbed": disturbed, "seed": seed}
    found: dict[str, Measured] = {}
    for name in tokenizers:
        with bar(name, sum(item.utterance.seconds for item in spoken)) as heard:
            found[name] = measure(load(name), spoken, **settings, heard=heard)
    print(_table(found, abx, slicing), end="")
    if out is not None:
        about = {"command": _command(), "data": data, "phones": str(phones or ""), **settings}
        about["utterances"] = [item.utterance.id for item in spoken]
        write_json(out, about | {"systems": {name: asdict(one) for name, one in found.items()}})


@evaluate.command(
    epilog=examples(
        "senone eval slmtok spectral-mini --train train.tsv --dev dev.tsv --test test.tsv -o runs/slmtok",
        "senone eval slmtok hf:DIR ours/ --train LIST --dev LIST --test LIST --levels 1,1:8 -o runs/slmtok",
        "senone eval slmtok units/ --train LIST --dev LIST --test LIST --steps 3000 --width 256 -o runs/quick",
    )
)
def slmtok(
    tokenizers: Units,
    train: Annotated[str, typer.Option(help="What the probe learns from, with text; its split train.")],
    dev: Annotated[str, typer.Option(help="For mutual information, and when to stop; its split dev.")],
    test: Annotated[str, typer.Option(help="For error rates and resynthesis; its split test.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder; the same call again goes on there.")],
    levels: Annotated[
        str | None,
        typer.Option(help="Ranges, where there are so many: 1,1:8,2:8; without, the first and all.", metavar="LIST"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Updates of the probe.", min=1)] = 200_000,
    width: Annotated[int, typer.Option(help="Of its LSTMs.", min=1)] = 1024,
    batch: Annotated[int, typer.Option(help="Utterances in a batch.", min=1)] = 32,
    lr: Annotated[float, typer.Option(help="Its learning rate.")] = 1e-4,
    check: Annotated[int, typer.Option(help="Updates between looks at dev.", min=1)] = 2000,
    pairs: Annotated[int, typer.Option(help="Utterances paired for mutual information.", min=2)] = 256,
    codebook: Annotated[bool, typer.Option("--codebook", help="Its embeddings start as the codebook's.")] = False,
    metrics: Annotated[
        str | None, typer.Option(help="Of the resynthesis, instead of wer_whisper,sim_ecapa,visqol.", metavar="LIST")
    ] = None,
    resynthesis: Annotated[bool, typer.Option("--resynthesis/--no-resynthesis", help="Hear what tokens keep.")] = True,
    limit: Annotated[int, typer.Option(help="Utterances resynthesised, at random.", min=1, metavar="N")] = 300,
    jobs: Jobs = 1,
    seed: Seed = 0,
) -> None:
    """SLMTokBench: how close tokens are to text, and what they keep of the speech.

    Text alignment is asked of a probe, a BLSTM with CTC over characters that is trained on the tokens; the defaults are
    the paper's, for a GPU. Figures compare only where probe, training and data are the same. A tokenizer without a
    decoder, and levels that do not start at 1, have no resynthesis.
    """
    from senone.eval import bench, corpus
    from senone.eval import slmtok as run
    from senone.eval.slmtokbench import Settings

    parts = run.Parts(*(corpus.read(place, name) for place, name in ((train, "train"), (dev, "dev"), (test, "test"))))
    for sentence in (*parts.train.unreadable, *parts.dev.unreadable, *parts.test.unreadable):
        say(f"senone: {sentence}")
    start: Any = "codebook" if codebook else "random"
    settings = Settings(steps, width, batch=batch, lr=lr, tables=start, check=min(check, steps), pairs=pairs, seed=seed)
    probes, systems = [], ["identity"]
    for name in tokenizers:
        tokenizer = load(name)
        wanted, held = run.ranges(levels, len(tokenizer.spec.sizes)), []

        def samples(tokenizer=tokenizer, name=name, wanted=wanted, held=held):
            every = [getattr(parts, part) for part in ("train", "dev", "test")]
            seconds = sum(utterance.seconds for part in every for utterance in part.utterances)
            if not held:
                with bar(f"encode {name}", seconds) as heard:
                    most = max(one.last for one in wanted)
                    held.extend(run.encode(tokenizer, part, most, heard) for part in every)
            return tuple(held)

        for one in wanted:
            probes.append(run.probe(name, tokenizer, samples, parts, one, settings, out, _told(f"{name} {one}")))
            if one.first == 1 and tokenizer.decodes:
                systems.append(f"{name}@{one.last}")
    heard_run = None
    if resynthesis and len(systems) > 1:
        chosen = run.drawn(parts.test, limit, seed)
        names = tuple(word.strip() for word in metrics.split(",")) if metrics else run.RESYNTHESIS
        plan = bench.Plan(tuple(systems), names, seed=seed)
        with bar("resynthesis", sum(utterance.seconds for utterance in chosen.utterances) * len(systems)) as advance:
            place = out / "resynthesis"
            heard_run = bench.run(plan, chosen, place, jobs=jobs, speed=False, command=_command(), advance=advance)
    print(run.write(out, run.table(probes, heard_run), probes, heard_run), end="")


@evaluate.command(
    epilog=examples(
        "senone eval lm mylm/ --units hubert-500 --swuggy sLM21/lexical/dev --sblimp sLM21/syntactic/dev",
        "senone eval lm file.py:MyLM --units hubert-500 --swuggy standins/lexical/dev --norm sum",
        "senone eval lm bigram --units mfcc-100 --train clips/ --swuggy standins/lexical/dev",
    )
)
def lm(
    model: Annotated[str, typer.Argument(help="A LanguageModel: a directory, file.py:Class; bigram: counted here.")],
    tokenizer: Annotated[str, typer.Option("--units", "-u", help="The tokenizer that it is a model of.")],
    swuggy: Annotated[Path | None, typer.Option(help="Words and non-words: a folder with gold.csv.")] = None,
    sblimp: Annotated[Path | None, typer.Option(help="Sentences, right and wrong: a folder with gold.csv.")] = None,
    norm: Annotated[str, typer.Option(help="A score is the mean over the tokens, as in AudioLM, or the sum.")] = "mean",
    runs: Annotated[bool, typer.Option("--runs/--no-runs", help="Leave runs of a token as they are.")] = False,
    train: Annotated[str | None, typer.Option(help="For bigram: recordings to count in.")] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder for scores, as the official program reads them.")
    ] = None,
) -> None:
    """Does a language model of units know words (sWUGGY) and grammar (sBLIMP)? Chance is 50 %.

    Of a tokenizer with several levels, the first is scored. `senone eval standins` makes both sets with espeak-ng, to
    try things with; they do not compare with published figures.
    """
    from dataclasses import asdict

    from senone.eval import zerospeech
    from senone.eval.rows import write_json

    if swuggy is None and sblimp is None:
        raise SenoneError("give --swuggy, --sblimp, or both")
    sets = {name: folder for name, folder in (("swuggy", swuggy), ("sblimp", sblimp)) if folder is not None}
    gold = {name: zerospeech.read_gold(folder) for name, folder in sets.items()}  # before anything takes time
    coder = load(tokenizer)
    scorer = _language_model(model, coder, train, not runs)
    results: dict[str, Any] = {}
    how: Any = {"norm": norm, "collapse": not runs}
    for name, pairs in gold.items():
        with bar(name, None) as heard:
            scores = zerospeech.score(scorer, coder, zerospeech.files(pairs), **how, heard=heard)
        judged = zerospeech.judge(pairs, scores, seed=seed)
        mark = (
            ", synthetic stand-ins: not comparable with published figures" if zerospeech.synthetic(sets[name]) else ""
        )
        print(f"{name}, {norm} log-probability{' of whole runs' if runs else ''}, {len(pairs)} pairs{mark}")
        for title, share in _shares(judged):
            interval = f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"
            print(f"  {title:<20} {100 * share.value:5.1f} % {interval} of {share.count}")
        results[name] = asdict(judged) | {"folder": str(sets[name]), "synthetic": bool(mark)}
        if out is not None:
            zerospeech.write_scores(out / f"{name}.txt", scores)
    if out is not None:
        about = {"model": model, "units": tokenizer, "fingerprint": coder.spec.fingerprint, "norm": norm, "runs": runs}
        write_json(out / "lm.json", about | {"bos": scorer.bos, "seed": seed, "command": _command(), "sets": results})


@evaluate.command(
    epilog=examples(
        "senone eval standins standins/ --text train.tsv", "senone eval standins s/ --text clips/ --pairs 400"
    )
)
def standins(
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    text: Annotated[str, typer.Option(help="A list of recordings with text: where the words are from.")],
    pairs: Annotated[int, typer.Option(help="Of words, and of sentences.", min=1)] = 100,
    seed: Seed = 0,
) -> None:
    """Make stand-ins for sWUGGY and sBLIMP with espeak-ng, in the official form: synthetic, and marked as such."""
    from senone.data.manifest import read
    from senone.eval.standins import VOICES, build, count

    texts = [cut.text for cut in read(text, None) if cut.text]
    if not texts:
        raise SenoneError(f"no recording in {text} has a text")
    made = build(folder, count(texts), pairs=pairs, seed=seed)
    say(f"{pairs} pairs of words and {pairs} of sentences, in {len(VOICES)} voices, in {made}")


def _spoken(data: str, phones: Path | None, only: Path | None, use: str | None, limit: int | None) -> list["Spoken"]:
    """The utterances to measure, with their phones."""
    from senone.eval import alignments, corpus
    from senone.eval.unitbench import Spoken

    if use is not None and only is None:
        raise SenoneError("--use is about the lines of --only")
    found = corpus.read(data)
    for sentence in found.unreadable:
        say(f"senone: {sentence}; it is left out")
    said = None if phones is None else alignments.read(phones)
    names = None if only is None else _names(only, use)
    kept, without = [], 0
    for utterance in found.utterances:
        stem = Path(utterance.path).stem
        if names is not None and stem not in names:
            continue
        if said is not None and stem not in said:
            without += 1
            continue
        kept.append(Spoken(utterance, None if said is None else said[stem]))
    if without:
        say(f"senone: {without} of {without + len(kept)} recordings have no alignment in {phones}; they are left out")
    if not kept:
        raise SenoneError(f"no recording in {data} is to be measured")
    return kept[:limit]


def _names(path: Path, use: str | None) -> set[str]:
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    except (OSError, UnicodeDecodeError) as error:
        raise SenoneError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    return {line[0] for line in lines if line and (use is None or line[1:2] == [use])}


def _table(found: dict[str, "Measured"], on: str, slicing: str) -> str:
    """A line a measure, a column a system."""
    columns = [dict(_facts(one, on, slicing)) for one in found.values()]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    lines = [["", *found], *([key, *(column.get(key, "-") for column in columns)] for key in keys)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    shown = (
        (cell.rjust(w) if k else cell.ljust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
    return "".join("  ".join(line).rstrip() + "\n" for line in shown)


def _facts(one: "Measured", on: str, slicing: str) -> Iterator[tuple[str, str]]:
    yield "utterances", str(one.utterances)
    yield "seconds", f"{one.seconds:.0f}"
    rates = one.rates
    yield "tokens a second", f"{rates.token_rate:g}"
    yield "without runs", f"{rates.run_rate:.1f}"
    yield "bits a second", f"{rates.bitrate:.0f}"
    yield "by entropy", f"{rates.entropy_bitrate:.0f}"
    yield "by entropy, without runs", f"{rates.run_bitrate:.0f}"
    yield "units used", f"{one.used} of {one.size}"
    yield "if drawn evenly", f"{one.expected:.0f}"
    if one.quality is not None and one.early is not None and one.late is not None:
        q = one.quality
        yield "frames with a phone", str(q.frames)
        yield "phones", str(q.phones)
        yield "PNMI", f"{q.pnmi:.3f}"
        yield "PNMI by chance", f"{q.bias:.3f}"
        yield "PNMI, phones early", f"{one.early:.3f}"
        yield "PNMI, phones late", f"{one.late:.3f}"
        yield "phone purity", f"{q.phone_purity:.3f}"
        yield "cluster purity", f"{q.cluster_purity:.3f}"
        yield "perplexity", f"{q.perplexity:.1f}"
        yield "frames a unit lasts", f"{q.unit_run:.2f}"
        yield "frames a phone lasts", f"{q.phone_run:.2f}"
    if one.abx is not None:
        for name, error, cells in (
            ("within", one.abx.within, one.abx.within_cells),
            ("across", one.abx.across, one.abx.across_cells),
        ):
            rate = "-" if error is None else f"{100 * error:.2f}"
            yield f"ABX {name} % ({on}, {slicing})", rate
            yield f"ABX {name}, cells", str(cells)
    for name, title in (
        ("shift", "1 sample early"),
        ("offset", "20 ms early"),
        ("gain", "-6 dB"),
        ("noise", "noise, 40 dB"),
    ):
        if one.stability is not None:
            yield f"tokens changed %, {title}", " ".join(f"{100 * level:.1f}" for level in one.stability[name])


def _shares(judged: "Judged") -> Iterator[tuple[str, Any]]:
    yield "all", judged.all
    if judged.invocab is not None:
        yield "in vocabulary", judged.invocab
    yield from judged.groups.items()


def _language_model(name: str, tokenizer: Any, train: str | None, collapse: bool) -> Any:
    from senone import hub
    from senone.audio import Audio
    from senone.data.manifest import read
    from senone.eval.zerospeech import tokens_of
    from senone.lm import LanguageModel
    from senone.models.bigram import Bigram

    if name != "bigram":
        if train is not None:
            raise SenoneError("--train is for bigram, which is counted here")
        model = hub.load(name)
        if not isinstance(model, LanguageModel):
            raise SenoneError(f"'{name}' is no language model but a {type(model).__name__}")
        return model
    if train is None:
        raise SenoneError("bigram is counted here: give --train")
    cuts = read(train)
    with bar("count", sum(cut.seconds for cut in cuts)) as advance:

        def lines() -> Iterator[list[int]]:
            for cut in cuts:
                audio = Audio.read(cut.path, start=cut.start, seconds=cut.seconds)
                yield tokens_of(tokenizer, audio, collapse).tolist()
                advance(cut.seconds)

        return Bigram.of(lines(), tokenizer.quantizer.sizes[0])


def _told(title: str) -> Callable[[int, float, float], None]:
    return lambda step, train, dev: say(f"{title}: step {step}, {train:.3f} nats a character, on dev {dev:.3f}")


def _command() -> str:
    import shlex
    import sys

    return shlex.join(["senone", *sys.argv[1:]])
