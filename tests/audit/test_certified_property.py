"""Certified robustness: tightness in the deep profile only, of ReLU networks only."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from assay.audit.certified import measure_linf
from assay.audit.property import Context
from assay.certify import propagation_tightness
from assay.subject import Subject

NAME = "certified.linf.tightness@0.01"


def test_tightness_is_measured_in_the_deep_profile(digits: Subject) -> None:
    quick, deep = (measure_linf(digits, Context(profile, limit=60)) for profile in ("quick", "deep"))
    assert NAME not in {m.name for m in quick.metrics}
    (metric,) = (m for m in deep.metrics if m.name == NAME)
    data = digits.test.limit(60, seed=0)
    assert metric.value == pytest.approx(float(propagation_tightness(digits.model, data.x, data.y, eps=0.01).mean()))
    assert metric.better is None
    assert 0 < (metric.low or 0) < (metric.value or 0) < (metric.high or 0) < 1
    assert len(quick.metrics) + 1 == len(deep.metrics)


def test_a_layer_that_is_not_linear_leaves_the_rest(digits: Subject) -> None:
    torch.manual_seed(0)
    curved = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    section = measure_linf(replace(digits, model=curved), Context("deep", limit=20))
    assert section.metrics
    assert NAME not in {m.name for m in section.metrics}
    assert any("Tanh" in note for note in section.notes)
