"""Listings: they read only the committed catalogue, so they answer at once."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from importlib.resources import files

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.runtime.errors import unknown


def methods(room: str | None, kind: str | None, *, json: bool) -> None:
    """Print the methods of a room or kind."""
    rows = jsonlib.loads(files("assay").joinpath("catalogue.json").read_text(encoding="utf-8"))["methods"]
    for name, value, key in (("room", room, "room"), ("kind", kind, "kind")):
        if value is not None and value not in {r[key] for r in rows}:
            raise unknown(name, value, {r[key] for r in rows})
    chosen = [r for r in rows if room in (None, r["room"]) and kind in (None, r["kind"])]
    if json:
        sys.stdout.write(jsonlib.dumps({"schema": "assay/1", "kind": "methods", "methods": chosen}, indent=1) + "\n")
        return
    show(("method", "kind", "what"), [(r["name"], r["kind"], r["claim"]) for r in chosen])


def show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, no cell cut: folded to a terminal's width, elsewhere one line a row, however wide."""
    table = Table(box=None)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        widths = [max(map(cell_len, column)) + 2 for column in zip(head, *rows, strict=True)]
        console = Console(width=sum(widths))
    console.print(table)
