"""What follows ``#`` in the name of a data source: ``label=COL&immutable=a,b``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from assay.runtime.errors import InputError, unknown


def parsed(text: str, where: str, known: Iterable[str]) -> dict[str, str]:
    """``a=1&b=2`` as a dict of what is written there; see ``listed``."""
    found = {}
    for part in filter(None, text.split("&")):
        key, equals, value = part.partition("=")
        if key not in known:
            raise unknown(f"option of data source {where!r}:", key, known)
        if not equals or not value:
            raise InputError(f"data source {where!r}: option {key!r} has no value; expected {key}=VALUE")
        found[key] = value
    return found


def divided(rest: str) -> tuple[str, str]:
    """A path and the options after it; a path that exists as it stands may hold ``#`` itself."""
    if "#" not in rest or Path(rest).expanduser().exists():
        return rest, ""
    path, _, options = rest.rpartition("#")
    return path, options


def listed(options: dict[str, str], key: str) -> list[str]:
    """The names that an option lists, separated by commas; ``%2C``, ``%26`` ... stand for such characters in a name."""
    return [unquote(c.strip()) for c in options.get(key, "").split(",") if c.strip()]


def named(options: dict[str, str], key: str) -> str | None:
    """The one name that an option gives."""
    return unquote(options[key]) if key in options else None


def counted(options: dict[str, str], key: str, where: str) -> int | None:
    """The whole number above 0 that an option gives."""
    text = options.get(key)
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"data source {where!r}: {key}={text}; expected a whole number above 0")
    return int(text)
