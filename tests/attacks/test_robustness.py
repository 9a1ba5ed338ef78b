"""The robustness property on the embedded digits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import assay
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
