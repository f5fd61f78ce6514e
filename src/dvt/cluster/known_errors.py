"""Errors of distributed runs that are known by a code or a phrase, and what usually causes them: the table stands in
`known_errors.yaml`. Imports no framework."""

import re
from dataclasses import dataclass
from importlib import resources

import yaml


@dataclass(frozen=True)
class KnownError:
    """One row of the table, which explains the fields."""

    name: str
    pattern: str
    cause: str
    follows: bool = False


_TABLE = yaml.safe_load((resources.files(__package__) / "known_errors.yaml").read_text(encoding="utf-8"))

KNOWN_ERRORS = tuple(KnownError(**row) for row in _TABLE["errors"])
SIGNAL_CAUSES: dict[int, str] = _TABLE["signals"]
SILENT_CAUSE: str = _TABLE["silent"]


def recognise(text: str) -> KnownError | None:
    """The first row of the table that `text` shows, or None; rows that are causes go before rows that are effects."""
    found = [known for known in KNOWN_ERRORS if re.search(known.pattern, text, re.MULTILINE)]
    return next((known for known in found if not known.follows), found[0] if found else None)
