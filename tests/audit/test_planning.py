"""The expected time on several workers, and what it comes to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from joblib.executor import get_memmapping_executor

from assay.audit import audit, expected_wall, plan, planning
from assay.audit.planning import Planned
from assay.runtime.store import Store
from assay.subject import Subject


def row(name: str, seconds: float, pieces: int = 1, skipped: str | None = None) -> Planned:
    return Planned(name, 0, 0, 0.0, seconds, skipped, pieces)


def test_pieces_are_spread_longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_startup", lambda on, workers: 1.0)
    rows = [row("a", 3), row("b", 8, pieces=4), row("c", 5), row("d", 99, skipped="no")]
    assert expected_wall(rows[:3]) == (1, 16)
    assert expected_wall(rows, jobs=2) == (2, 10.0)  # start-up, then 5, 2, 2 beside 3, 2, 2
    assert expected_wall(rows, jobs=100) == (100, 6.0)


def test_a_plan_on_two_workers_is_near_what_the_run_takes(digits: Subject, tmp_path: Path) -> None:
    only, ratios = ["accuracy", "robustness", "corruption", "explanation"], []
    for attempt in range(3):  # other work on the machine comes and goes
        get_memmapping_executor(2, max_nbytes=None).shutdown(wait=True, kill_workers=True)
        rows = plan(digits, only=only, profile="quick")
        assert {r.name: r.pieces for r in rows}["robustness.linf"] == 4
        _, wall = expected_wall(rows, jobs=2)
        start = time.perf_counter()
        audit(digits, only=only, jobs=2, store=Store(tmp_path / str(attempt)))
        ratios.append((time.perf_counter() - start) / wall)
        others = max(
            1.0, os.getloadavg()[0] / (os.cpu_count() or 1)
        )  # they slow the run down, not a plan's short passes
        if 1 / 3 <= ratios[-1] <= 3 * others:
            return
    pytest.fail(f"the runs took {ratios} times what the plans said")
