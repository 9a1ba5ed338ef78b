"""Level set traversal: closed forms, what it promises of every result, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay import load_data
from assay.dynamics import LevelSetTraversal, LSTResult, straight_line
from assay.nets import MLP, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import Supervised

FREE = {"jitter": 0.0, "adv_step": 0.0, "bounds": (-math.inf, math.inf)}
SOME = LevelSetTraversal(step=5e-2, steps=40, conf_drop=0.1)


class Linear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


@pytest.fixture(scope="module")
def setting() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A trained network, images that it classifies correctly, their labels, and targets."""
    train, test = (load_data(f"digits:{part}") for part in ("train", "test"))
    with seeded(0, "init"):
        start = MLP(train.shape, 10, (32,))
    model = Supervised(epochs=10, lr=1e-2).fit(start, train, seed=0)
    right = model(test.x).argmax(1) == test.y
    x, y = test.x[right][:24], test.y[right][:24]
    return model, x, y, x.flip(0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_classes_lead_to_the_projection_of_the_target() -> None:
    weight, x, target = normal(2, 10), normal(16, 10, seed=1), normal(16, 10, seed=2)
    model = Linear(weight)
    y = model(x).argmax(1)
    w = weight[1] - weight[0]
    projected = target - ((target - x) @ w / (w @ w))[:, None] * w
    for steps in (1, 7, 150):
        found = LevelSetTraversal(step=0.1, steps=steps, **FREE)(model, x, y, target, seed=0)
        torch.testing.assert_close(found.x, x + (1 - 0.9**steps) * (projected - x), rtol=0, atol=1e-12)
        torch.testing.assert_close(found.conf, found.conf0, rtol=0, atol=1e-12)
        assert found.accepted.all()
    torch.testing.assert_close(found.x, projected, rtol=1e-3, atol=1e-5)


def test_one_step_as_the_equations_have_it(setting) -> None:
    model, x, y, target = setting
    model = copy.deepcopy(model).double()
    x, target = x.double(), target.double()
    leaf = x.clone().requires_grad_()
    (j,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    delta = target - x
    inner = ((j * delta).flatten(1).sum(1) / j.square().flatten(1).sum(1))[:, None, None, None]
    expected = (x + 0.03 * (delta - inner * j) - (j * 5e-2 / 2).clamp(-5e-2, 5e-2)).clamp(0, 1)
    found = LevelSetTraversal(step=0.03, steps=1, adv_step=5e-2, conf_drop=1.0, jitter=0.0)(model, x, y, target, seed=0)
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-12)


def test_steps_are_at_right_angles_to_the_gradient() -> None:
    found = LevelSetTraversal().across(normal(9, 3, 4), normal(9, 3, 4, seed=1) * 1e-12)
    assert ((found * normal(9, 3, 4, seed=1)).flatten(1).sum(1).abs() < 1e-6).all()
    still = normal(2, 5)
    assert LevelSetTraversal().across(still, torch.zeros_like(still)).equal(still)


def test_where_the_gradient_rounds_to_zero_the_walk_still_moves_along_the_level_set() -> None:
    weight = torch.tensor([[200.0, 0.0], [0.0, 0.0]])
    x, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert Linear(weight)(x).softmax(1)[0, 0] == 1  # the cross-entropy is flat here
    found = LevelSetTraversal(step=0.5, steps=30, jitter=0.0)(Linear(weight), x, torch.tensor([0]), target, seed=0)
    torch.testing.assert_close(found.x, torch.tensor([[1.0, 1.0]]), rtol=0, atol=1e-6)


def test_margin_keeps_the_direction_and_lengthens_the_regaining_step(setting) -> None:
    model, x, y, target = setting
    without = replace(SOME, adv_step=0.0)
    assert replace(without, grad="margin")(model, x, y, target, seed=0).x.equal(without(model, x, y, target, seed=0).x)
    gain = replace(SOME, grad="margin")(model, x, y, target, seed=0).conf - SOME(model, x, y, target, seed=0).conf
    assert gain.mean() > 0


def test_every_result_keeps_its_confidence_in_bounds(setting) -> None:
    model, x, y, target = setting
    found = SOME(model, x, y, target, seed=0, path_every=10)
    conf = model(found.x).softmax(1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(found.conf, conf.detach(), rtol=0, atol=1e-6)
    assert (found.conf0 - found.conf < 0.1).all()
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    assert 0 < found.accepted.float().mean() < 1
    assert found.accepted.shape == (24, 40)
    assert found.path.shape == (24, 5, *x.shape[1:])
    assert found.path[:, -1].equal(found.x)
    assert (found.path[:, 0] - x).abs().max() <= 2 / 255 + 1e-6
    assert ((found.x - target).flatten(1).norm(dim=1) < (x - target).flatten(1).norm(dim=1)).all()
    assert (found.gradients <= 40).all()
    classes = model(target).argmax(1)
    other = model(found.x).softmax(1).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(found.conf_target, other.detach(), rtol=0, atol=1e-6)
    assert SOME(model, x, y, target, seed=0, target_class=y).conf_target.equal(found.conf)


def test_a_walk_that_is_stuck_ends_without_changing_the_result(setting) -> None:
    model, x, y, target = setting
    plain = replace(SOME, adv_step=0.0)
    short, long = (replace(plain, steps=s)(model, x, y, target, seed=0) for s in (40, 200))
    stuck = ~short.accepted[:, -2]
    assert stuck.any()
    assert short.x[stuck].equal(long.x[stuck])
    assert not long.accepted[stuck][:, 40:].any()
    assert (long.queries[stuck] < 45).all()


def test_a_jitter_that_costs_the_confidence_is_left_out(setting) -> None:
    model, x, y, target = setting
    wild = LevelSetTraversal(steps=1, conf_drop=1e-3, jitter=4.0, adv_step=0.0)
    found = wild(model, x, y, target, seed=0, path_every=1)
    kept = (found.path[:, 0] == x).flatten(1).all(1)
    assert kept.any()
    assert (found.conf0 - found.conf < 1e-3).all()


def test_misclassified_sources_raise_or_stay(setting) -> None:
    model, x, y, target = setting
    wrong = y.clone()
    wrong[:3] = (y[:3] + 1) % 10
    with pytest.raises(InputError, match="3 sources are not classified as y"):
        SOME(model, x, wrong, target, seed=0)
    found = replace(SOME, on_error="mask")(model, x, wrong, target, seed=0, path_every=20)
    assert found.valid.tolist() == [False] * 3 + [True] * 21
    assert found.x[:3].equal(x[:3])
    assert found.path[:3].equal(x[:3, None].expand(-1, 3, -1, -1, -1))
    assert not found.accepted[:3].any()
    assert found.x[3:].equal(SOME(model, x[3:], y[3:], target[3:], seed=0, index=torch.arange(3, 24)).x)
    none = replace(SOME, on_error="mask", steps=2)(model, x, (y + 1) % 10, target, seed=0, path_every=1)
    assert none.x.equal(x)
    assert none.path.shape[1] == 3


def same(a: LSTResult, b: LSTResult) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("x", "conf", "conf0", "accepted", "conf_target"))


def test_same_seed_same_result_and_nothing_is_touched(setting) -> None:
    model, x, y, target = setting
    model = copy.deepcopy(model).train()
    next(model.parameters()).requires_grad_(False)
    before = [v.clone() for v in (*model.state_dict().values(), x, y, target)]
    flags, random = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    first = SOME(model, x, y, target, seed=3)
    with torch.no_grad():
        assert same(first, SOME(model, x, y, target, seed=3))
    assert not first.x.equal(SOME(model, x, y, target, seed=4).x)
    assert torch.get_rng_state().equal(random)
    assert all(a.equal(b) for a, b in zip(before, (*model.state_dict().values(), x, y, target), strict=True))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not first.x.requires_grad


def test_results_do_not_depend_on_the_batch() -> None:
    x = torch.rand(13, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    with seeded(0, "init"):
        model = SmallCNN((1, 12, 12), 4, (4,), 8)
    y = model(x).argmax(1)
    whole = SOME(model, x, y, x.flip(0), seed=0, path_every=5)
    parts = SOME(model, x, y, x.flip(0), seed=0, path_every=5, batch_size=4)
    torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.path, whole.path, rtol=0, atol=1e-5)
    assert (parts.accepted == whole.accepted).all(1).float().mean() >= 0.9
    order = torch.arange(12, -1, -1)
    turned = SOME(model, x[order], y[order], x, seed=0, index=order)
    torch.testing.assert_close(turned.x, whole.x[order], rtol=0, atol=1e-5)


def test_bad_input(setting) -> None:
    model, x, y, target = setting
    run: Callable[..., LSTResult] = lambda *a, **k: SOME(*a, **{"seed": 0, **k})  # noqa: E731
    broken = x.clone()
    broken[0, 0, 0, 0] = torch.nan
    cases = [
        lambda: run(model, broken, y, target),
        lambda: run(model, x + 1, y, target),
        lambda: run(model, x, y, target - 1),
        lambda: run(model, x, y, target[:, :, 1:]),
        lambda: run(model, x, y, target.double()),
        lambda: run(model, x[:0], y[:0], target[:0]),
        lambda: run(model, x, y[:3], target),
        lambda: run(model, x, y + 10, target),
        lambda: run(model, x, y, target, target_class=y + 10),
        lambda: run(model, x, y, target, index=torch.arange(3)),
        lambda: run(model, x, y, target, path_every=-1),
        lambda: run(nn.Sequential(nn.Flatten(), Linear(torch.full((10, 64), math.inf))), x, y, target),
    ]
    options = ({"steps": 0}, {"step": 0.0}, {"conf_drop": 0.0}, {"adv_step": -1.0}, {"jitter": math.nan})
    more = ({"grad": "both"}, {"on_error": "skip"}, {"bounds": (1.0, 0.0)})
    cases += [lambda o=o: replace(SOME, **o) for o in (*options, *more)]
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)


