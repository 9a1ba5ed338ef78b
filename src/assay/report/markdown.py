"""The Hugging Face model card: YAML front matter with ``model-index``, then summary, metrics and findings."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from assay.audit.result import Audit, Effect, Effects
from assay.report import svg, text
from assay.runtime import markdown

MOST = 200
SPLITS = ("train", "validation", "holdout", "test")


def card(result: Audit | Effects) -> str:
    """The card as Markdown; every text from outside is escaped."""
    audit = result if isinstance(result, Audit) else result.after
    lines = ["---", *_yaml(_front(result.name, audit)), "---", "", f"# {escape(result.name)}", ""]
    lines += [f"- {escape(k)}: {escape(v)}" for k, v in text.metadata(result)]
    findings = audit.findings()
    lines += ["", "## Findings", "", *(f"{k}. {escape(f)}" for k, f in enumerate(findings, 1))]
    lines += [] if findings else ["No findings were recorded."]
    if isinstance(result, Effects):
        lines += _effects(result)
    rows = [(text.title(audit, k), m) for k, s in text.measured(audit).items() for m in text.headline(s)]
    lines += ["", "## Metrics", ""]
    lines += _table(
        ["Property", "Metric", "Value", "95% interval", "n", "Better"],
        [[t, m.name, text.value(m), text.interval(m.low, m.high), text.cell(m.n), m.better or ""] for t, m in rows],
    )
    lost = text.skipped(audit)
    lines += ["", "## Not measured", "", *(f"- {escape(t)}: {escape(r)}" for t, r in lost)] if lost else []
    return "\n".join(lines) + "\n"


def _effects(effects: Effects) -> list[str]:
    lines: list[str] = []
    for verdict in ("better", "worse", "changed"):
        rows = text.changes(effects, verdict)
        none = [] if verdict == "changed" else ["Nothing, significantly."]
        found = [f"- {escape(text.sentence(r))}" for r in rows[:MOST]] or none
        lines += ["", f"## What {'became ' if verdict != 'changed' else ''}{verdict}", "", *found] if found else []
    table = [_row(t, r) for t, shown in text.shown(effects) for r in shown]
    head = ["Property", "Metric", "Before", "After", "Control", "Difference", "95% interval", "Significant"]
    lines += ["", "## Effects", "", *_table(head, table)]
    if effects.forgetting:
        forgetting = text.forgetting(effects)
        columns = text.columns(forgetting)
        lines += ["", "## Forgetting", ""]
        lines += _table(columns, [[r[c] for c in columns] for r in forgetting])
        lines += ["", *(f"- **{escape(name)}** {escape(what)}" for name, what in text.meanings(effects))]
    return lines


def _row(title: str, row: Effect) -> list[str]:
    values = [text.number(v) for v in (row.before, row.after, row.control)]
    change = [text.number(row.difference, sign=True), text.interval(row.low, row.high, sign=True)]
    return [title, row.name, *values, *change, text.VERDICT[row.verdict]]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(escape, head))} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(map(escape, row))} |" for row in rows[:MOST]]


def escape(value: str) -> str:
    """``value`` as it is on one line of Markdown, cut at 400 characters."""
    return markdown.escape(svg.clip(value, 400))


def _front(name: str, audit: Audit) -> dict[str, Any]:
    task = str(audit.meta.get("task", "classification"))
    data = str(audit.meta.get("data", "test set"))
    results = [
        {"type": "accuracy" if m.name == "accuracy.top1" else m.name, "name": m.name, "value": float(m.value)}
        for s in text.measured(audit).values()
        for m in text.headline(s)
        if m.value is not None and math.isfinite(m.value)
    ]
    base, _, split = data.rpartition(":")
    base, split = (base, split) if base and split in SPLITS else (data, "")
    slug = re.sub(r"[^a-z0-9._-]+", "-", base.lower()).strip("-") or "data"
    dataset = {"name": base, "type": slug, **({"split": split} if split else {})}
    entry = {"task": {"type": task}, "dataset": dataset, "metrics": results}
    index = [{"name": name, "results": [entry] if results else []}]
    return {"library_name": "assay", "tags": ["assay", "audit"], "model-index": index}


def _yaml(value: Any, indent: int = 0) -> list[str]:
    """Block YAML of dicts, lists and scalars; strings are double-quoted, which no content can leave."""
    pad, lines = " " * indent, []
    if isinstance(value, dict):
        for key, v in value.items():
            nested = isinstance(v, (dict, list)) and v
            lines += [f"{pad}{key}:", *_yaml(v, indent + 2)] if nested else [f"{pad}{key}: {_scalar(v)}"]
        return lines
    for v in value:
        if isinstance(v, dict):
            first, *rest = _yaml(v, indent + 2)
            lines += [f"{pad}- {first.lstrip()}", *rest]
        else:
            lines.append(f"{pad}- {_scalar(v)}")
    return lines


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    quoted = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]", _code, quoted)


def _code(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}" if not "\ud800" <= match[0] <= "\udfff" else "\\ufffd"
