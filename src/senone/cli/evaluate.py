"""Verbs that measure: senone eval codec, pairs, ..."""

import typer

from senone.cli.shared import app

evaluate = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Measure tokenizers, units, anyone's audio.")
app.add_typer(evaluate, name="eval")
