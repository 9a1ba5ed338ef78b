"""What a command does with its result: reports, requirements, JUnit, trackers, and the exit code."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from assay.audit.result import Audit, Effects
from assay.cli.folder import claim
from assay.cli.verdicts import tell
from assay.gates import evidence, judge, junit, parse
from assay.gates.junit import check_file
from assay.report import terminal
from assay.report.files import plain


@dataclass(frozen=True)
class Wanted:
    """Where a result goes, and what it must meet."""

    require: str | None = None
    out: Path | None = None
    json: bool = False
    junit: Path | None = None
    log: str | None = None

    def check(self) -> None:
        """Fail before the work, not after it."""
        if self.require is not None:
            parse(self.require)
        if self.out is not None:
            claim("--out", self.out)
        if self.junit is not None:
            check_file(self.junit)
            claim("--junit", self.junit.parent)
        if self.log is not None:
            from assay.report import trackers

            trackers.check(self.log)


def console() -> Console:
    """Standard output; wide enough for a table's row on one line where no terminal sets the width."""
    found = Console()
    return found if found.is_terminal else Console(width=132)


def finish(result: Audit | Effects, wanted: Wanted) -> int:
    """Save, judge, log, show; 1 when a requirement is not met. What is asked for is saved before anything can fail."""
    if wanted.out is not None:
        result.save(wanted.out)
    found = evidence(plain(result.to_dict()), result.name)
    verdicts = judge(parse(wanted.require), found) if wanted.require is not None else []
    if wanted.junit is not None:
        junit(wanted.junit, found, verdicts)
    if wanted.json:
        sys.stdout.write(result.to_json() + "\n")
    else:
        terminal(result, console())
        if wanted.out is not None:
            sys.stdout.write(f"report: {wanted.out / 'report.html'}\n")
    code = tell(verdicts)
    if wanted.log is not None:
        from assay.report import trackers

        print(f"assay: logged to {trackers.log(result, wanted.log, wanted.out)}", file=sys.stderr, flush=True)
    return code
