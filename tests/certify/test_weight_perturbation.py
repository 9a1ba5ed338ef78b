"""Bounds over perturbed weights: exact in one layer, valid in several, flat training moves them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.certify import BoundedModule, FlatTraining, LpBall, weight_balls, weight_loss_bound, worst_weight_loss
from assay.data import Data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.training import Supervised


@pytest.mark.parametrize(("norm", "dual"), [(1, torch.inf), (2, 2), (torch.inf, 1)])
def test_one_layer_is_exact(norm: float, dual: float) -> None:
    """w_k . x + b_k +- eps ||x||_q, each output by itself may spend the whole ball."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    ball = {"weight": LpBall(norm, 0.2)}
    for method in ("CROWN-IBP", "CROWN"):
        lower, upper = BoundedModule(model, x).compute_bounds(x, None, method=method, weights=ball)
        radius = 0.2 * x.norm(p=dual, dim=1)[:, None]
        assert torch.allclose(lower, model(x) - radius)
        assert torch.allclose(upper, model(x) + radius)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_draw_breaks_the_bound(norm: str) -> None:
    torch.manual_seed(0)
    model, x, y = MLP((6,), 3, (12, 12)).double(), torch.rand(20, 6).double(), torch.randint(3, (20,))
    balls = weight_balls(model, 0.03 if norm == "linf" else 0.2, norm)  # type: ignore[arg-type]
    assert len(balls) == 3
    bound = weight_loss_bound(model, x, y, balls)
    worst = worst_weight_loss(model, x, y, balls, 300, torch.Generator().manual_seed(0))
    assert (worst <= bound).all()
    assert (bound > F.cross_entropy(model(x), y, reduction="none")).all()


def test_inputs_and_weights_together() -> None:
    torch.manual_seed(0)
    model, x = MLP((6,), 3, (12,)).double(), torch.rand(8, 6).double()
    balls = weight_balls(model, 0.1)
    module = BoundedModule(model, x)
    for method in ("IBP", "CROWN-IBP"):
        lower, upper = module.compute_bounds(x, LpBall(eps=0.05), method=method, weights=balls)
        for k in range(100):
            g = torch.Generator().manual_seed(k)
            moved = {}
            for name, p in model.named_parameters():
                step = torch.randn(p.shape, generator=g).double()
                moved[name] = p + (0.1 * step / step.norm() if name in balls else 0)
            near = x + 0.05 * torch.randn(x.shape, generator=g).double().sign()
            z = torch.func.functional_call(model, moved, (near,))
            assert ((z >= lower - 1e-9) & (z <= upper + 1e-9)).all()


def test_relative_radii_and_errors() -> None:
    model = MLP((4,), 2, (3,))
    ball = weight_balls(model, 0.1, relative=True)["head.weight"]
    assert ball.eps == pytest.approx(0.1 * model.head.weight.norm().item())
    with pytest.raises(InputError, match="no linear layer"):
        weight_balls(nn.ReLU(), 0.1)
    x = torch.rand(2, 4)
    with pytest.raises(InputError, match="no parameter"):
        BoundedModule(model, x).compute_bounds(x, None, method="CROWN", weights={"tail": LpBall()})
    with pytest.raises(InputError, match="forward mode"):
        BoundedModule(model, x).compute_bounds(x, None, method="forward", weights=weight_balls(model, 0.1))


def test_flat_training_lowers_the_bound() -> None:
    torch.manual_seed(0)
    x = torch.rand(64, 6)
    data = Data(x, (x[:, 0] > x[:, 1]).long(), ("a", "b"), (0.0, 1.0))
    start, options = MLP((6,), 2, (8,)), {"epochs": 30, "batch_size": 32, "lr": 5e-3}
    bounds = []
    for trainer in (FlatTraining(eps=0.1, **options), Supervised(**options)):
        model = trainer.fit(start, data, seed=0)
        bounds.append(weight_loss_bound(model, x, data.y, weight_balls(model, 0.1)).mean())
    assert bounds[0] < bounds[1]
