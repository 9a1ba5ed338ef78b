"""Text from outside on a terminal and in reports."""

from __future__ import annotations

import re

# Controls (escape sequences of a terminal), marks that turn the direction of writing, halves of surrogate pairs.
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, most: int | None = None) -> str:
    """``text`` on one line, what a reader cannot see replaced by its code; above ``most`` characters its ends only."""
    line = " ".join(text.split())
    if most is not None and len(line) > most:
        line = f"{line[: most - 200]} ... {line[-200:]}"
    return _HIDDEN.sub(_code, line)


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
