"""How verdicts on requirements are told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from assay.gates import Verdict
from assay.runtime.markdown import escape

STATES = {"met": "met", "failed": "not met", "undecided": "undecided"}


def tell(verdicts: Sequence[Verdict], where: str = "") -> int:
    """Print every verdict that is not plainly met; 1 when one of them stops a sign-off."""
    for v in verdicts:
        if v.state == "undecided":
            print(f"assay: {where}requirement undecided: {v}", file=sys.stderr)
        elif v.state == "failed":
            word = "requirement not met" if v.blocks else "warning, not met"
            print(f"assay: {where}{word}: {v}", file=sys.stderr)
    return 1 if any(v.blocks for v in verdicts) else 0


def table(path: Path, verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table."""
    lines = [f"### {escape(str(path))}", "", "| | requirement | seen | severity | reason |", "|---|---|---|---|---|"]
    for v in verdicts:
        cells = (STATES[v.state], v.requirement, v.seen, v.severity, v.reason)
        lines.append("| " + " | ".join(map(escape, cells)) + " |")
    return "\n".join(lines) + "\n\n"
