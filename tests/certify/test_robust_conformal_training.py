"""The loss of robust conformal training against a direct computation, and what its trainer may touch."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.isotonic import isotonic_regression
from torch import nn

from assay.certify import RobustConformalTraining, rct_loss
from assay.data import Data, load_data
from assay.nets import MLP, ResNet
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import Plan, Supervised


def _batch(b: int = 40, m: int = 3, c: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return 2 * torch.randn(b, m, c, generator=g, dtype=torch.float64), torch.randint(c, (b,), generator=g)


def soft_sort(values: np.ndarray, strength: float) -> np.ndarray:
    """Ascending l2 soft sort: a projection on the permutahedron (Blondel et al., 2020, proposition 3)."""
    s = np.sort(-values)[::-1]
    w = np.arange(len(s), 0, -1) / strength
    return -(w - isotonic_regression(w - s, increasing=False))


@pytest.mark.parametrize("matrix", [False, True])
def test_loss_is_the_published_one_with_its_soft_sort(matrix: bool) -> None:
    logits, y = _batch()
    weights = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).double() if matrix else torch.eye(5).double()
    got = rct_loss(
        logits, y, alpha=0.2, shift=0.5, temperature=0.3, size_weight=0.7, target_size=1.5, loss_matrix=weights
    )
    u = norm.ppf(np.clip(logits.softmax(2).mean(1).numpy(), 1e-7, 1 - 1e-7))
    labels, half = y.numpy(), 20
    own = soft_sort(u[np.arange(half), labels[:half]], 0.1)
    tau = own[max(int(0.2 * (1 + 1 / half) * half) - 1, 0)] - 0.5
    sets = 1 / (1 + np.exp(-(u[half:] - tau) / 0.3))
    one_hot = np.eye(5)[labels[half:]]
    w = weights.numpy()[labels[half:]]
    missed = ((1 - sets) * one_hot * w + sets * (1 - one_hot) * w).sum(1).mean()
    size = np.maximum(sets.sum(1) - 1.5, 0).mean()
    assert float(got) == pytest.approx(math.log(missed + 0.7 * size + 1e-8), abs=1e-9)


def test_sort_equals_the_soft_sort_unless_a_gap_exceeds_ten() -> None:
    near, far = np.array([3.0, -5.0, 4.5, 0.2]), np.array([-6.0, 5.0])
    assert np.allclose(soft_sort(near, 0.1), np.sort(near))
    assert not np.allclose(soft_sort(far, 0.1), np.sort(far))


def test_loss_has_finite_gradients_at_certain_predictions_and_falls_along_them() -> None:
    logits, y = _batch()
    logits[0], logits[-1] = 1e4 * logits[0], 1e4 * logits[-1]
    logits.requires_grad_(True)
    loss = rct_loss(logits, y)
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(grad).all()
    assert float(rct_loss(logits.detach() - 1e-3 * grad / grad.norm(), y)) < float(loss.detach())


def test_loss_refuses_bad_input() -> None:
    logits, y = _batch()
    for bad_logits, bad_y in ((logits[:, 0], y), (logits[:1], y[:1]), (logits, y + 5), (logits, y[:3])):
        with pytest.raises(InputError):
            rct_loss(bad_logits, bad_y)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train").limit(300)


def _model() -> nn.Module:
    with seeded(0, "test"):
        return ResNet((1, 8, 8), 10, 4, (1,))


METHOD = RobustConformalTraining(epochs=2, batch_size=100, n_samples=2)


def test_trains_the_last_layer_alone_and_leaves_the_rest(data: Data) -> None:
    model = _model().train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    trained = METHOD.fit(model, data, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert not trained.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for name, value in trained.state_dict().items():  # batch norm's statistics included
        assert torch.equal(value, before[name]) != name.startswith("head"), name
    assert all(p.requires_grad for p in trained.parameters())
    again, other = METHOD.fit(model, data, seed=0), METHOD.fit(model, data, seed=1)
    assert torch.equal(trained.head.weight, again.head.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(trained.head.weight, other.head.weight)  # type: ignore[union-attr, arg-type]


def test_lowers_its_objective_on_fresh_noise(data: Data) -> None:
    model = Supervised(epochs=20).fit(MLP(), data, seed=0)
    method = RobustConformalTraining(
        epochs=30, batch_size=100, n_samples=4, temperature=0.5, optimizer="adam", lr=0.02, reinitialise=False
    )

    def loss(network: nn.Module) -> float:
        g = torch.Generator().manual_seed(9)
        copies = data.x[:, None] + 0.25 * torch.randn(len(data), 4, *data.shape, generator=g)
        with torch.no_grad():
            return float(rct_loss(network(copies.flatten(0, 1)).reshape(len(data), 4, -1), data.y))

    assert loss(method.fit(model, data, seed=0)) < loss(model) - 0.05


def test_control_and_bad_input(data: Data) -> None:
    plain = METHOD.plain()
    assert isinstance(plain, RobustConformalTraining)
    assert plain.loss == "ce"
    assert plain.plan() == METHOD.plan()
    with pytest.raises(InputError, match="linear"):
        METHOD.fit(nn.Conv2d(1, 1, 1), data, seed=0)
    with pytest.raises(InputError, match="linear"):
        RobustConformalTraining(head="body").fit(MLP(), data, seed=0)
    for options in ({"sigma": 0.0}, {"temperature": -1.0}, {"alpha": 1.0}, {"loss": "hinge"}, {"eps": math.nan}):
        with pytest.raises(InputError):
            RobustConformalTraining(**options)  # type: ignore[arg-type]


def test_multistep_schedule_divides_by_ten_three_times() -> None:
    plan = Plan(schedule="multistep")
    assert [plan.factor(step, 10) for step in (0, 3, 4, 6, 8, 9)] == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])
