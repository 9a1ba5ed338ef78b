"""The result as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.audit.result import Audit, Effect, Effects
from assay.report import text
from assay.report.svg import clip

STYLE = {"better": "green", "worse": "red", "changed": "yellow", "": ""}


def terminal(result: Audit | Effects, console: Console) -> None:
    """Print an audit's headline metrics, or the table of effects, then the worst findings."""
    if isinstance(result, Effects):
        _effects(result, console)
        audit = result.after
    else:
        _audit(result, console)
        audit = result
    for name, reason in text.skipped(audit):
        console.print(Text(f"skipped  {clip(name, 60)}: {clip(reason, 200)}", "dim"))
    findings = audit.findings()
    if findings:
        console.print(Text("Worst findings", "bold"))
        for k, finding in enumerate(findings, 1):
            console.print(Text(f" {k}. {clip(finding, 300)}"))


def _table(title: str, columns: list[tuple[str, bool]]) -> Table:
    table = Table(title=Text(title, "bold"), title_justify="left", box=None, pad_edge=False, header_style="dim")
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def _audit(audit: Audit, console: Console) -> None:
    columns = [("metric", False), ("", False), ("value", True), ("95% interval", True)]
    table = _table(f"{clip(audit.name, 80)}  ({audit.profile}, seed {audit.seed})", columns)
    for key, section in text.measured(audit).items():
        table.add_row(Text(clip(text.title(audit, key), 60), "bold"))
        for m in text.headline(section):
            arrow = text.BETTER[m.better][0]
            row = [f"  {clip(m.name, 60)}", arrow, text.value(m), text.interval(m.low, m.high)]
            table.add_row(*map(Text, row))
    console.print(table)


def _effects(effects: Effects, console: Console) -> None:
    control = [("control", True)] if effects.control is not None else []
    columns = [("metric", False), ("", False), ("before", True), ("after", True), *control]
    table = _table(clip(effects.name, 80), [*columns, ("difference", True), ("95% interval", True), ("", False)])
    for title, rows in text.shown(effects):
        table.add_row(Text(clip(title, 60), "bold"))
        for row in rows:
            table.add_row(*_row(row, bool(control)))
    console.print(table)
    if effects.forgetting:
        lines = text.forgetting(effects)
        names = text.columns(lines)
        forgetting = _table("Forgetting", [(n, k > 0) for k, n in enumerate(names)])
        for entry in lines:
            forgetting.add_row(*(Text(clip(entry[n], 60)) for n in names))
        console.print(forgetting)
        for name, what in text.meanings(effects):
            console.print(Text.assemble((name, "bold"), f": {what}"))


def _row(row: Effect, control: bool) -> list[Text]:
    middle = [text.number(row.control)] if control else []
    arrow = text.BETTER.get(row.better, ("", ""))[0]
    plain = [f"  {clip(row.name, 60)}", arrow, text.number(row.before), text.number(row.after), *middle]
    change = [text.number(row.difference, sign=True), text.interval(row.low, row.high, sign=True)]
    return [*map(Text, plain), *map(Text, change), Text(text.VERDICT[row.verdict], STYLE[row.verdict])]
