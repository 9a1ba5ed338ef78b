"""The table of unlearners: every method is tried at its settings, and the page holds the rows that are kept."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unlearners_page", DOCS / "unlearners.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_method_is_tried_at_one_budget(script: ModuleType) -> None:
    assert {"SCRUB", "LAF", "SISA", "Retrain", "PruneFirstThenUnlearn", "ModHiFiU"} <= script.methods().keys()
    for name in script.methods():
        tried = script.settings(name)
        assert len(tried) == (1 if name in ("Retrain", "SISA") else len(script.GRIDS.get(name, ("", range(4)))[1]))
        assert len(set(map(repr, tried.values()))) == len(tried)
        for method in tried.values():
            assert getattr(method, "epochs", 5) == 5
            assert not hasattr(method, "epochs") or getattr(method, "batch_size", 64) == 64


def test_every_method_is_run_on_every_kind(script: ModuleType) -> None:
    wanted = script.wanted(None, script.SETS, list(script.SAMPLES))
    assert len(set(wanted)) == len(wanted)
    assert len(wanted) == 2 * 5 * len(script.methods())
    done = {(r["data"], r["set"], r["method"]) for r in script.kept()}
    assert set(wanted) <= done


def test_a_table_is_sorted_by_gap_below_its_references(script: ModuleType) -> None:
    place = {"data": "mnist", "set": "class 3", "forgotten": 5, "retained": 9, "setting": ""}
    gaps = {"A": 0.3, "(retrained)": 0.2, "B": 0.1, "(before)": 0.9}
    rows = [{**place, "method": m, "gap": g, "relearn_steps": 12.0} for m, g in gaps.items()]
    rows.append({**place, "method": "C", "setting": "lr=1: the loss is nan"})
    lines = script.tables(rows).splitlines()
    assert lines[0] == "## mnist, class 3: 5 forgotten, 9 retained"
    assert [line.split(" | ")[0][2:] for line in lines[4:9]] == ["(before)", "(retrained)", "B", "A", "C"]
    assert "0.100" in lines[6]
    assert " 12 " in lines[6]


def test_the_page_holds_the_rows_that_are_kept(script: ModuleType) -> None:
    assert script.tables(script.kept()) in (DOCS / "unlearners.md").read_text()
