"""Training for smoothing: each loss against its formula, and certified accuracy that rises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from scipy.stats import norm
from torch import Tensor, nn

from assay.attacks import L2, PGD
from assay.certify import (
    MACER,
    ConsistencyTraining,
    GaussianTraining,
    RandomizedSmoothing,
    SmoothAdv,
    SmoothedClassifier,
    consistency_regulariser,
    soft_radius,
)
from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.random import derive, seeded
from assay.training import State, Supervised, Trainer

# weights of the extra terms that suit a small network on 8 x 8 images
METHODS: tuple[GaussianTraining, ...] = (
    GaussianTraining(),
    SmoothAdv(),
    MACER(m=4, lbd=2.0, deferred=0.0),
    ConsistencyTraining(lbd=2.0, eta=0.1),
)


def _logits(m: int = 5, n: int = 7, c: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(m, n, c, generator=g, dtype=torch.float64), torch.randint(c, (n,), generator=g)


def _network() -> nn.Module:
    with seeded(0, "net"):
        return MLP(hidden=(64,))


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


def test_smoothed_classifier_averages_probabilities_over_its_own_draws() -> None:
    net, g = _network(), torch.Generator().manual_seed(0)
    x, noise = torch.rand(6, 1, 8, 8, generator=g), torch.randn(3, 6, 1, 8, 8, generator=g)
    expected = torch.stack([net(x + noise[j]).softmax(1) for j in range(3)]).mean(0)
    assert torch.allclose(SmoothedClassifier(net, noise)(x).exp(), expected, atol=1e-6)
    shared = SmoothedClassifier(net, noise[:, :1])(x)
    assert torch.allclose(shared[2:3], SmoothedClassifier(net, noise[:, :1])(x[2:3]), atol=1e-6)
    with pytest.raises(InputError, match="SmoothedClassifier"):
        SmoothedClassifier(net, noise)(x[:4])


def test_gaussian_training_without_noise_is_plain_training(data: Data) -> None:
    few = data.limit(150)
    plain = Supervised(epochs=2, batch_size=32).fit(_network(), few, seed=0)
    same = GaussianTraining(sigma=0.0, m=2, epochs=2, batch_size=32).fit(_network(), few, seed=0)
    for p, q in zip(plain.parameters(), same.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_smooth_adv_with_one_draw_and_no_noise_attacks_as_pgd_does(data: Data) -> None:
    batch, net = data.batch(torch.arange(40)), _network()
    state = State(5, data, 10, step=3)
    method = SmoothAdv(m=1, sigma=0.0, eps=0.7, attack_steps=4, step_size=0.3)
    noise = method.noise(batch.x)
    assert torch.equal(noise, torch.zeros(1, *batch.x.shape))
    pgd = PGD(ball=L2(0.7), steps=4, step_size=0.3, early_stop=False, bounds=data.bounds)
    expected = pgd(net, batch.x, batch.y, seed=derive(5, 3), index=batch.index)
    found = method.worst(net, batch, state, noise)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(method.objective(net, batch, state), F.cross_entropy(net(expected), batch.y), atol=1e-5)
    assert float((expected - batch.x).flatten(1).norm(dim=1).min()) > 0.3


def test_smooth_adv_lowers_the_smoothed_probability_within_the_ball(data: Data) -> None:
    batch = data.batch(torch.arange(60))
    net = GaussianTraining(epochs=3).fit(_network(), data.limit(400), seed=0)
    method = SmoothAdv(m=8, eps=0.5, attack_steps=5)
    with seeded(0, "noise"):
        noise = method.noise(batch.x)
    found = method.worst(net, batch, State(0, data, 1), noise)
    smoothed = SmoothedClassifier(net, noise)
    with evaluating(net), torch.no_grad():
        before, after = (F.nll_loss(smoothed(x), batch.y, reduction="none") for x in (batch.x, found))
    assert (after > before).float().mean() > 0.95
    assert float((found - batch.x).flatten(1).norm(dim=1).max()) <= 0.5 + 1e-5
    assert float(found.min()) >= 0


def test_soft_radius_is_its_formula_with_its_gradient() -> None:
    logits, y = _logits()
    logits.requires_grad_()
    radius, right = soft_radius(logits, y, sigma=0.5, beta=1.3)
    z = softmax(1.3 * logits.detach().numpy(), axis=2).mean(0)
    own = z[np.arange(7), y.numpy()]
    masked = z.copy()
    masked[np.arange(7), y.numpy()] = -1
    other = masked.max(1)
    assert np.allclose(radius.detach().numpy(), 0.25 * (norm.ppf(own) - norm.ppf(other)), atol=1e-12)
    assert right.tolist() == (own > other).tolist()
    assert 0 < int(right.sum()) < 7
    (got,) = torch.autograd.grad(radius.sum(), logits)
    # d radius / d z = sigma / 2 / phi(Phi^-1(z)), and d z_k / d logit_l = beta p_k (1[k = l] - p_l) / m of each copy
    p = softmax(1.3 * logits.detach().numpy(), axis=2)
    slope = np.zeros_like(z)
    slope[np.arange(7), y.numpy()] = 0.25 / norm.pdf(norm.ppf(own))
    slope[np.arange(7), masked.argmax(1)] = -0.25 / norm.pdf(norm.ppf(other))
    expected = 1.3 / 5 * p * (slope - (slope * p).sum(2, keepdims=True))
    assert np.allclose(got.numpy(), expected, atol=1e-12)


class _Table(nn.Module):
    """The same logits whatever the input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.flatten(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def test_macer_objective_is_algorithm_1_and_certain_samples_add_nothing(data: Data) -> None:
    logits, y = _logits()
    batch = data.batch(torch.arange(7))
    batch = replace(batch, y=y)
    method = MACER(m=5, lbd=3.0, gamma=1.5, beta=2.0, sigma=0.4, deferred=0.0)
    found = method.objective(_Table(logits), batch, State(0, data, 1))
    z = softmax(logits.numpy(), axis=2).mean(0)
    radius, right = soft_radius(logits, y, 0.4, 2.0)
    xi = radius.numpy() / 0.2
    hinge = np.where(right.numpy(), np.maximum(1.5 - xi, 0), 0).mean()
    assert float(found.detach()) == pytest.approx(
        -np.log(z[np.arange(7), y.numpy()]).mean() + 3 * 0.2 * hinge, abs=1e-9
    )
    early = replace(method, deferred=0.5).objective(_Table(logits), batch, State(0, data, 2))
    assert float(early.detach()) == pytest.approx(-np.log(z[np.arange(7), y.numpy()]).mean(), abs=1e-9)
    sure = 200.0 * F.one_hot(y, 4).double().expand(5, 7, 4)
    table = _Table(sure.contiguous())
    method.objective(table, batch, State(0, data, 1)).backward()
    assert table.logits.grad is not None
    assert torch.isfinite(table.logits.grad).all()
    assert float(table.logits.grad.abs().max()) < 1e-9


@pytest.mark.parametrize(("lbd", "eta"), [(10.0, 0.5), (0.0, 1.0), (3.0, 0.0)])
def test_consistency_regulariser_is_its_formula(lbd: float, eta: float) -> None:
    logits, _ = _logits()
    p = softmax(logits.numpy(), axis=2)
    mean = p.mean(0)
    kl = (mean * (np.log(mean) - np.log(p))).sum(2).mean()
    entropy = -(mean * np.log(mean)).sum(1).mean()
    assert float(consistency_regulariser(logits, lbd, eta)) == pytest.approx(lbd * kl + eta * entropy, abs=1e-12)


def test_consistency_is_least_for_equal_copies_and_finite_for_certain_ones() -> None:
    logits, y = _logits()
    same = logits[:1].expand(5, 7, 4)
    assert float(consistency_regulariser(same, 10.0, 0.0)) == pytest.approx(0, abs=1e-12)
    assert float(consistency_regulariser(logits, 10.0, 0.0)) > 0.1
    apart = torch.stack([500.0 * F.one_hot((y + k) % 4, 4).double() for k in range(2)]).requires_grad_()
    value = consistency_regulariser(apart)
    value.backward()
    assert torch.isfinite(value)
    assert apart.grad is not None
    assert torch.isfinite(apart.grad).all()
    with pytest.raises(InputError):
        consistency_regulariser(logits[0])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_certified_accuracy_rises_over_plain_training(method: GaussianTraining, data: Data) -> None:
    test, rates = load_data("digits:test")[:120], []
    method = replace(method, sigma=0.5, epochs=20, batch_size=50)
    trainers: tuple[Trainer, ...] = (Supervised(epochs=20, batch_size=50), method)
    for trainer in trainers:
        model = trainer.fit(_network(), data, seed=0)
        found = RandomizedSmoothing(sigma=0.5, n0=20, n=300).certify(model, test.x, test.y)
        rates.append(float((found.verdict & (found.radius >= 0.25)).float().mean()))
    assert rates[1] > rates[0] + 0.1, rates


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_control_has_the_same_noise(method: GaussianTraining) -> None:
    control = replace(method, epochs=3, sigma=0.7).plain()
    assert control.plan().epochs == 3
    if type(method) is GaussianTraining:
        assert type(control) is Supervised
    else:
        assert type(control) is GaussianTraining
        assert (control.sigma, control.m) == (0.7, method.m)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (GaussianTraining, {"sigma": -1.0}),
        (GaussianTraining, {"m": 0}),
        (SmoothAdv, {"eps": 0.0}),
        (SmoothAdv, {"step_size": -1.0}),
        (SmoothAdv, {"attack_steps": 0}),
        (MACER, {"gamma": 0.0}),
        (MACER, {"lbd": -1.0}),
        (MACER, {"deferred": 2.0}),
        (ConsistencyTraining, {"m": 1}),
        (ConsistencyTraining, {"eta": -0.1}),
    ],
)
def test_bad_options(cls: type[GaussianTraining], options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=cls.__name__):
        cls(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        soft_radius(torch.zeros(3, 4), torch.zeros(4, dtype=torch.int64), 0.5)
