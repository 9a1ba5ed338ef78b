"""The command ``check``: recorded reports against a policy, without running or importing a model."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("check")(check_command)


def check_command(
    reports: Annotated[list[Path], typer.Argument(help="Recorded reports: report.json files, or their folders.")],
    require: Annotated[str, typer.Option("--require", help="'calibration.ece<=0.05 and ...' or a policy file.")],
    junit: Annotated[Path | None, typer.Option("--junit", help="JUnit XML, for one report.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table on stdout.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Check recorded reports against requirements, without running anything."""
    from assay.cli.verdicts import STATES, table, tell
    from assay.gates import evidence, judge, parse, read_report
    from assay.gates import junit as write_junit
    from assay.runtime.errors import InputError

    if json and markdown:
        raise InputError("check: --json with --markdown; expected one of them")
    if junit is not None and len(reports) > 1:
        raise InputError(f"check: --junit with {len(reports)} reports; expected one")
    rules = parse(require)
    found = [evidence(read_report(path), str(path)) for path in reports]
    verdicts = [judge(rules, one) for one in found]
    if junit is not None:
        write_junit(junit, found[0], verdicts[0])
    if json:
        listed = [
            {
                "report": str(p),
                "name": e.name,
                "met": not any(v.blocks for v in vs),
                "verdicts": [v.to_dict() for v in vs],
            }
            for p, e, vs in zip(reports, found, verdicts, strict=True)
        ]
        document = {"schema": "assay/1", "kind": "check", "reports": listed}
        sys.stdout.write(jsonlib.dumps(document, indent=1) + "\n")
    for path, vs in zip(reports, verdicts, strict=True):
        if markdown:
            sys.stdout.write(table(path, vs))
        elif not json:
            sys.stdout.writelines(f"{STATES[v.state]:9} {v.requirement}: {v.seen}\n" for v in vs)
    where = [f"{p}: " if len(reports) > 1 else "" for p in reports]
    raise typer.Exit(max(tell(vs, w) for w, vs in zip(where, verdicts, strict=True)))