def test_straight_line_stops_at_the_first_drop() -> None:
    model = Linear(torch.tensor([[4.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
    x, target = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    found = straight_line(model, x, torch.tensor([0]), target, conf_drop=0.2, points=1000)
    start = 1 / (1 + math.exp(-4))
    way = (1 + math.log(1 / (start - 0.2) - 1) / 4) / 2  # p = sigmoid(4 (1 - 2 t))
    assert found.way.item() == pytest.approx(math.floor(1000 * way) / 1000)
    torch.testing.assert_close(found.x, torch.lerp(x, target, found.way[0]))
    assert start - found.conf.item() < 0.2
    everything = straight_line(model, x, torch.tensor([0]), x, points=5)
    assert everything.way.item() == 1
    for bad in ({"points": 0}, {"conf_drop": 0.0}):
        with pytest.raises(InputError, match="straight_line"):
            straight_line(model, x, torch.tensor([0]), target, **bad)


def test_a_confidence_that_comes_back_does_not_count() -> None:
    class Dip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gap = 50 * ((x[:, 0] - 0.5).abs() - 0.1)
            return torch.stack((gap, torch.zeros_like(gap)), 1)

    x, target = torch.zeros(1, 1), torch.ones(1, 1)
    found = straight_line(Dip(), x, torch.tensor([0]), target, points=100)
    assert 0.3 < found.way.item() < 0.4
