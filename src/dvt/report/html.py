"""The pieces that the report page is made of. Everything that comes from data is escaped here or by `text`."""

import base64
from collections.abc import Sequence
from typing import Any

from dvt.report.figures import exit_colour
from dvt.report.words import text

_UNITS = {"memory_gib": "memory (GiB)", "image_size": "image size (pixels)"}


def section(title: str, content: str) -> str:
    """A part of the page with its heading."""
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


def columns(parts: Sequence[str]) -> str:
    """Side by side where there is room."""
    return '<div class="columns">\n' + "\n".join(parts) + "\n</div>"


def stack(parts: Sequence[str]) -> str:
    """One below the other, as one column."""
    return "<div>\n" + "\n".join(parts) + "\n</div>"


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`rows` are HTML already; their first cell is a heading."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="card" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def details(title: str, content: str) -> str:
    """A part that readers open when they want it."""
    return f"<details><summary>{title}</summary>\n{content}\n</details>"


def facts_table(caption: str, facts: dict[str, Any]) -> str:
    """Names and values, escaped here."""
    names = {key: text(_UNITS.get(key, str(key).replace("_", " "))) for key in facts}
    rows = "\n".join(
        f'<tr><th scope="row">{names[key]}</th><td>{text(_plain(value))}</td></tr>' for key, value in facts.items()
    )
    return (
        f'<div class="card"><table class="facts"><caption>{caption}</caption>\n<tbody>\n{rows}\n</tbody></table></div>'
    )


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(f"({_plain(v)})" if isinstance(v, list) else _plain(v) for v in value) or "–"
    return str(value)


def exit_name(exit_index: int) -> str:
    """ "exit 2" with its colour."""
    chip = f'<span class="chip" style="background:{exit_colour(exit_index)}"></span>'
    return f'<span class="exit">{chip}exit&nbsp;{exit_index + 1}</span>'


def data_uri(png: bytes) -> str:
    """The image itself as an address."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
