"""The property that only asks for decisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from assay.audit.decision import PROPERTY
from assay.audit.property import Context
from assay.data import Data
from assay.subject import Access, Subject


@pytest.fixture(scope="module")
def halves() -> Subject:
    """Class 1 where the first of four numbers is above one half: the distance to the boundary is known."""
    head = nn.Linear(4, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[1, 0] = 1.0
        head.bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.rand(24, 4, generator=torch.Generator().manual_seed(0))
    data = Data(x=x, y=(x[:, 0] > 0.5).long(), classes=("low", "high"), name="halves")
    return Subject(model=head, test=data, holdout=data, access=Access.DECISION)


def test_distances_are_those_to_the_boundary(halves: Subject) -> None:
    assert PROPERTY.missing(halves) is None
    section = PROPERTY.measure(halves, Context(profile="quick", limit=24))
    found = {m.name: m for m in section.metrics}
    exact = (halves.test.x[:, 0] - 0.5).abs().numpy()
    assert found["robustness.decision.distance"].value == pytest.approx(float(np.median(exact)), rel=0.1)
    limit = found["robustness.decision.accuracy@0.25"]
    assert limit.value == pytest.approx(float((exact[:16] > 0.25).mean()), abs=0.15)
    assert found["robustness.decision.accuracy@2"].value == 0
    assert section.findings
