"""The commands ``papers`` and ``reproduce``."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from assay.papers.runner import Run

SCHEMA = "assay/1"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("papers")(papers_command)
    app.command("reproduce")(reproduce_command)


def papers_command(
    search: Annotated[str | None, typer.Option("--search", help="Words to rank by, such as 'label noise'.")] = None,
    room: Annotated[str | None, typer.Option("--room", help="Only this room.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind: method, theory, study ...")] = None,
    status: Annotated[str | None, typer.Option("--status", help="Only this status, or 'stale'.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the papers, and where each stands."""
    from assay.papers import status as standing
    from assay.runtime.errors import unknown

    rows = standing.papers()
    for name, value, known in (
        ("room", room, {r for row in rows for r in (row["room"], *row["also"])}),
        ("kind", kind, {k for row in rows for k in row["kind"].split(" + ")}),
        ("status", status, {*standing.STATUSES, "stale"}),
    ):
        if value is not None and value not in known:
            raise unknown(name, value, known)
    rows = [
        r
        for r in rows
        if room in (None, r["room"], *r["also"])
        and kind in (None, *r["kind"].split(" + "))
        and (status in (None, r["status"]) or (status == "stale" and r["stale"]))
    ]
    if search is not None:
        rows = standing.search(rows, search)
    if json:
        sys.stdout.write(jsonlib.dumps({"schema": SCHEMA, "kind": "papers", "papers": rows}, indent=1) + "\n")
        return
    _list(rows)


def _list(rows: list[dict[str, Any]]) -> None:
    from assay.cli.listing import show

    states = [r["status"] + (" (stale)" if r["stale"] else "") for r in rows]
    cells = [(r["slug"], state, r["room"], r["title"]) for r, state in zip(rows, states, strict=True)]
    show(("paper", "status", "room", "title"), cells)


def reproduce_command(
    slugs: Annotated[list[str] | None, typer.Argument(help="Papers, by slug.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every paper that is written.")] = False,
    scale: Annotated[str, typer.Option("--scale", help="smoke, claim or gpu.")] = "claim",
    seed: Annotated[int | None, typer.Option("--seed", help="Base seed; else it follows from the claims.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Append the run to the ledger.")] = False,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="With --record: one seed, where the tables it gave before come again.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", help="Worker processes.")] = 1,
    on: Annotated[str, typer.Option("--on", help="local, ray or ray://host:port.")] = "local",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for one page a paper.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Run a paper's claims, and again with the key ingredient removed; exit 0 only if all are reproduced."""
    from assay.runtime.errors import InputError

    if everything == bool(slugs):
        raise InputError("reproduce: expected one or more papers, or --all")
    if record and seed is not None:
        raise InputError(
            "reproduce: --record with --seed; expected one of them, a recorded seed follows from the claims"
        )
    if confirm and (out is not None or not record):
        raise InputError("reproduce: --confirm; expected it with --record and without --out: a page needs a whole run")
    from assay.papers import catalogue

    chosen = list(dict.fromkeys(slugs)) if slugs else catalogue.written()
    for slug in chosen:  # a wrong name fails before the work, not in the middle of it
        catalogue.load(slug).PAPER.scale(scale)
    documents = [
        _one(s, scale, seed, record=record, confirm=confirm, jobs=jobs, on=on, out=out, quiet=json) for s in chosen
    ]
    if json:
        document = {"schema": SCHEMA, "kind": "reproductions", "runs": documents}
        sys.stdout.write(jsonlib.dumps(document, indent=1) + "\n")
    raise typer.Exit(0 if all(d["outcome"] == "reproduced" for d in documents) else 1)


def _one(
    slug: str,
    scale: str,
    seed: int | None,
    *,
    record: bool,
    confirm: bool,
    jobs: int,
    on: str,
    out: Path | None,
    quiet: bool,
) -> dict[str, Any]:
    from assay.papers import page, runner
    from assay.runtime.store import Store

    if record:
        runner.check_recordable(slug)
        found = runner.recorded(slug, scale)
        if found is not None and out is None:
            print(f"assay: {slug} is recorded at {scale} scale: {found['outcome']}", file=sys.stderr)
            return found
        if found is None and confirm and (same := _confirmed(slug, scale, on)) is not None:
            return same
    else:
        found = None

    def progress(name: str, done: int, total: int) -> None:
        print(f"assay: {done}/{total} {name}", file=sys.stderr, flush=True)

    run = runner.reproduce(slug, scale=scale, seed=seed, jobs=jobs, on=on, store=Store(), progress=progress)
    row = runner.record(run) if record and found is None else run.to_dict()
    written = page.save(run, out) if out is not None else None
    if not quiet:
        _show(run)
        if written is not None:
            sys.stdout.write(f"page: {written}\n")
    return row


def _confirmed(slug: str, scale: str, on: str) -> dict[str, Any] | None:
    from assay.papers.confirm import confirm
    from assay.runtime.store import Store

    row = confirm(slug, scale, store=Store(), on=on)
    if row is not None:
        seed, of = row["confirms"]["seed"], len(row["tables"])
        print(f"assay: {slug}: seed {seed} of 0 to {of - 1} as recorded before: {row['outcome']}", file=sys.stderr)
    return row


def _show(run: Run) -> None:
    from rich.console import Console
    from rich.table import Table

    from assay.papers.page import bound, number

    console = Console()
    console.print(f"{run.paper.title} ({run.paper.year}): {run.outcome}", markup=False, highlight=False)
    table = Table("run", "claim", "observed", "bound", "verdict", box=None)
    for name, arm in (("paper", run.real), *run.shams.items()):
        for c in arm.claims:
            if name == "paper" or name in c.refuted_by:
                table.add_row(name, c.text, number(c), bound(c), c.verdict + ("" if c.key else " (support)"))
    console.print(table)
    console.print(f"{run.seconds:.1f} s; {run.command}", markup=False, highlight=False)
