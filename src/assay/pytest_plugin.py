"""The pytest plug-in: audits as fixtures, and assertions on metrics whose failures show value, interval and bound.

It is loaded with every pytest run of an environment that has assay, so nothing heavy is imported before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from assay.audit import Audit, Effects
    from assay.subject import Subject


def assert_metric(
    audit: Audit | Effects | str | Path,
    metric: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    part: str = "value",
) -> None:
    """Fail the test unless ``metric`` lies within the bounds; both ends are allowed.

    ``audit``: an audit, the effects of a repair (what is measured after it), or a recorded report (its file or folder).
    ``part``: "value", or "low" or "high" for an end of the 95% interval: ``at_most`` on "high" asks that the model is
    shown to be below the bound, not only measured there. Raises InputError for an unknown metric or no bound.
    """
    __tracebackhide__ = True
    from assay.gates import Requirement, evidence, judge, read_report
    from assay.gates.policy import Bound
    from assay.runtime.errors import InputError, unknown

    if at_least is None and at_most is None:
        raise InputError(f"assert_metric({metric!r}): no bound; expected at_least, at_most or both")
    if part not in ("value", "low", "high"):
        raise unknown("part in assert_metric:", part, ("value", "low", "high"))
    if isinstance(audit, str | Path):
        found = evidence(read_report(Path(audit)), str(audit))
    else:
        found = evidence(json.loads(audit.to_json()), audit.name)
    limits = ((">=", at_least), ("<=", at_most))
    bounds = [Requirement(Bound(metric, op, float(limit), part)) for op, limit in limits if limit is not None]
    failed = [str(v) for v in judge(bounds, found) if v.blocks]
    if failed:
        raise AssertionError(f"{found.name}: {'; '.join(failed)}")


@pytest.fixture(scope="session")
def assay_audit() -> Callable[..., Audit]:
    """``assay_audit(subject, **options)``: the audit of a subject, once a session for the same subject and options.

    ``subject`` is a Subject or what ``assay.load`` takes; options are those of ``assay.audit``.
    """
    audits: dict[str, Audit] = {}

    def make(subject: Subject | str = "digits", **options: Any) -> Audit:
        from assay.audit import audit
        from assay.audit.run import fingerprint
        from assay.runtime.store import key_of
        from assay.subject import load

        # a folder may hold another model the next time: what identifies a subject is read from it
        given = load(subject) if isinstance(subject, str) else subject
        key = key_of(name=given.name, subject=fingerprint(given), options=options)
        if key not in audits:
            audits[key] = audit(given, **options)
        return audits[key]

    return make
