"""The contract of platform identification: ``fit(known platforms) -> fitted`` with ``identify(...) -> votes``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Identifier:
    """Tells on which of several known platforms a service computes.

    ``fit`` takes what is known of each platform by its name (at least two). The fitted object has
    ``identify(answers) -> {name: votes}`` and ``name(answers) -> str | None``, the platform with the most votes.
    """

    kind: ClassVar[str] = "identifier"
    contract: ClassVar[bool] = True

    def check_platforms(self, known: Mapping[str, Any]) -> None:
        """InputError unless there are two platforms or more, by name."""
        who = type(self).__name__
        if not isinstance(known, Mapping):
            raise InputError(f"{who}: the platforms are {type(known).__name__}; expected a mapping from their names")
        if len(known) < 2:
            raise InputError(f"{who}: {len(known)} platforms; expected at least two to tell apart")


def winner(votes: Mapping[str, int]) -> str | None:
    """The name with the most votes; None where there is no vote or no single winner."""
    top = max(votes.values(), default=0)
    leaders = [name for name, count in votes.items() if count == top]
    return leaders[0] if top > 0 and len(leaders) == 1 else None
