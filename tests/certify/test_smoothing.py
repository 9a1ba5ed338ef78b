"""The binomial bound of randomised smoothing against closed forms."""

import pytest
import torch
from torch import nn

from assay.certify import RandomizedSmoothing
from assay.certify.smoothing import lower_bound


def test_clopper_pearson() -> None:
    bound = lower_bound(torch.tensor([0, 1, 50]), 50, 0.01)
    assert bound[0] == 0
    assert float(bound[1]) == pytest.approx(1 - 0.99 ** (1 / 50))
    assert float(bound[2]) == pytest.approx(0.01 ** (1 / 50))


def test_largest_radius_and_abstention() -> None:
    flat = nn.Linear(2, 2)
    with torch.no_grad():
        flat.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        flat.bias.zero_()
    x, y = torch.tensor([[50.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0])
    method = RandomizedSmoothing(n0=20, n=200)
    found = method.certify(flat, x, y)
    assert float(found.radius[0]) == pytest.approx(method.largest_radius)
    assert found.prediction.tolist() == [0, -1]
    assert found.radius[1] == 0
