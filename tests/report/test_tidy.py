"""The tidy table: a row a metric and stage, with the same columns for every report."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from assay.audit.property import Section
from assay.audit.result import Audit, Effects
from assay.report.tidy import COLUMNS
from assay.runtime.metric import Metric


def table(result: Audit | Effects, folder: Path) -> pd.DataFrame:
    return pd.read_parquet(result.save(folder) / "metrics.parquet")


def test_an_audit_has_the_rows_of_its_frame(audit: Audit, tmp_path: Path) -> None:
    found, frame = table(audit, tmp_path / "run 1"), audit.to_frame()
    assert list(found.columns) == list(COLUMNS)
    assert list(found["metric"]) == list(frame.index)
    assert set(found["run"]) == {"run 1"}
    assert set(found["stage"]) == {"audit"}
    assert set(found["data"]) == {"digits:test"}
    again = found.set_index("metric")
    for column in ("value", "low", "high", "n"):
        pd.testing.assert_series_equal(
            again[column].astype(float), frame[column].astype(float), check_names=False, check_index=False
        )
    for column in ("unit", "how", "better", "interval"):
        assert again[column].where(again[column].notna(), None).tolist() == (
            frame[column].where(frame[column].notna(), None).tolist()
        )
    owner = {m.name: key for key, s in audit.sections.items() for m in s.metrics}
    assert dict(zip(found["metric"], found["property"], strict=True)) == owner


def test_a_repair_has_every_stage_and_the_differences(effects: Effects, tmp_path: Path) -> None:
    found = table(effects, tmp_path / "repair")
    n = len(effects.before.metrics)
    assert found.groupby("stage", sort=False).size().to_dict() == {
        "before": n,
        "step": 2 * n,
        "after": n,
        "control": n,
        "difference": len(effects.rows),
    }
    assert found[found["stage"] == "step"].groupby("step")["method"].first().to_dict() == {1: "one", 2: "two"}
    ece = found[found["metric"] == "calibration.ece"].set_index("stage")
    row = effects["calibration.ece"]
    assert ece.loc["difference", ["value", "low", "high", "p"]].tolist() == pytest.approx(
        [row.difference, row.low, row.high, row.p]
    )
    assert bool(ece.loc["difference", "significant"]) is row.significant
    assert ece.loc["after", "value"] - ece.loc["before", "value"] == pytest.approx(row.difference)
    assert ece.loc["control", "value"] == pytest.approx(row.control)


def test_tables_of_different_runs_stack(audit: Audit, effects: Effects, tmp_path: Path) -> None:
    files = [
        table(audit, tmp_path / "a"),
        table(effects, tmp_path / "b"),
        table(Audit("e", "quick", 0, {}, {}), tmp_path / "c"),
    ]
    assert len({tuple(f.columns) for f in files}) == 1
    both = pd.read_parquet([tmp_path / "a" / "metrics.parquet", tmp_path / "b" / "metrics.parquet"])
    assert set(both["run"]) == {"a", "b"}
    assert len(files[2]) == 0


def test_numbers_and_names_of_any_size_are_kept(tmp_path: Path) -> None:
    section = Section(metrics=[Metric("cost.flops\ud800", 10**17 + 1, 0, math.inf)])
    found = table(Audit("a\ud800", "quick", 2**70, {"p": section}, {"p": "P"}), tmp_path)
    row = found.iloc[0]
    assert (row["value"], row["low"], row["subject"], row["metric"]) == (1e17, 0.0, "a?", "cost.flops?")
    assert math.isnan(row["high"])
    assert row["seed"] == str(2**70)
