"""What the commands do once the options are parsed."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from assay.audit import audit as run_audit
from assay.audit import differences, expected_wall
from assay.audit import plan as run_plan
from assay.audit.planning import checked, prepared
from assay.audit.result import SCHEMA, Effects
from assay.cli.finish import Wanted, console, finish, tell
from assay.cli.folder import claim, claim_subject, keep_subject
from assay.gates import evidence, judge, parse
from assay.methods import from_text
from assay.repair import Repaired
from assay.repair import repair as run_repair
from assay.report import terminal
from assay.report.files import plain
from assay.runtime.errors import InputError
from assay.runtime.spec import spec_of
from assay.runtime.throughput import Throughput
from assay.subject import Subject, load


class Shown:
    """Progress on stderr: a bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> Shown:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """A stage of the work."""
        if self.console.is_terminal:
            self.bar.update(self.task, description=text)
        else:
            print(f"assay: {text}", file=sys.stderr, flush=True)

    def __call__(self, name: str, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total, description=name or "auditing")
        if not self.console.is_terminal:
            print(f"assay: {done}/{total} {name or 'measured before'}", file=sys.stderr, flush=True)


def _load(subject: str | None, source: dict[str, Any], shown: Shown) -> Subject:
    # An address may hold credentials: they are not repeated.
    shown.say(f"loading {'the endpoint' if '://' in (subject or '') else subject or 'digits'}")
    return load(subject, **source)


def audit(
    subject: str | None,
    source: dict[str, Any],
    options: dict[str, Any],
    switches: dict[str, Any],
    wanted: Wanted,
) -> int:
    """Audit, show, and say whether the requirements are met."""
    wanted.check()
    throughput = Throughput(**switches)
    with Shown() as shown:
        result = run_audit(_load(subject, source, shown), progress=shown, throughput=throughput, **options)
    return finish(result, wanted)


def plan(
    subject: str | None, source: dict[str, Any], options: dict[str, Any], *, jobs: int, on: str, json: bool
) -> None:
    """Show what an audit would run."""
    with Shown() as shown:
        rows = run_plan(_load(subject, source, shown), **options)
        workers, wall = expected_wall(rows, on=on, jobs=jobs)
    total = sum(r.seconds for r in rows)
    if json:
        times = {"seconds": round(total, 2), "workers": workers, "wall": round(wall, 2)}
        document = {"schema": SCHEMA, "kind": "plan", **times, "properties": [vars(r) for r in rows]}
        sys.stdout.write(jsonlib.dumps(document, indent=1) + "\n")
        return
    table = Table("property", "forward", "backward", "trainings", "seconds", title=f"{options['profile']} audit")
    for r in rows:
        cells = (f"{r.forward:,}", f"{r.backward:,}", f"{r.trainings:g}", f"{r.seconds:.1f}")
        table.add_row(r.name, *(cells if r.skipped is None else ("", "", "", f"skipped: {r.skipped}")))
    console().print(table)
    sys.stdout.write(f"about {total:.0f} s on this machine\n")
    if workers > 1 or on != "local":
        pieces = sum(r.pieces for r in rows if r.skipped is None)
        sys.stdout.write(f"about {wall:.0f} s with {workers} workers ({pieces} pieces), their start-up included\n")


def repair(
    subject: str,
    methods: list[str],
    source: dict[str, Any],
    options: dict[str, Any],
    wanted: Wanted,
) -> int:
    """Repair, show the effects, and say whether the repaired subject meets the requirements."""
    chain = [from_text(m) for m in methods]
    wanted.check()
    out = wanted.out
    if out is not None:
        claim_subject(out)

    def keep(repaired: Repaired) -> None:
        final = repaired.steps[-1][1]
        if out is not None and spec_of(final.model) is None:
            print("assay: the repaired model is not saved: it holds what cannot be rebuilt", file=sys.stderr)
        elif out is not None:
            keep_subject(final, out)
        shown.say("auditing what was repaired")

    with Shown() as shown:
        given = _load(subject, source, shown)
        result = run_repair(given, *chain, on_model=keep, progress=shown, **options)
    return finish(result, wanted)


def compare(
    folders: list[str],
    trust: tuple[str, ...],
    options: dict[str, Any],
    *,
    require: str | None,
    out: Path | None,
    json: bool,
) -> int:
    """Audit several subjects, show the differences from the first, and say whether the others meet the requirements."""
    if len(folders) < 2:
        raise InputError(f"compare: {len(folders)} subject; expected at least two")
    rules = parse(require) if require is not None else []
    if out is not None:
        claim("--out", out)
    with Shown() as shown:
        subjects = [load(f, trust=trust) for f in folders]
        checked(options["profile"], options["only"], options["limit"])
        tested = [prepared(s, options["limit"], options["seed"], options["device"]).test.hash for s in subjects]
        for folder, test in zip(folders, tested, strict=True):
            if test != tested[0]:
                raise InputError(f"compare: {folder} has other test data than {folders[0]}; expected the same")
        audits = [run_audit(s, progress=shown, **options) for s in subjects]
    compared = [
        Effects(
            f"{folders[0]} and {f}", audits[0], [(f, a)], differences(audits[0], a), meta={"compared": [folders[0], f]}
        )
        for f, a in zip(folders[1:], audits[1:], strict=True)
    ]
    for k, effects in enumerate(compared):
        if out is not None:
            effects.save(out if len(compared) == 1 else out / str(k + 1))
    verdicts = [judge(rules, evidence(plain(e.to_dict()), f)) for f, e in zip(folders[1:], compared, strict=True)]
    for effects in compared if not json else []:
        terminal(effects, console())
    if json:
        document = {"schema": SCHEMA, "kind": "comparison", "pairs": [e.to_dict() for e in compared]}
        sys.stdout.write(jsonlib.dumps(document, indent=1) + "\n")
    return max(tell(v, f"{f}: ") for f, v in zip(folders[1:], verdicts, strict=True))
