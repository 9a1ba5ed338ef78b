"""What a report says, read from its document: the metrics, what was skipped, and how one report differs from another.

A document is the dict of ``report.json`` (schema ``assay/1``); ``Audit.to_dict`` and ``Effects.to_dict`` give it too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from assay.runtime.errors import InputError

SCHEMA = "assay/1"


@dataclass(frozen=True)
class Number:
    """A measured number with its 95% interval, where it has one; all None where it was not resolved."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measured(Number):
    """A metric of a report: its number, the property that it belongs to, and what the audit says of it."""

    section: str = ""
    interval: str | None = None
    n: int | None = None
    unit: str = ""
    better: str | None = None
    how: str = ""


@dataclass(frozen=True)
class Part:
    """One property of a report: its title, why it was skipped (None: it ran), and the seconds that it took."""

    title: str
    skipped: str | None
    seconds: float


@dataclass(frozen=True)
class Evidence:
    """An audit as its report records it; of a repair, the audit after the last step and ``changes`` to before it."""

    name: str
    source: str
    profile: str
    seed: int
    metrics: Mapping[str, Measured]
    parts: Mapping[str, Part]
    meta: Mapping[str, Any]
    changes: Mapping[str, Number] | None = None
    findings: tuple[str, ...] = field(default=())

    @property
    def test_data(self) -> str | None:
        """The hash of the data that were audited, where the report has it."""
        hashes = self.meta.get("hashes")
        return hashes.get("test") if isinstance(hashes, dict) else None


def read_report(path: Path) -> dict[str, Any]:
    """The document of ``path``, a ``report.json`` or a folder that holds one; InputError when it is none."""
    file = path / "report.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_constant)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; expected a report.json that assay wrote") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: no valid JSON ({error}); expected a report.json that assay wrote") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f"{file}: no schema {SCHEMA!r}; expected a report.json that assay wrote")
    return document


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def evidence(document: Mapping[str, Any], source: str = "the report") -> Evidence:
    """What a document says; ``source`` names it in errors. InputError where it is not an audit's or a repair's."""
    try:
        kind = document["kind"]
        if kind == "audit":
            return _audit(document, source)
        if kind == "effects":
            changes = {str(r["name"]): _number(r, "difference") for r in document["rows"]}
            return _audit(document["steps"][-1]["audit"], source, str(document["name"]), changes)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        raise InputError(f"{source}: {type(error).__name__} ({error}); expected a report of schema {SCHEMA}") from error
    raise InputError(f"{source}: kind {str(kind)!r}; expected 'audit' or 'effects'")


def _audit(
    document: Mapping[str, Any], source: str, name: str | None = None, changes: Mapping[str, Number] | None = None
) -> Evidence:
    metrics: dict[str, Measured] = {}
    parts: dict[str, Part] = {}
    for key, section in document["sections"].items():
        skipped = section["skipped"]
        parts[str(key)] = Part(
            str(section["title"]), None if skipped is None else str(skipped), float(section["seconds"])
        )
        for m in section["metrics"]:
            number, better = _number(m, "value"), m["better"]
            if better not in (None, "higher", "lower"):
                raise ValueError(f"better is {str(better)!r}")
            described = {"interval": m["interval"], "n": m["n"], "unit": str(m["unit"]), "better": better}
            metrics[str(m["name"])] = Measured(
                number.value, number.low, number.high, section=str(key), how=str(m["how"]), **described
            )
    findings = tuple(str(f) for f in document["findings"])
    meta = dict(document["meta"])
    profile, seed = str(document["profile"]), int(document["seed"])
    return Evidence(name or str(document["name"]), source, profile, seed, metrics, parts, meta, changes, findings)


def _number(row: Mapping[str, Any], key: str) -> Number:
    return Number(*(_finite(row[k]) for k in (key, "low", "high")))


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return float(value) if math.isfinite(float(value)) else None


def change(before: Number, after: Number) -> Number:
    """after - before of two independent measurements, with a 95% interval.

    The interval joins the two intervals (Newcombe, 1998, Statistics in Medicine 17:873-890, method 10); a side without
    one counts as exact, and with none on either side the change has no interval. On shared test data a paired interval,
    which needs the samples (``assay compare``), is narrower.
    """
    if before.value is None or after.value is None:
        return Number(None)
    d = after.value - before.value
    ends = (before.low, before.high, after.low, after.high)
    if all(e is None for e in ends):
        return Number(d)
    b, a = before.value, after.value
    b_low, b_high, a_low, a_high = (v if e is None else e for e, v in zip(ends, (b, b, a, a), strict=True))
    return Number(d, d - math.hypot(a - a_low, b_high - b), d + math.hypot(a_high - a, b - b_low))
