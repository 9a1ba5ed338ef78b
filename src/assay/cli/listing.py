"""Listings: they read only the committed catalogue, so they answer at once."""

from __future__ import annotations

import json as jsonlib
import sys
from importlib.resources import files

from rich.console import Console
from rich.table import Table

from assay.runtime.errors import unknown


def methods(room: str | None, kind: str | None, *, json: bool) -> None:
    """Print the methods of a room or kind."""
    rows = jsonlib.loads(files("assay").joinpath("catalogue.json").read_text())["methods"]
    for name, value, key in (("room", room, "room"), ("kind", kind, "kind")):
        if value is not None and value not in {r[key] for r in rows}:
            raise unknown(name, value, {r[key] for r in rows})
    chosen = [r for r in rows if room in (None, r["room"]) and kind in (None, r["kind"])]
    if json:
        sys.stdout.write(jsonlib.dumps({"schema": "assay/1", "kind": "methods", "methods": chosen}, indent=1) + "\n")
        return
    table = Table("method", "kind", "what", box=None)
    for r in chosen:
        table.add_row(r["name"], r["kind"], r["claim"])
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
