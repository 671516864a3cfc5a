"""Verbs between sound and text: transcribe, align."""

from typing import Annotated

import typer

from senone.cli.shared import app, bar, examples, say
from senone.errors import SenoneError

Recogniser = Annotated[
    str, typer.Option("--model", "-m", help="A bundled name, a directory, Hugging Face's ...ForCTC too, or org/repo.")
]


@app.command(
    epilog=examples(
        "senone transcribe talk.mp3",
        "senone transcribe talk.mp3 -m facebook/hubert-large-ls960-ft",
        "senone transcribe *.wav -m runs/ctc/model --json > said.jsonl",
        "senone transcribe film.wav -m runs/ctc/model --srt > film.srt",
        "senone transcribe talk.wav -m runs/ctc/model --lm 4-gram.arpa.gz --beam 200",
    )
)
def transcribe(
    files: Annotated[list[str], typer.Argument(help="Recordings of any format and length; - for standard input.")],
    model: Recogniser = "ctc-mini",
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
            with bar("transcribe", duration(file)) as advance:
                found = list(ctc.transcribe(net, file, decode, advance))
        except SenoneError as error:
            say(f"senone: {' '.join(str(error).split())}")
            failed = True
            continue
        style = ctc.as_json if json else ctc.as_srt if srt else ctc.as_table if words else ctc.as_text
        name = f"{file}\t" if len(files) > 1 and not json else ""
        for line in style(file, found):
            print(name + line, flush=True)
    raise typer.Exit(2 if failed else 0)


@app.command(
    epilog=examples(
        'senone align talk.wav "what was said" -m runs/ctc/model',
        "senone align talk.wav said.txt -m runs/ctc/model --json",
    )
)
def align(
    audio: Annotated[str, typer.Argument(help="A recording; - for standard input.")],
    text: Annotated[str, typer.Argument(help="What is said in it, or a file that holds that.")],
    model: Recogniser = "ctc-mini",
    json: Annotated[bool, typer.Option("--json", help="One object: file, text, words.")] = False,
) -> None:
    """Say when each word of a known text is spoken: start, end (seconds), word."""
    from senone.ctc import transcribe as ctc

    said, source = ctc.read_text(text)
    found = ctc.aligned(ctc.load(model), audio, said, source)
    print("\n".join((ctc.as_json if json else ctc.as_table)(audio, found)))
