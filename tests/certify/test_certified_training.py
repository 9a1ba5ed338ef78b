"""The schedule's shape, the fused bound's validity and order, what the trainers optimise."""

import pytest
import torch
import torch.nn.functional as F

from assay.certify.bounds.module import BoundedModule, bounds_of, margins
from assay.certify.bounds.perturbation import LpBall
from assay.certify.certified_training import EpsScheduler, bounded, margin_bounds, robust_cross_entropy
from assay.certify.loss_fusion import fused_loss, loss_fusion_bound
from assay.nets import MLP
from assay.runtime.errors import InputError


def test_schedule_is_smooth_and_ends_at_eps() -> None:
    ramp = EpsScheduler(eps=0.3, start=100, length=400, middle=0.4)
    assert ramp(100) == 0
    assert ramp(500) == pytest.approx(0.3)
    assert ramp(10_000) == 0.3
    meet, h = 100 + 0.4 * 400, 1e-3
    left, right = (ramp(meet) - ramp(meet - h)) / h, (ramp(meet + h) - ramp(meet)) / h
    assert left == pytest.approx(right, rel=1e-3)
    values = [ramp(t) for t in range(90, 520)]
    assert values == sorted(values)
    assert EpsScheduler(eps=1, length=10, middle=0)(5) == pytest.approx(0.5)
    with pytest.raises(InputError, match="length=0"):
        EpsScheduler(eps=1, length=0)


def test_fused_bound_is_valid_and_never_looser() -> None:
    torch.manual_seed(0)
    model, x, eps = MLP((6,), 5, (16, 16)).double(), torch.rand(40, 6).double(), 0.05
    y = torch.randint(5, (40,))
    module, ball = BoundedModule(model, x), LpBall(eps=eps)
    for method in ("IBP", "CROWN-IBP", "CROWN"):
        fused = loss_fusion_bound(module, x, y, ball, method)
        apart = F.cross_entropy(-margin_bounds(module.run(x, ball, method), y, method), y, reduction="none")
        run = module.run(x, ball, method)
        if method != "IBP":
            ends = bounds_of(run, -margins(y, 5, x), method)
            assert (fused_loss(run, y, ends=ends) <= apart + 1e-9).all()
            assert (fused_loss(run, y, ends=ends) < apart - 1e-4).any()
        for _ in range(100):
            near = x + eps * (torch.rand_like(x) * 2 - 1).sign()
            assert (F.cross_entropy(model(near), y, reduction="none") <= fused + 1e-12).all()


def test_a_mixture_lies_between_its_ends() -> None:
    torch.manual_seed(0)
    model, x, y = MLP((6,), 5, (16,)), torch.rand(10, 6), torch.randint(5, (10,))
    run = bounded(model, x, 0.05, (0.0, 1.0))
    ends = [fused_loss(run, y, share) for share in (0.0, 1.0)]
    middle = fused_loss(run, y, 0.5)
    assert ((middle >= torch.minimum(*ends) - 1e-6) & (middle <= torch.maximum(*ends) + 1e-6)).all()
    assert torch.allclose(ends[0], F.cross_entropy(-margin_bounds(run, y), y, reduction="none"), atol=1e-5)


def test_bounds_are_differentiable_in_the_parameters() -> None:
    torch.manual_seed(0)
    model, x, y = MLP((4,), 3, (8,)).double(), torch.rand(5, 4).double(), torch.randint(3, (5,))

    def loss(weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            model.head.weight.copy_(weight)
        run = bounded(model, x, 0.1, None)
        return fused_loss(run, y, 0.5).sum() + robust_cross_entropy(margin_bounds(run, y), y)

    weight = model.head.weight.detach().clone()
    model.zero_grad()
    loss(weight).backward()
    step = torch.zeros_like(weight)
    step[1, 2] = 1e-6
    slope = (loss(weight + step) - loss(weight - step)).item() / 2e-6
    assert model.head.weight.grad[1, 2].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_margin_rows() -> None:
    C = margins(torch.tensor([1]), 3, torch.zeros(1))
    assert C.tolist() == [[[-1, 1, 0], [0, 1, -1]]]
