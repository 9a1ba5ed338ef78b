"""Propagation tightness: closed forms on linear networks, autograd on ReLU networks, our own interval bounds."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.certify import (
    Intervals,
    Region,
    layerwise_box,
    optimal_box,
    propagation_boxes,
    propagation_tightness,
)
from assay.nets import MLP, ResNet, SmallCNN
from assay.runtime.errors import InputError


def stack(*sizes: int, relu: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()] if relu else [nn.Linear(a, b)]
    return nn.Sequential(*(layers[:-1] if relu else layers))


def margins(c: int, y: int) -> torch.Tensor:
    rows = [torch.eye(c)[y] - torch.eye(c)[j] for j in range(c) if j != y]
    return torch.stack(rows).double()


@pytest.mark.parametrize("relu", [None, "local", "center"])
def test_linear_networks_in_closed_form(relu: str | None) -> None:
    model, x = stack(6, 8, 7, 4), torch.rand(5, 6)
    weights = [m.weight.detach() for m in model]
    e = (x + 0.1).clamp(max=1) - (x - 0.1).clamp(min=0)
    best, layered = propagation_boxes(model, x, eps=0.1, relu=relu)
    assert torch.allclose(best, optimal_box(weights, e / 2), rtol=1e-6)
    assert torch.allclose(layered, layerwise_box(weights, e / 2), rtol=1e-6)
    y = torch.tensor([0, 3, 1, 2, 2])
    best, layered = propagation_boxes(model, x, y, eps=0.1, relu=relu)
    for k in range(5):
        merged = [*weights[:-1], margins(4, int(y[k])) @ weights[-1].double()]
        assert torch.allclose(best[k], optimal_box(merged, e[k] / 2), rtol=1e-6)
        assert torch.allclose(layered[k], layerwise_box(merged, e[k] / 2), rtol=1e-6)


def test_layerwise_box_is_that_of_interval_bounds_on_linear_networks() -> None:
    model, x = stack(6, 8, 7, 4), torch.rand(5, 6)
    _, layered = propagation_boxes(model, x, eps=0.1)
    lower, upper = Intervals().bounds(model, x, Region(eps=0.1, bounds=(0, 1)))
    assert torch.allclose(layered, (upper - lower) / 2, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda: SmallCNN(widths=(4, 6), hidden=12), lambda: ResNet((1, 8, 8), width=4)])
def test_optimal_box_is_the_jacobian_by_autograd(make) -> None:
    torch.manual_seed(1)
    model = make().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight)
    model = model.double()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    e = ((x + 0.1).clamp(max=1) - (x - 0.1).clamp(min=0)) / 2
    jacobian = torch.func.vmap(torch.func.jacrev(lambda t: model(t[None])[0]))(x)
    best, layered = propagation_boxes(model, x, eps=0.1)
    assert torch.allclose(best, (jacobian.abs() * e[:, None]).flatten(2).sum(2), rtol=1e-6)
    assert (best <= layered * (1 + 1e-9)).all()
    assert (best < 0.9 * layered).any()


def test_a_relu_network_against_its_masked_matrices() -> None:
    model, x, y = stack(5, 9, 8, 3, relu=True), torch.rand(4, 5), torch.tensor([2, 0, 1, 1])
    best, layered = propagation_boxes(model, x, y, eps=0.05, data_range=(-9, 9))
    w1, w2, w3 = (m.weight.detach().double() for m in model if isinstance(m, nn.Linear))
    for k in range(4):
        h = model[0](x[k])
        d1, d2 = (h >= 0).double(), (model[2](h.relu()) >= 0).double()
        merged = [w1, w2 * d1, margins(3, int(y[k])) @ (w3 * d2)]
        merged[0] = w1
        masked = [w1 * d1[:, None], w2 * d2[:, None], margins(3, int(y[k])) @ w3]
        e = torch.full((5,), 0.05)
        assert torch.allclose(best[k], optimal_box(masked, e), rtol=1e-5)
        assert torch.allclose(layered[k], layerwise_box(masked, e), rtol=1e-5)


def test_units_at_exactly_zero_stay_alive() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    zero = propagation_boxes(model, torch.zeros(1, 2), eps=0.1, data_range=(-1, 1))
    whole = propagation_boxes(model, torch.zeros(1, 2), eps=0.1, relu=None, data_range=(-1, 1))
    assert torch.equal(zero[0], whole[0])
    assert float(zero[0].min()) > 0


def test_the_centre_of_the_clipped_box_is_not_the_input() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([-0.03, 0.0]))
    local, center = (propagation_boxes(model, torch.zeros(1, 1), eps=0.1, relu=r)[0] for r in ("local", "center"))
    assert not torch.allclose(local, center)  # the box is [0, 0.1]: its centre 0.05 switches the first unit on


def test_positive_weights_are_tight_and_dead_ones_count_as_tight() -> None:
    model = stack(6, 8, 7, 4, relu=True)
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.uniform_(m.weight)
    x = torch.rand(5, 6)
    assert torch.allclose(propagation_tightness(model, x, eps=0.1), torch.ones(5, 4).double(), atol=1e-9)
    dead = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    nn.init.constant_(dead[0].bias, -100.0)
    assert torch.equal(propagation_tightness(dead, x, eps=0.1), torch.ones(5, 4).double())
    assert float(propagation_boxes(dead, x, eps=0.1)[1].max()) == 0


def test_functional_relu_division_and_batches() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(48, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = F.relu(self.conv((x - 0.2) / 0.5))
            return self.head(F.avg_pool2d(h, 2).flatten(1)) / 3

    torch.manual_seed(0)
    model, x, y = Net().train(), torch.rand(7, 1, 8, 8), torch.arange(7) % 5
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    whole = propagation_tightness(model, x, y, eps=0.1)
    assert whole.shape == (7, 4)
    assert torch.allclose(whole, propagation_tightness(model, x, y, eps=0.1, batch_size=2), atol=1e-12)
    assert whole.min() > 0
    assert whole.max() <= 1 + 1e-9
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) and q.requires_grad for p, q in zip(before, model.parameters(), strict=True))


def test_bad_input() -> None:
    x = torch.rand(2, 1, 8, 8)
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2))
    with pytest.raises(InputError, match=r"(?i)max_?pool2d.* at '1'"):
        propagation_tightness(pooled, x, eps=0.1)
    with pytest.raises(InputError, match=r"eps is -0\.1"):
        propagation_tightness(MLP(), x, eps=-0.1)
    with pytest.raises(InputError, match="spans"):
        propagation_tightness(MLP(), x * 9, eps=0.1)
    with pytest.raises(InputError, match="locl"):
        propagation_tightness(MLP(), x, eps=0.1, relu="locl")
    with pytest.raises(InputError, match="labels"):
        propagation_tightness(MLP(), x, torch.tensor([0, 10]), eps=0.1)
    with pytest.raises(InputError, match=r"expected \(n, c\)"):
        propagation_tightness(nn.Conv2d(1, 2, 3), x, eps=0.1)
