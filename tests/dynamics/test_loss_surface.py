"""Barriers and kernel velocity: closed forms on models where both are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assay.dynamics import linear_mode_barrier, ntk_submatrix_velocity
from assay.nets import MLP, ResNet
from assay.runtime.errors import InputError
from assay.runtime.random import seeded


def linear(weight: list[list[float]]) -> nn.Module:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weight))
    return model


def test_no_barrier_between_equal_networks() -> None:
    with seeded(0, "net"):
        model, x = ResNet((1, 8, 8), 4, 4, (1,)), torch.rand(20, 1, 8, 8)
    found = linear_mode_barrier(model, model, x, torch.arange(20) % 4, points=7)
    assert found.value == 0
    assert found.errors.shape == found.alphas.shape == (7,)
    assert (found.errors == found.errors[0]).all()


def test_barrier_by_hand_and_on_a_group() -> None:
    # The sign of both layers flips, which leaves the product as it is; half way both are zero and class 0 wins ties.
    with seeded(0, "pair"):
        first = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        first[0].weight.copy_(torch.eye(2))
        first[1].weight.copy_(torch.eye(2))
    second = nn.Sequential(linear([[-1.0, 0.0], [0.0, -1.0]]), linear([[-1.0, 0.0], [0.0, -1.0]]))
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 0.0]])
    y = torch.tensor([0, 1, 1, 0])
    assert linear_mode_barrier(first, second, x, y, points=5).errors.tolist() == [0, 0, 0.5, 0, 0]
    assert linear_mode_barrier(first, second, x, y, points=5, group=y == 1).value == 1
    assert linear_mode_barrier(first, second, x, y, points=5, group=torch.tensor([0, 3])).value == 0
    assert linear_mode_barrier(first, second, x, y, points=5, batch_size=1).value == 0.5


def test_interpolates_buffers_and_leaves_the_networks() -> None:
    with seeded(0, "a"):
        first, x = ResNet((1, 8, 8), 3, 4, (1,)), torch.rand(30, 1, 8, 8)
    with seeded(1, "b"):
        second = ResNet((1, 8, 8), 3, 4, (1,))
    second.train()(x)
    first.train()
    before = {k: v.clone() for k, v in first.state_dict().items()}
    y = torch.arange(30) % 3
    ends = linear_mode_barrier(first, second, x, y, points=2).errors
    for model, end in zip((first, second), ends, strict=True):
        model.eval()
        assert float((model(x).argmax(1) != y).float().mean()) == pytest.approx(float(end))
    assert all(torch.equal(before[k], v) for k, v in first.state_dict().items())


def test_networks_with_shared_weights_have_a_barrier() -> None:
    with seeded(0, "tied"):
        pair = [nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(2)]
        x, y = torch.randn(20, 4), torch.arange(20) % 4
    for net in pair:
        net[2].weight = net[0].weight
    middle = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    middle.load_state_dict({k: (v + pair[1].state_dict()[k]) / 2 for k, v in pair[0].state_dict().items()})
    expected = [float((net(x).argmax(1) != y).float().mean()) for net in (pair[0], middle, pair[1])]
    assert linear_mode_barrier(*pair, x, y, points=3).errors.tolist() == pytest.approx(expected)


def test_kernel_of_a_linear_model_does_not_turn() -> None:
    with seeded(0, "linear"):
        first, second, x = nn.Linear(5, 3), nn.Linear(5, 3), torch.randn(8, 5)
    assert ntk_submatrix_velocity(first, second, x) == pytest.approx(0, abs=1e-12)


def test_velocity_is_the_angle_of_kernels_by_loops() -> None:
    with seeded(0, "mlp"):
        first, second = MLP((1, 2, 2), 3, (5,)).double(), MLP((1, 2, 2), 3, (5,)).double()
        x = torch.randn(6, 1, 2, 2, dtype=torch.float64)

    def kernel(model: nn.Module) -> Tensor:
        rows = []
        for one in x:
            for logit in model(one[None])[0]:
                gradients = torch.autograd.grad(logit, list(model.parameters()), retain_graph=True)
                rows.append(torch.cat([g.flatten() for g in gradients]))
        return torch.stack(rows) @ torch.stack(rows).T

    k, other = kernel(first), kernel(second)
    expected = 1 - float((k * other).sum() / k.norm() / other.norm())
    assert 0.01 < expected < 1
    assert ntk_submatrix_velocity(first, second, x, chunk=4) == pytest.approx(expected, abs=1e-12)
    assert ntk_submatrix_velocity(first, second, x, dt=2.0) == pytest.approx(expected / 2, abs=1e-12)
    assert ntk_submatrix_velocity(first, first, x) == pytest.approx(0, abs=1e-12)


def test_bad_input() -> None:
    x, y = torch.randn(4, 2), torch.zeros(4, dtype=torch.int64)
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match="architecture"):
        linear_mode_barrier(model, nn.Linear(2, 3), x, y)
    with pytest.raises(InputError, match="points"):
        linear_mode_barrier(model, model, x, y, points=1)
    with pytest.raises(InputError, match="shape"):
        linear_mode_barrier(model, model, x, y, group=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(InputError, match="dt"):
        ntk_submatrix_velocity(model, model, x, dt=0)
