"""An audit of the digits subject with synthetic sections for every kind of plot, and effects on it."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import assay
from assay.audit import accuracy
from assay.audit.property import Context, Plot, Section
from assay.audit.result import Audit, Effects, differences
from assay.runtime.metric import Metric, measured

HOSTILE = '<script>alert("x")</script>|`*[a](b)\n---\nx: y'


@functools.cache
def digits_section() -> Section:
    return accuracy.measure(assay.load("digits"), Context())


def plots() -> list[Plot]:
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 41)
    band = {"x": x.tolist(), "y": (1 - x**2).tolist(), "low": (0.9 - x**2).tolist(), "high": (1.1 - x**2).tolist()}
    noise = {"x": rng.normal(size=2500).tolist(), "y": rng.normal(size=2500).tolist()}
    other = {"x": [0.5, None, 2.0], "y": [1.0, 2.0, float("inf")]}
    z = np.outer(np.arange(-3, 4), np.arange(7)).astype(float).tolist()
    pictures = rng.integers(0, 256, (30, 8, 8)).tolist()
    return [
        Plot(
            "line",
            "Robust accuracy",
            {"PGD": band, "noise": {"x": x.tolist(), "y": (1 - 0.3 * x).tolist()}},
            "eps",
            "accuracy",
        ),
        Plot(
            "line",
            "Reliability",
            {"model": {"x": [0, 0.5, 1], "y": [0.1, None, 0.9]}},
            "confidence",
            "accuracy",
            "diagonal",
        ),
        Plot("scatter", "Members", {"in": noise, "out": other}, "loss", "score", 0.5),
        Plot("bar", "Groups", {"before": {"x": ["a", "b"], "y": [1, 2]}, "after": {"x": ["a", "b"], "y": [-1, 3]}}),
        Plot(
            "bar",
            "Long names",
            {"": {"x": [f"a long class name {k}" for k in range(9)], "y": list(range(9))}},
            "c",
            "n",
            3,
        ),
        Plot("heatmap", "Signed", {"": {"z": z, "x": list("abcdefg"), "y": list("tuvwxyz")}}, "column", "row"),
        Plot("images", "Examples", {"": {"images": pictures, "captions": [HOSTILE] * 30}}),
        Plot("line", "Empty", {}),
        Plot("heatmap", "Not numbers", {"": {"z": [["a"]]}}),
    ]


def make_audit(shift: float = 0.0, name: str = "digits <b>CNN</b>", seed: int = 0) -> Audit:
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(9).random(300)
    section = Section(plots=plots(), notes=[f"A note {HOSTILE}"], headline=["privacy.mia.auc", "calibration.ece"])
    index = np.arange(300)
    for metric, better, move in (("privacy.mia.auc", "lower", 0.08), ("calibration.ece", "lower", -0.12)):
        values = 0.8 * base + shift * (move + 0.05 * rng.standard_normal(300))
        section.add(measured(metric, values, index, better=better, how=f"how {HOSTILE}"))
    section.add(Metric("cost.parameters", 12_345, unit="parameters", better="lower"))
    section.add(Metric("privacy.tpr", None, better="lower", how="below 10/n"))
    section.add(Metric("odd.nan", math.nan, math.nan, math.inf))
    section.add(Metric(f"class.{HOSTILE}", math.inf))
    section.tables["Suspects"] = [{"index": 3, "given": HOSTILE, "score": 0.912345}, {"index": 4, "extra": None}]
    section.findings += [(0.9, f"Members can be told apart {HOSTILE}.")]
    sections = {
        "accuracy": digits_section(),
        "synthetic": section,
        "empty": Section(),
        "fairness": Section(skipped="needs groups; the subject has none"),
    }
    titles = {"accuracy": "Accuracy", "synthetic": f"Synthetic {HOSTILE}", "empty": "Empty", "fairness": "Fairness"}
    meta = {"task": "classification", "data": "digits:test", "samples": 638, "versions": {"assay": "0.1.0"}}
    return Audit(name, "quick", 0, sections, titles, meta)


def make_effects(control: bool = True) -> Effects:
    before, after = make_audit(), make_audit(1.0, seed=1)
    other = make_audit(0.05, seed=2) if control else None
    rows = differences(before, after, other)
    forgetting = [{"model": "subject", "forget accuracy": 0.99}, {"model": "retrained", "forget accuracy": 0.1}]
    return Effects("unlearn.SalUn", before, [("one", before), ("two", after)], rows, other, forgetting)


@pytest.fixture(scope="session")
def audit() -> Audit:
    return make_audit()


@pytest.fixture(scope="session")
def effects() -> Effects:
    return make_effects()
