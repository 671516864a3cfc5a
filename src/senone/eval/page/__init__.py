"""Pages that stand alone: one HTML file with its style, script, pictures and sound inside, opened from disk."""

from html import escape
from pathlib import Path
from string import Template
from typing import Any

FOLDER = Path(__file__).parent
VOID = {"br", "hr", "img", "input", "link", "meta"}


class Html(str):
    """Markup. Any other string is text: `tag` escapes it."""


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """One element. Children that are not Html are escaped, None and False attributes left out; `class_` is class."""
    inner = "".join(child if isinstance(child, Html) else escape(str(child)) for child in children)
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    said = "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in pairs
        if value is not None and value is not False
    )
    return Html(f"<{name}{said}>" + ("" if name in VOID else f"{inner}</{name}>"))


def join(parts: Any) -> Html:
    """Several pieces of markup or text, one after the other."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def render(title: str, script: str, body: Html) -> str:
    """A whole document: page.html with style.css, common.js and the named script in it."""
    page, style, *scripts = (
        (FOLDER / name).read_text(encoding="utf-8") for name in ("page.html", "style.css", "common.js", script)
    )
    return Template(page).substitute(title=escape(title), style=style, script="\n".join(scripts), body=body)
