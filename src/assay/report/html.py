"""The self-contained HTML page and the notebook's short form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from assay.audit.property import Section
from assay.audit.result import Audit, Effects
from assay.report import charts, svg, text
from assay.report.parallel import parallel
from assay.report.svg import Names, tag
from assay.runtime.metric import Metric

BUDGET = 4_500_000
ROWS, NOTES = 300, 40
LEFT_OUT = Markup('<p class="empty">Left out to keep this page small; the data are in report.json.</p>')

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals.update(
    number=text.number, interval=text.interval, value=text.value, BETTER=text.BETTER, VERDICT=text.VERDICT
)
_environment.filters.update(clip=svg.clip, cell=text.cell)


class Budget:
    """What the page may still hold, in bytes; a block that does not fit is replaced by a remark."""

    def __init__(self, size: int = BUDGET) -> None:
        self.left = size

    def take(self, block: str) -> Markup:
        """``block``, or the remark where it does not fit."""
        size = len(block.encode("utf-8", "replace"))
        if size > self.left:
            return LEFT_OUT
        self.left -= size
        return Markup(block)


@dataclass(frozen=True)
class View:
    """One property on the page."""

    key: str
    title: str
    headline: Sequence[Metric]
    blocks: Sequence[Markup]
    notes: Sequence[str]


def whisker(metric: Metric) -> Markup:
    """A dot with its interval on an axis from 0 to 1; empty for other ranges."""
    ends = [metric.value, metric.low, metric.high]
    if metric.value is None or not all(e is None or 0 <= e <= 1 for e in ends):
        return Markup("")
    body = [tag("line", x1=4, x2=116, y1=8, y2=8, class_="g")]
    if metric.low is not None and metric.high is not None:
        body.append(tag("line", x1=4 + 112 * metric.low, x2=4 + 112 * metric.high, y1=8, y2=8, class_="w"))
    body.append(tag("circle", cx=4 + 112 * float(metric.value), cy=8, r=3.4, class_="d"))
    return tag("svg", *body, viewBox="0 0 120 16", width=120, height=16, aria_hidden="true", class_="whisker")


_environment.globals.update(whisker=whisker)


def _part(part: str, /, **values: Any) -> str:
    return str(getattr(_environment.get_template("parts.html.j2").module, part)(**values))


def _view(key: str, title: str, section: Section, names: Names, budget: Budget) -> View:
    drawn = [budget.take(_part("figure", chart=charts.draw(p, names))) for p in section.plots]
    blocks = [tag("div", *drawn, class_="figures")] if drawn else []
    if section.metrics:
        hidden = len(section.metrics) - ROWS
        blocks.append(budget.take(_part("metrics", metrics=section.metrics[:ROWS], hidden=hidden)))
    for name, rows in section.tables.items():
        values = {"name": name, "columns": text.columns(rows)[:30], "rows": rows[:ROWS], "hidden": len(rows) - ROWS}
        blocks.append(budget.take(_part("table", **values)))
    slug = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
    notes = [svg.clip(n, 600) for n in section.notes[:NOTES]]
    return View(f"{names()}-{slug[:40]}", svg.clip(title, 80), text.headline(section), blocks, notes)


def page(result: Audit | Effects) -> str:
    """One HTML document, at most about 5 MB whatever the data."""
    audit = result if isinstance(result, Audit) else result.after
    kind, worst = ("Effects of a repair", " after the repair") if isinstance(result, Effects) else ("Audit", "")
    if isinstance(result, Effects) and text.compared(result):
        kind, worst = "Comparison", f" of {svg.clip(result.steps[-1][0], 80)}"
    budget, names = Budget(), Names()
    effects = _effects(result, names, budget) if isinstance(result, Effects) else None
    views = [_view(k, text.title(audit, k), s, names, budget) for k, s in text.measured(audit).items()]
    css = (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    return _environment.get_template("report.html.j2").render(
        name=svg.clip(result.name, 120),
        kind=kind,
        worst=worst,
        metadata=[(svg.clip(k, 40), svg.clip(v, 200)) for k, v in text.metadata(result)],
        findings=[svg.clip(f, 400) for f in audit.findings()],
        views=views,
        skipped=[(svg.clip(t, 80), svg.clip(r, 300)) for t, r in text.skipped(audit)],
        effects=effects,
        css=Markup(css),
    )


def _effects(effects: Effects, names: Names, budget: Budget) -> dict[str, Any]:
    short = [(t, rows[:ROWS]) for t, rows in text.shown(effects)]
    groups = [(t, rows[:ROWS]) for t, rows in text.groups(effects)]
    chart = parallel(effects, names)
    chain = text.steps(effects)[:ROWS]
    forgetting = text.forgetting(effects)[:ROWS]
    control = effects.control is not None
    return {
        "better": [text.sentence(r) for r in text.changes(effects, "better")[:20]],
        "worse": [text.sentence(r) for r in text.changes(effects, "worse")[:20]],
        "changed": [text.sentence(r) for r in text.changes(effects, "changed")[:20]],
        "chart": budget.take(_part("figure", chart=chart)) if chart else "",
        "table": budget.take(_part("effects", groups=short, caption="Headline metrics and changes", control=control)),
        "all": budget.take(_part("effects", groups=groups, caption="All metrics", control=control)),
        "total": len(effects.rows),
        "steps": [effects.before.name, *(n for n, _ in effects.steps)],
        "chain": chain,
        "forgetting": _part(
            "table", name="Forgetting", columns=text.columns(forgetting)[:30], rows=forgetting, hidden=0
        )
        if forgetting
        else "",
        "meanings": text.meanings(effects),
    }


def notebook(result: Audit | Effects) -> str:
    """A compact HTML fragment: headline metrics or the significant effects, and the worst findings."""
    audit = result if isinstance(result, Audit) else result.after
    rows = [(text.title(audit, k), text.headline(s)) for k, s in text.measured(audit).items()]
    return _environment.get_template("notebook.html.j2").render(
        name=svg.clip(result.name, 120),
        rows=rows,
        effects=text.shown(result) if isinstance(result, Effects) else None,
        findings=[svg.clip(f, 400) for f in audit.findings()],
        skipped=[(svg.clip(t, 80), svg.clip(r, 200)) for t, r in text.skipped(audit)],
    )
