"""An audit that is interrupted or killed goes on from what was finished, to the same report."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_processes import Cli, start

OPTIONS = ("--only", "accuracy,calibration,ood,cost", "--limit", "80")
TIMED = ("cost.latency", "cost.throughput")
STALLED = """
import time
from assay.audit import run
whole = run.run_property
def stalled(name, *rest):
    if name != "accuracy":
        time.sleep(60)
    return whole(name, *rest)
run.run_property = stalled
from assay.cli import main
main()
"""


def measured(path: Path) -> dict[str, Any]:
    """All that a report says, but for what is timed."""
    sections = json.loads(path.read_text())["sections"]
    for section in sections.values():
        section.pop("seconds")
    cost = sections.pop("cost")
    sections["cost"] = [m for m in cost["metrics"] if not m["name"].startswith(TIMED)]
    return sections


@pytest.mark.parametrize(("signalled", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_audit_resumes(
    signalled: signal.Signals, code: int, cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("audit", folder, *OPTIONS, "--json", "--out")
    process = start(tmp_path / "cache", *words, tmp_path / "stopped", code=STALLED)
    assert process.stderr is not None
    for line in process.stderr:
        if line == "assay: 1/4 accuracy\n":
            break
    process.send_signal(signalled)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert err.splitlines() == (
        ["assay: interrupted; what was finished is kept, and the same command goes on from there"] if code > 0 else []
    )
    assert not (tmp_path / "stopped" / "report.json").exists()
    assert len(list((tmp_path / "cache").glob("*/*.npz"))) == 1

    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    resumed = cli(*words, tmp_path / "stopped")
    assert resumed.code == 0
    assert "assay: 1/4 measured before" in resumed.err
    assert "accuracy" not in resumed.err
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "other"))
    whole = cli(*words, tmp_path / "whole")
    assert "assay: 0/4 measured before" in whole.err
    assert measured(tmp_path / "stopped" / "report.json") == measured(tmp_path / "whole" / "report.json")
