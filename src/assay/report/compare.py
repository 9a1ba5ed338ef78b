"""Several audits side by side."""

from __future__ import annotations

from collections.abc import Sequence

from assay.audit.result import Audit, Effects, differences
from assay.runtime.errors import InputError


def compare(audits: Sequence[Audit]) -> Effects:
    """The first audit against the others: paired differences of the last to the first, every one a step between."""
    if len(audits) < 2:
        raise InputError(f"compare: {len(audits)} audits given; expected at least two")
    first, *others = audits
    name = " against ".join(dict.fromkeys((others[-1].name, first.name)))
    steps = [(a.name, a) for a in others]
    return Effects(name, first, steps, differences(first, others[-1]), meta={"compared": [a.name for a in audits]})
