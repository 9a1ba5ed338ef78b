"""The tables of calibrators on the page are those of the kept measurements, with every calibrator in them."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.methods import exported
from assay.runtime.statistics import t_interval

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    sys.path.insert(0, str(DOCS))
    try:
        return runpy.run_path(str(DOCS / "calibrators.py"))
    finally:
        sys.path.remove(str(DOCS))


def test_tables_are_those_of_the_runs(script: dict[str, Any]) -> None:
    page, rows = (DOCS / "calibrators.md").read_text(encoding="utf-8"), script["finished"]()
    if any(sum(r["data"] == source for r in rows) < script["SEEDS"] for source in script["TRAINED"]):
        pytest.skip("docs/runs/calibrators.jsonl is not complete: run `make calibrators`")
    for source in script["TRAINED"]:
        runs = [r["methods"] for r in rows if r["data"] == source]
        assert len(runs) == script["SEEDS"] >= 5
        assert script["table"](rows, source) in page
        assert {name for name in runs[0] if name != script["NONE"]} == {
            name.partition(".")[2] for name in exported("calibrator")
        }
        assert all(r["none"]["accuracy"] == r["TemperatureScaling"]["accuracy"] for r in runs)


def test_a_cell_is_the_mean_and_half_the_interval(script: dict[str, Any]) -> None:
    values = np.array([[0.01, 0.02, 0.03, 0.02, 0.02], [0.04, 0.05, 0.06, 0.05, 0.05]])
    low, high = t_interval(values[0])
    assert script["cell"](values, 0, "ece") == f"**2.00 ± {50 * (high - low):.2f}**"
    assert script["cell"](values, 1, "nll").startswith("0.050 ±")
    assert script["cell"](values, 1, "accuracy").startswith("**5.00")
