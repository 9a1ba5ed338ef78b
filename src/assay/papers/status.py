"""Where each paper stands, from the catalogue and the ledger alone."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from assay.papers import ledger
from assay.runtime.errors import InputError

STATUSES = ("reproduced", "not reproduced", "not separated", "undecided", "needs gpu", "planned")


def status(row: dict[str, Any], runs: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """(status, stale) of a catalogue row. The worst outcome over the recorded runs of one code decides.

    Runs of the present code come first; where there are none, those of the last recorded code, and the flag is set.
    A paper without a recorded run at claim or gpu scale is planned, or undecided once its module is written. One whose
    module names a recorded pilot needs a gpu until a run at that scale is recorded, whatever a luckier run at claim
    scale says, unless its exact checks fail.
    """
    decided = [r for r in runs if r["scale"] in ("claim", "gpu")]
    if not row["written"]:
        return "planned", False
    if not decided:
        return "undecided", False
    current = [r for r in decided if r["source"] == row["sources"].get(r["scale"])]
    judged = current or [r for r in decided if r["source"] == decided[-1]["source"]]
    worst = min((r["outcome"] for r in judged), key=ledger.OUTCOMES.index)
    pilot = row.get("needs_gpu")
    piloted = pilot is not None and any(r["key"] == pilot["key"] for r in runs)
    if piloted and all(r["scale"] != "gpu" and _exact_hold(r) for r in judged):
        worst = "needs gpu"
    return worst, not current


def _exact_hold(run: dict[str, Any]) -> bool:
    return all(c["verdict"] == "holds" for c in run["claims"] if c["rule"] == "exact")


def papers(root: Path = ledger.ROOT) -> list[dict[str, Any]]:
    """Every paper of the catalogue with its status, in order of slug."""
    try:
        rows = json.loads(files("assay").joinpath("catalogue.json").read_text(encoding="utf-8"))["papers"]
    except FileNotFoundError as error:
        raise InputError("catalogue.json is absent; expected it made by python -m assay.methods") from error
    listed = []
    for row in rows:
        now, stale = status(row, ledger.read(row["slug"], root))
        listed.append({**row, "status": now, "stale": stale})
    return listed


def search(rows: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The rows that match ``text``, best first (BM25). All words must occur, as prefixes; else any of them."""
    words = [f'"{w}"*' for w in re.findall(r"\w+", text)]
    if not words:
        raise InputError(f"--search {text!r}: expected at least one word")
    with sqlite3.connect(":memory:") as base:
        base.execute(
            "CREATE VIRTUAL TABLE t USING fts5(slug, title, authors, claim, tags, tokenize='porter unicode61')"
        )
        base.executemany(
            "INSERT INTO t(rowid, slug, title, authors, claim, tags) VALUES (?,?,?,?,?,?)", map(_cells, enumerate(rows))
        )
        query = "SELECT rowid FROM t WHERE t MATCH ? ORDER BY bm25(t, 8, 6, 3, 3, 1), rowid"
        found = base.execute(query, (" AND ".join(words),)).fetchall()
        found = found or base.execute(query, (" OR ".join(words),)).fetchall()
    return [rows[i] for (i,) in found]


def _cells(numbered: tuple[int, dict[str, Any]]) -> tuple[int, str, str, str, str, str]:
    i, row = numbered
    tags = " ".join([row["room"], *row["also"], row["kind"], *row["implements"], *row["shams"].values()])
    return i, row["slug"], row["title"], row["authors"], row["claim"], f"{tags} {row['arxiv']} {row['headline']}"
