"""The command line. Every verb imports what it needs inside, so that `senone --help` answers at once."""

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from senone import __version__
from senone.cli import codec, evaluate, learn, text, units  # noqa: F401  (each brings its verbs, in the order of --help)
from senone.cli.shared import app, say
from senone.errors import SenoneError

__all__ = ["main"]

# Large weights in large pages, where Linux has them: a frame that reads all weights takes a tenth less (docs/log.md).
# torch looks when it needs memory first, so a program of one's own may set it after its imports.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def main() -> None:
    """Run the command line: a SenoneError is one sentence and status 2, Ctrl-C is 130, a closed pipe is quiet."""
    warnings.showwarning = lambda message, *_, **__: say(f"senone: {message}")
    code: Any = 0
    try:
        app(prog_name="senone")
    except SystemExit as done:
        code = done.code
    except SenoneError as error:
        say(f"senone: {' '.join(str(error).split())}")
        code = 2
    except OSError as error:  # of `print`; whoever else reads and writes names the file
        say(f"senone: {error}")
        code = 2
    try:
        sys.__stdout__.flush()  # type: ignore[union-attr]
    except OSError as error:
        # nobody takes what is left: keep the interpreter from trying again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not code and not isinstance(error, BrokenPipeError):
            say(f"senone: cannot write standard output: {error.strerror}")
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
