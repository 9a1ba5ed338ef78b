"""Bounds on derivatives hold at sampled points, are exact where the region is a point, and bound differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.certify.bounds import LpBall
from assay.certify.bounds.jacobian import jacobian_bounds, local_lipschitz
from assay.runtime.errors import InputError

NETS = {
    "mlp": (nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), (3,)),
    "smooth": (nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 2), nn.Softplus()), (3,)),
    "early softplus": (nn.Sequential(nn.Linear(3, 6), nn.Softplus(2.0, threshold=0.5), nn.Linear(6, 2)), (3,)),
    "convolution": (
        nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(8, 2), nn.Sigmoid()),
        (1, 4, 4),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_derivatives_are_enclosed(name: str) -> None:
    torch.manual_seed(0)
    model, shape = NETS[name]
    model, x, eps = model.double(), torch.randn(2, *shape, dtype=torch.float64), 0.1
    points = x + eps * (torch.rand(300, *x.shape, dtype=torch.float64) * 2 - 1)
    points[::2] = x + eps * torch.randn(150, *x.shape, dtype=torch.float64).sign()
    true = torch.func.vmap(torch.func.jacrev(lambda t: model(t[None])[0]))(points.flatten(0, 1))
    true = true.unflatten(0, points.shape[:2])
    radius = torch.tensor([eps, eps, 0.0, 0.0]).reshape(4, *[1] * len(shape))
    twice = jacobian_bounds(model, torch.cat((x, x)), LpBall(eps=radius))
    assert twice[0].shape == (4, 2, *shape)
    (lower, lower_point), (upper, upper_point) = (t.split(2) for t in twice)
    assert (true >= lower - 1e-9).all()
    assert (true <= upper + 1e-9).all()
    loose = jacobian_bounds(model, x, LpBall(eps=eps), method="IBP")
    assert (upper - lower).mean() <= (loose[1] - loose[0]).mean()
    here = torch.func.vmap(torch.func.jacrev(lambda t: model(t[None])[0]))(x)
    assert torch.allclose(lower_point, here, atol=1e-8)
    assert torch.allclose(upper_point, here, atol=1e-8)


def test_differences_stay_within_the_local_constant() -> None:
    torch.manual_seed(1)
    model, x = NETS["mlp"][0].double(), torch.randn(2, 3, dtype=torch.float64)
    C = torch.tensor([[1.0, -1.0]])
    a, b = (x + 0.2 * (torch.rand(400, 2, 3, dtype=torch.float64) * 2 - 1) for _ in range(2))
    change = ((model(a) - model(b)) @ C[0].double()).abs()
    constant = local_lipschitz(model, x, LpBall(eps=0.2), C, norm=2)
    assert constant.shape == (2, 1)
    assert (change <= constant[:, 0] * (a - b).norm(dim=2) + 1e-9).all()
    linear = nn.Linear(3, 2).double()
    for norm, dual in ((1, math.inf), (2, 2), (math.inf, 1)):
        found = local_lipschitz(linear, x, LpBall(), norm=norm)
        assert torch.allclose(found, linear.weight.norm(p=dual, dim=1).expand(2, 2))
    with pytest.raises(InputError, match="norm is 3"):
        local_lipschitz(model, x, LpBall(), norm=3)
    with pytest.raises(InputError, match="expected"):
        jacobian_bounds(model, x, LpBall(), torch.ones(1, 5))
