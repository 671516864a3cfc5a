"""What verbs share: the app, models, a bar, and sentences on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from senone.errors import SenoneError

if TYPE_CHECKING:
    from senone.tokenizer import AudioTokenizer

Model = Annotated[
    str, typer.Option("--model", "-m", help="A bundled name, directory, org/repo, hf:DIR, file.py:Class.")
]
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def examples(*lines: str) -> str:
    return "\n\n".join(("Examples:", *(f"  [bold]{line}[/]" for line in lines)))


def load(name: str) -> "AudioTokenizer":
    from senone import hub
    from senone.tokenizer import AudioTokenizer

    tokenizer = hub.load(name)
    if not isinstance(tokenizer, AudioTokenizer):
        raise SenoneError(f"'{name}' is no tokenizer but a {type(tokenizer).__name__}")
    return tokenizer


@contextmanager
def bar(verb: str, total: float | None) -> Iterator[Callable[[float], None]]:
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


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
