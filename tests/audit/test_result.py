"""Differences between audits: paired by index, corrected over the table, and with a direction."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from assay.audit import audit, differences
from assay.audit.property import Plot, Section
from assay.audit.result import Audit, Effect, Effects
from assay.runtime.metric import Metric, Samples, measured, resampled
from assay.subject import Subject


def made(name: str, values: dict[str, np.ndarray], index: np.ndarray | None = None) -> Audit:
    section = Section()
    for metric, v in values.items():
        section.add(measured(metric, v, np.arange(len(v)) if index is None else index, better="higher"))
    return Audit(name, "quick", 0, {"p": section}, {"p": "P"})


@pytest.fixture(scope="module")
def before(digits: Subject) -> Audit:
    return audit(digits, only=["accuracy"])


def test_identical_audits_differ_nowhere(digits: Subject, before: Audit) -> None:
    rows = differences(before, audit(digits, only=["accuracy"]))
    assert [r.name for r in rows] == list(before.metrics)
    assert not any(r.significant for r in rows)
    assert {r.difference for r in rows} == {0.0}
    assert {r.verdict for r in rows} == {""}


def test_a_really_worse_model_is_marked_worse_and_the_reverse_better(digits: Subject, before: Audit) -> None:
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        last = [p for n, p in model.named_parameters() if n.endswith("weight")][-1]
        last[:4] = 0
    worse = audit(digits.with_model(model), only=["accuracy"])
    there = {r.name: r for r in differences(before, worse)}["accuracy.top1"]
    back = {r.name: r for r in differences(worse, before)}["accuracy.top1"]
    assert there.verdict == "worse"
    assert there.difference is not None
    assert there.low is not None
    assert there.high is not None
    assert there.low <= there.difference <= there.high < 0
    assert back.verdict == "better"


def test_differences_are_paired_by_index_not_by_position() -> None:
    values = np.linspace(0, 1, 60)
    rows = np.random.default_rng(0).permutation(60)
    same = differences(made("a", {"m": values}), made("b", {"m": values[rows]}, rows))[0]
    assert (same.difference, same.low, same.high, same.significant) == (0.0, 0.0, 0.0, False)
    part = differences(made("a", {"m": values}), made("b", {"m": values[10:] + 0.5}, np.arange(10, 60)))[0]
    assert part.difference == pytest.approx(0.5)
    assert part.significant


def test_metrics_on_resamples_are_paired_where_the_resamples_are_the_same() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=200)  # what both models owe to the resample, far larger than what sets them apart

    def one(value: float, noise: float, source: str) -> Audit:
        section = Section()
        section.add(resampled("p.r", value, value + shared + noise * rng.normal(size=200), source))
        return Audit("a", "quick", 0, {"p": section}, {"p": "P"})

    (effect,) = differences(one(1.0, 0.01, "x"), one(1.1, 0.01, "x"))
    assert effect.significant
    assert effect.low is not None
    assert effect.high is not None
    assert effect.low < 0.1 < effect.high
    assert effect.high - effect.low < 0.1
    (other,) = differences(one(1.0, 0.01, "x"), one(1.1, 0.01, "y"))
    assert other.low is None
    assert not other.significant


def test_a_difference_of_two_groups_is_paired_too() -> None:
    rng = np.random.default_rng(0)
    group, index = (np.arange(400) % 2).astype(float), np.arange(400)
    right = (rng.random(400) < 0.5).astype(float)
    wide = np.where(group == 1, 1.0, right)

    def one(correct: np.ndarray) -> Audit:
        section = Section()
        section.add(measured("p.gap", np.stack([correct, group], 1), index, statistic="gap"))
        return Audit("a", "quick", 0, {"p": section}, {"p": "P"})

    (effect,) = differences(one(right), one(wide))
    assert effect.difference == pytest.approx(1 - right[group == 1].mean())
    assert effect.significant


def test_holm_corrects_over_the_whole_table() -> None:
    """An effect that stands alone (p about 0.01) falls beside forty metrics without one."""
    rng = np.random.default_rng(3)
    base = {f"m{k}": rng.normal(size=200) for k in range(40)}
    shifted = {k: v + rng.permutation(np.r_[np.full(100, 0.1), np.full(100, -0.1)]) for k, v in base.items()}
    noise = rng.normal(size=200)
    shifted["m0"] = base["m0"] + (noise - noise.mean()) / noise.std() * 1.0 + 2.6 / 200**0.5
    alone = differences(made("a", {"m0": base["m0"]}), made("b", {"m0": shifted["m0"]}))[0]
    table = {r.name: r for r in differences(made("a", base), made("b", shifted))}
    assert alone.p is not None
    assert 0.05 / 40 < alone.p < 0.05
    assert alone.significant
    assert table["m0"].p == alone.p
    assert not table["m0"].significant


def test_metrics_of_only_one_audit_and_unresolved_values_are_left_out_or_open() -> None:
    a = Audit("a", "quick", 0, {"p": Section(metrics=[Metric("x", 1.0), Metric("y", None), Metric("z", 1.0)])}, {})
    b = Audit("b", "quick", 0, {"p": Section(metrics=[Metric("x", 3.0), Metric("y", 2.0)])}, {})
    rows = {r.name: r for r in differences(a, b, a)}
    assert set(rows) == {"x", "y"}
    assert (rows["x"].difference, rows["x"].p, rows["x"].control) == (2.0, None, 1.0)
    assert rows["y"].difference is None
    assert rows["y"].verdict == ""


def test_a_change_without_a_direction_is_only_changed() -> None:
    assert Effect("m", 1, 2, difference=1.0, significant=True).verdict == "changed"
    assert Effect("m", 1, 2, difference=1.0, significant=True, better="lower").verdict == "worse"


def test_dicts_are_strict_json_even_where_numbers_are_not_finite() -> None:
    section = Section(
        metrics=[Metric("m", float("nan"), high=float("inf"))],
        samples={"m": Samples(np.zeros((1, 1)), np.zeros(1, int))},
        plots=[Plot("line", "t", {"a": {"x": [0.0, 1.0], "y": (float("nan"), float("-inf"))}})],
        tables={"t": [{"v": float("inf")}]},
    )
    result = Audit("a", "quick", 0, {"p": section}, {"p": "P"}, {"x": float("nan")})
    effects = Effects("e", result, [("m", result)], [Effect("m", float("nan"), 1.0)], meta={"s": [1.0]})
    for shown in (result, effects):
        assert "NaN" not in json.dumps(shown.to_dict(), allow_nan=False)
        assert json.loads(shown.to_json())["schema"] == "assay/1"
    plot = result.to_dict()["sections"]["p"]["plots"][0]
    assert plot["series"]["a"]["y"] == [None, None]
