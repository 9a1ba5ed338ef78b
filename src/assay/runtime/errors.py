"""Every error that assay raises on purpose. One line each: what, where, what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AssayError(Exception):
    """Base of all deliberate errors."""


class InputError(AssayError, ValueError):
    """The input is unusable: a file, an option, a tensor."""


class AccessError(AssayError):
    """A method needs more access to the model or its data than the subject grants."""


class BudgetError(AssayError):
    """An oracle's query budget is spent."""


def unknown(what: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for an unknown name, with the nearest match and the choices."""
    names = sorted(choices)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return InputError(f"unknown {what} {name!r}{hint} (known: {', '.join(names)})")
