"""How numbers, intervals, directions and verdicts are written, the same in every form of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from assay.audit.property import Section
from assay.audit.result import Audit, Effect, Effects
from assay.runtime.metric import Metric
from assay.unlearn.evaluation_meaning import MEANING

UNRESOLVED = "not resolved"
BETTER = {"higher": ("↑", "higher is better"), "lower": ("↓", "lower is better"), None: ("", "")}
VERDICT = {"better": "▲ better", "worse": "▼ worse", "changed": "◆ changed", "": ""}

# In report.json only: too long to read.
HIDDEN = ("profile", "seed", "weights", "code", "options", "hashes", "recipe")


def number(value: Any, digits: int = 3, *, sign: bool = False) -> str:
    """A number for a reader: ``digits`` decimals below 10, fewer above, powers of ten at the far ends."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    v = float(value) or 0.0  # no minus before a zero
    mark = "+" if sign and v > 0 else ""
    if math.isinf(v):
        return "−∞" if v < 0 else mark + "∞"
    size = abs(v)
    if isinstance(value, int) or (size >= 10 and v == int(v) and size < 1e9):
        text = f"{int(v):,}"
    elif size != 0 and (size >= 1e6 or size < 0.5 * 10.0**-digits):
        mantissa, _, power = f"{v:.2e}".partition("e")
        text = f"{mantissa}e{int(power)}"
    else:
        text = f"{v:,.{max(0, digits - max(0, math.floor(math.log10(size)) if size >= 1 else 0))}f}"
    return mark + text.replace("-", "−")


def value(metric: Metric) -> str:
    """A metric's value with its unit, or that it could not be resolved."""
    if metric.value is None or math.isnan(metric.value):
        return UNRESOLVED
    return f"{number(metric.value)} {metric.unit}".strip()


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """[low, high], empty without both."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def headline(section: Section, most: int = 6) -> list[Metric]:
    """The metrics a section names as its headline (those it holds), else its first three."""
    by_name = {m.name: m for m in section.metrics}
    named = [by_name[n] for n in section.headline if n in by_name]
    return named[:most] or section.metrics[:3]


def measured(audit: Audit) -> dict[str, Section]:
    """The sections that ran."""
    return {k: s for k, s in audit.sections.items() if s.skipped is None}


def skipped(audit: Audit) -> list[tuple[str, str]]:
    """Title and reason of every property that did not run."""
    return [(title(audit, k), s.skipped) for k, s in audit.sections.items() if s.skipped is not None]


def title(audit: Audit, name: str) -> str:
    """The title of a property."""
    return str(audit.titles.get(name, name))


def compared(effects: Effects) -> bool:
    """Whether these are the differences of several subjects, not the effects of a repair."""
    return "compared" in effects.meta


def metadata(result: Audit | Effects) -> list[tuple[str, str]]:
    """How the result was made, as (name, value): profile, seed and what ``meta`` holds."""
    audit = result if isinstance(result, Audit) else result.after
    pairs: list[tuple[str, Any]] = [("profile", audit.profile), ("seed", audit.seed)]
    if isinstance(result, Effects) and not compared(result):
        pairs += [("steps", " → ".join(name for name, _ in result.steps))]
    pairs += [(k, v) for k, v in {**audit.meta, **result.meta}.items() if k not in HIDDEN and v is not None]
    return [(str(k).replace("_", " "), _plain(v)) for k, v in pairs]


def _plain(v: Any) -> str:
    if isinstance(v, dict):
        return ", ".join(f"{k}: {_plain(x)}" for k, x in v.items())
    if isinstance(v, (list, tuple)):
        return ", ".join(_plain(x) for x in v)
    return number(v) if isinstance(v, float) else str(v)


def groups(effects: Effects) -> list[tuple[str, list[Effect]]]:
    """The rows by property, in the order of the audit; (title, rows)."""
    owner = {m.name: k for k, s in effects.after.sections.items() for m in s.metrics}
    found: dict[str, list[Effect]] = {}
    for row in effects.rows:
        found.setdefault(owner.get(row.name, row.name.partition(".")[0]), []).append(row)
    return [(title(effects.after, k), rows) for k, rows in found.items()]


def heads(effects: Effects) -> set[str]:
    """Names of the headline metrics of the last audit."""
    return {m.name for s in measured(effects.after).values() for m in headline(s)}


def shown(effects: Effects) -> list[tuple[str, list[Effect]]]:
    """The rows of the short table by property: headline metrics and everything that changed significantly."""
    names = heads(effects)
    short = [(t, [r for r in rows if r.name in names or r.significant]) for t, rows in groups(effects)]
    return [(t, rows) for t, rows in short if rows]


def changes(effects: Effects, verdict: str) -> list[Effect]:
    """The significant rows of one verdict, the clearest first (difference over the width of its interval)."""

    def clarity(row: Effect) -> float:
        width = (row.high - row.low) if row.low is not None and row.high is not None else 0.0
        return abs(row.difference or 0.0) / max(width, 1e-12)

    return sorted((r for r in effects.rows if r.verdict == verdict), key=clarity, reverse=True)


def sentence(row: Effect) -> str:
    """One change in words."""
    unit = f" {row.unit}" if row.unit else ""
    control = f"; the control has {number(row.control)}{unit}" if row.control is not None else ""
    span = interval(row.low, row.high, sign=True)
    change = f"{number(row.difference, sign=True)}{' ' + span if span else ''}"
    return f"{row.name} goes from {number(row.before)} to {number(row.after)}{unit} ({change}){control}."


def steps(effects: Effects) -> list[tuple[str, str, list[str]]]:
    """For a chain of several steps: (metric, unit, values before and after each step)."""
    if len(effects.steps) < 2:
        return []
    audits = [effects.before, *(a for _, a in effects.steps)]
    tables = [a.metrics for a in audits]
    names = [r.name for _, rows in shown(effects) for r in rows]
    return [
        (n, tables[-1][n].unit, [number(t[n].value) if n in t else "–" for t in tables])
        for n in names
        if n in tables[-1]
    ]


def cell(v: Any) -> str:
    """A cell of a free-form table."""
    if v is None:
        return "–"
    return number(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else str(v)


def columns(rows: Sequence[Any]) -> list[str]:
    """Every key of a list of rows, in order of appearance."""
    return list(dict.fromkeys(str(k) for r in rows for k in r))


def forgetting(effects: Effects) -> list[dict[str, str]]:
    """The forgetting table for a reader: one row a quantity with its interval, one column a model."""
    ends = ("_low", "_high")
    names = [c for c in columns(effects.forgetting) if c != "model" and not c.endswith(ends)]

    def shown(row: Any, name: str) -> str:
        low, high = (row.get(name + end) for end in ends)
        return f"{cell(row.get(name))} {interval(low, high)}".strip()

    return [
        {"quantity": n.replace("_", " "), **{str(r["model"]): shown(r, n) for r in effects.forgetting}} for n in names
    ]


def meanings(effects: Effects) -> list[tuple[str, str]]:
    """What each quantity of the forgetting table can and cannot show: (quantity, sentence)."""
    shown = columns(effects.forgetting)
    return [(name.replace("_", " "), text) for name, text in MEANING.items() if name in shown]
