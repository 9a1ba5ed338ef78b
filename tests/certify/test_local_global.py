"""The error of a network is below the telescoped errors of its layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from assay.certify import global_error_bound
from assay.certify.local_global import _conv_norm
from assay.nets import MLP, ResNet, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded


def disturbed(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    for p in other.parameters():
        p.data *= (torch.rand_like(p) < 0.8).float()
    return other


def test_the_spectral_bound_holds_on_random_networks() -> None:
    for k in range(20):
        with seeded(k, "nets"):
            model = MLP((6,), 4, (9, 7)) if k % 2 else SmallCNN((2, 8, 8), 4, (4, 5), 6)
            x = torch.randn(15, *((6,) if k % 2 else (2, 8, 8)))
            bound, measured = global_error_bound(model, disturbed(model), x)
        assert 0 < measured <= bound


def test_one_changed_last_layer_is_exact_and_equal_networks_have_none() -> None:
    with seeded(0, "last"):
        model, x = MLP((6,), 4, (9,)), torch.randn(15, 6)
    other = copy.deepcopy(model)
    other.head.weight.data[:, 2] = 0
    for method in ("spectral", "empirical"):
        bound, measured = global_error_bound(model, other, x, method)
        with torch.no_grad():
            direct = float((model(x) - other(x)).norm(dim=1).mean())
        assert bound == pytest.approx(measured, rel=1e-9)
        assert measured == pytest.approx(direct, rel=1e-5)
        assert global_error_bound(model, model, x, method) == (0.0, 0.0)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 0, 2), (2, 2, 1)])
def test_the_norm_of_a_convolution_is_never_below_its_matrix(stride: int, padding: int, dilation: int) -> None:
    with seeded(stride + padding, "conv"):
        layer = nn.Conv2d(2, 3, 3, stride, padding, dilation, bias=False).double().requires_grad_(False)
    units = torch.eye(2 * 36, dtype=torch.float64).reshape(72, 2, 6, 6)
    exact = float(torch.linalg.matrix_norm(layer(units).flatten(1), 2))
    assert exact <= _conv_norm(layer, units) * (1 + 1e-9)
    assert stride > 1 or _conv_norm(layer, units) <= 1.5 * exact


def test_batch_norm_and_pools() -> None:
    with seeded(0, "bn"):
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)
        ).eval()
        model[1].running_var.uniform_(0.1, 2)
        bound, measured = global_error_bound(model, disturbed(model), torch.rand(8, 1, 8, 8))
    assert 0 < measured <= bound


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, divisor_override=1), nn.MaxPool2d(2, 2, dilation=2)])
def test_pools_that_may_stretch_distances_are_refused(pool: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), pool, nn.Flatten())
    with pytest.raises(InputError, match="no Lipschitz constant of"):
        global_error_bound(model, disturbed(model), torch.rand(4, 1, 8, 8))


def test_errors() -> None:
    x = torch.rand(4, 3, 8, 8)
    model = ResNet(width=4)
    with pytest.raises(InputError, match="chain"):
        global_error_bound(model, model, x)
    plain = SmallCNN((3, 8, 8), 4, (4, 5), 6)
    with pytest.raises(InputError, match="unknown method"):
        global_error_bound(plain, plain, x, "other")
    with pytest.raises(InputError, match="same shapes"):
        global_error_bound(plain, SmallCNN((3, 8, 8), 4, (4, 6), 6), x)
    odd = nn.Sequential(nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(108, 2))
    with pytest.raises(InputError, match="Lipschitz constant of MaxPool2d"):
        global_error_bound(odd, disturbed(odd), x)
