"""The robustness property on the embedded digits."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch

import assay
from assay.attacks import AutoAttack
from assay.audit.property import Context, Section
from assay.audit.robustness import PROPERTIES, SIZES


@pytest.fixture(scope="module")
def subject():
    return assay.load("digits")


@pytest.mark.parametrize("prop", PROPERTIES, ids=lambda p: p.name)
def test_accuracy_falls_with_eps_and_below_noise(prop, subject):
    section = prop.measure(subject, Context(limit=100))
    values = {m.name: m.value for m in section.metrics}
    norm = prop.name.split(".")[1]
    curve = [values[f"{prop.name}.accuracy@{e:g}"] for e in SIZES[norm]]
    noise = [values[f"{prop.name}.noise@{e:g}"] for e in SIZES[norm]]
    assert all(a >= b for a, b in itertools.pairwise(curve))
    assert curve[-1] < 0.2 < 0.6 < noise[-1]
    assert len(section.samples[f"{prop.name}.accuracy@{SIZES[norm][0]:g}"].values) == 100
    assert section.headline[0] in values
    assert section.findings[0][0] == pytest.approx(section.plots[0].series["PGD"]["y"][0] - values[section.headline[0]])
    assert Section.from_arrays(section.to_arrays()).to_dict() == section.to_dict()
    cost = prop.cost(subject, Context(limit=100))
    assert cost.backward == 100 * 4 * 10


def test_samples_are_paired_between_models(subject):
    other = subject.with_model(assay.nets.SmallCNN((1, 8, 8), 10))
    a, b = (PROPERTIES[0].measure(s, Context(limit=60)).samples for s in (subject, other))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[k].index, b[k].index) for k in a)


class Rounded(torch.nn.Module):
    """A model that sees its input in steps of 1 / 15: its gradient is zero, its decisions hardly change."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((x * 15).round() / 15)


@pytest.mark.parametrize("masked", [False, True])
def test_deep_runs_autoattack_and_tells_masked_gradients(masked, subject, monkeypatch):
    monkeypatch.setattr("assay.audit.robustness.AutoAttack", partial(AutoAttack, steps=10, budget=300))
    model = Rounded(subject.model) if masked else subject.model
    section = PROPERTIES[0].measure(subject.with_model(model), Context(profile="deep", limit=24))
    values = {m.name: m.value for m in section.metrics}
    found = [text for _, text in section.findings if text.startswith("Gradients look masked")]
    assert len(found) == masked
    if masked:
        assert "the gradient is exactly zero at 24 of 24 samples" in found[0]
        assert "without a limit" in found[0]
        assert values["robustness.linf.autoattack@0.1"] < values["robustness.linf.accuracy@0.1"]
    else:
        assert values["robustness.linf.autoattack@0.1"] <= values["robustness.linf.accuracy@0.1"]
