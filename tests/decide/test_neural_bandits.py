"""Neural bandits: the perturbation's identity, inverse gap weighting, the regressor against autograd, and bad input."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

from assay.decide import (
    ClassificationBandit,
    NeuFastCB,
    NeuralEpsGreedy,
    NeuralTS,
    NeuralUCB,
    NeuSquareCB,
    OnlineRegressor,
    PerturbedNet,
    fast_gamma,
    fast_igw,
    inverse_gap_weighting,
    run_bandit,
    square_gamma,
)
from assay.decide.confidence import ConfidencePolicy
from assay.runtime.errors import InputError

costs = st.lists(st.floats(0, 1), min_size=2, max_size=12)


def net_of(features: int = 6, seeds: tuple[int, ...] = (0, 1), **options: object) -> PerturbedNet:
    """A float64 network that has moved from its start."""
    net = PerturbedNet(features, seeds=seeds, **{"width": 5, **options}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        net.theta.add_(0.3 * torch.randn(net.theta.shape, generator=torch.Generator().manual_seed(1)))
    return net


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def blocks_of(x: torch.Tensor, k: int) -> torch.Tensor:
    """Every block placement of x (b, d), laid out: (b, K, dK)."""
    b, d = x.shape
    out = x.new_zeros(b, k, k, d)
    out[:, torch.arange(k), torch.arange(k)] = x[:, None].expand(b, k, d)
    return out.flatten(2)


@settings(max_examples=60)
@given(costs, st.floats(1e-3, 1e6))
def test_inverse_gap_weighting_bounds_the_gap(yhat: list[float], gamma: float) -> None:
    y = torch.tensor(yhat, dtype=torch.float64)
    k, best = len(yhat), int(y.argmin())
    p = inverse_gap_weighting(y, gamma)
    assert abs(float(p.sum()) - 1) <= 1e-9
    for a in range(k):
        if a != best:
            assert float(p[a]) == pytest.approx(1 / (k + gamma * (yhat[a] - yhat[best])))
    assert float(p[best]) >= float(p.max()) - 1e-12
    assert float(p @ (y - y.min())) <= k / gamma + 1e-12
    assert p.min() >= 1 / (k + gamma) - 1e-15


@settings(max_examples=60)
@given(costs, st.floats(1e-3, 1e6))
def test_fast_igw_is_scale_free_and_rests_on_a_free_arm(yhat: list[float], gamma: float) -> None:
    y = torch.tensor(yhat, dtype=torch.float64)
    p = fast_igw(y, gamma)
    assert abs(float(p.sum()) - 1) <= 1e-9
    assert p.min() >= 0
    free = torch.cat((y, torch.zeros(1, dtype=torch.float64)))
    assert float(fast_igw(free, gamma)[free.argmin()]) == 1
    torch.testing.assert_close(fast_igw(y + 0.1, gamma), fast_igw(2 * (y + 0.1), gamma))


@settings(max_examples=150)
@given(st.integers(2, 10), st.floats(0, 3), st.integers(0, 10**6))
def test_per_round_inequalities(k: int, exponent: float, seed: int) -> None:
    """Regret of a round against the squared and the triangular error (Foster & Rakhlin, Foster & Krishnamurthy)."""
    rng = np.random.default_rng(seed)
    truth, yhat = (torch.from_numpy(rng.uniform(1e-9, 1, k) ** rng.uniform(0.3, 4)) for _ in range(2))
    g = 10**exponent
    p = inverse_gap_weighting(yhat, g)
    regret, error = p @ (truth - truth.min()), p @ (yhat - truth) ** 2
    assert regret <= 2 * k / g + g / 4 * error + 1e-12
    g = 2 * k * 10**exponent
    p = fast_igw(yhat, g)
    error = p @ ((yhat - truth) ** 2 / (yhat + truth))
    assert p @ (truth - truth.min()) <= 5 * k / g * (p @ truth) + 7 * g * error + 1e-12


@pytest.mark.parametrize(("features", "depth", "copies"), [(2, 1, 5), (5, 1, 2), (12, 0, 1)])
def test_expected_loss_is_loss_plus_pull_by_enumeration(features: int, depth: int, copies: int) -> None:
    """Over all tuples of signs: (y - f)^2 / 2 + c_p^2 |theta - theta_0|^2 / (2 sqrt(m)); 1/S of that pull if averaged.

    Every tuple has its own lane, and all lanes the same network.
    """
    p = features + depth
    every = torch.tensor(list(product((-1.0, 1.0), repeat=p * copies)), dtype=torch.float64).view(-1, copies, p)
    net = PerturbedNet(features, width=1, depth=depth, c_p=0.7, activation="tanh", seeds=(0,) * len(every)).double()
    with torch.no_grad():
        net.theta.add_(0.3 * inputs(p))
    x, y = inputs(1, 1, features).expand(len(every), 1, features), torch.full((len(every), 1), 0.4).double()
    pull = 0.49 * float((net.theta - net.theta_0)[0].detach().pow(2).sum()) / 2
    plain = float((y - net(x)).detach()[0]) ** 2 / 2
    for average, share in (("losses", 1), ("predictions", copies)):
        regressor = OnlineRegressor(net, copies=copies, average=average, seeds=(0,) * len(every))  # type: ignore[arg-type]
        mean = regressor.loss(x, y, signs=every).detach().mean()
        assert float(mean) == pytest.approx(plain + pull / share, rel=1e-9)


@pytest.mark.parametrize("loss", ["square", "kl"])
@pytest.mark.parametrize("average", ["losses", "predictions"])
def test_update_is_a_gradient_step_of_the_loss(loss: str, average: str) -> None:
    net = net_of(c_p=0.5)
    regressor = OnlineRegressor(net, loss=loss, lr=0.3, copies=4, average=average, seeds=(0, 1))  # type: ignore[arg-type]
    x, y = inputs(2, 3, 6), inputs(2, 3).sigmoid()
    before = net.theta.detach().clone()
    (gradient,) = torch.autograd.grad(regressor.loss(x, y).sum(), net.theta)
    regressor.update(x, y)
    torch.testing.assert_close(net.theta.detach(), before - 0.3 * gradient)


def test_without_perturbation_it_is_torchs_sgd() -> None:
    net = PerturbedNet(6, width=8, c_p=0.0).double()
    first, second, v = net.layers(net.theta.detach().clone())
    layers = [torch.nn.Parameter(w[0].T.contiguous()) for w in (first, second, v)]
    optimizer = torch.optim.SGD(layers, 0.2)
    regressor = OnlineRegressor(net, lr=0.2, copies=1)
    for x in torch.nn.functional.normalize(inputs(30, 6)):
        h = torch.relu(layers[1] @ torch.relu(layers[0] @ x))
        optimizer.zero_grad()
        ((x[0] - layers[2] @ h) ** 2 / 2).sum().backward()
        optimizer.step()
        regressor.update(x[None, None], x[None, None, 0])
    now = torch.cat([w.detach().T.flatten() for w in layers])
    torch.testing.assert_close(net.theta.detach()[0], now, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
@pytest.mark.parametrize("scaling", ["standard", "theory"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_gradients_are_those_of_torch_func(activation: str, scaling: str, depth: int) -> None:
    net = net_of(activation=activation, scaling=scaling, depth=depth)
    x = inputs(2, 4, 6)
    at = net.linearise(x)

    def f(theta: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return net.linearise(row[None, None], theta=theta[None]).value[0, 0]

    expected = vmap(vmap(grad(f), (None, 0)))(net.theta.detach(), x)
    g = net.gradients(at)
    torch.testing.assert_close(g, expected)
    scale = inputs(*net.theta.shape).exp()
    torch.testing.assert_close(net.quadratic(at, scale), (g**2 * scale[:, None]).sum(2))


def test_blocks_are_dense_inputs_never_laid_out() -> None:
    net, x, arm = net_of(12), inputs(2, 4), torch.tensor([[2, 0], [1, 1]])
    dense = blocks_of(x, 3)
    torch.testing.assert_close(net(x), net(dense))
    torch.testing.assert_close(net.gradients(net.linearise(x)), net.gradients(net.linearise(dense)))
    chosen = dense.gather(1, arm[..., None].expand(2, 2, 12))
    twice = x[:, None].expand(2, 2, 4)
    at, same = net.linearise(twice, arm), net.linearise(chosen)
    torch.testing.assert_close(at.value, same.value)
    torch.testing.assert_close(net.gradients(at), net.gradients(same))
    scale = inputs(*net.theta.shape).exp()
    torch.testing.assert_close(net.quadratic(at, scale), net.quadratic(same, scale))


def test_scalings_are_one_function_and_theta_0_is_kept() -> None:
    a, b = (PerturbedNet(6, width=9, scaling=s, seeds=(3,)).double() for s in ("standard", "theory"))
    x = inputs(1, 5, 6)
    torch.testing.assert_close(a(x), b(x), rtol=1e-5, atol=1e-6)
    assert float(a.layers(a.theta.detach())[-1].norm()) == pytest.approx(1)
    moved = net_of()
    other = PerturbedNet(6, width=5, seeds=(8, 9)).double()
    other.load_state_dict(moved.state_dict())
    assert torch.equal(other.theta_0, moved.theta_0)
    assert not torch.equal(other.theta_0, other.theta)


def test_gaps_carry_no_noise_and_a_rounds_signs_are_shared() -> None:
    net = net_of(c_p=0.5)
    regressor = OnlineRegressor(net, copies=2, seeds=(0, 1))
    x = inputs(2, 3, 6)
    first = regressor.predict(x)
    assert torch.equal(first, regressor.predict(x))
    torch.testing.assert_close(first - first[:, :1], (net(x) - net(x)[:, :1]).detach())
    signs = regressor.signs
    assert signs is not None
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    regressor.update(x[:, :1], torch.zeros(2, 1))
    fresh = regressor.signs
    assert fresh is not None
    assert not torch.equal(signs, fresh)


def test_projection_schedule_window_and_passes() -> None:
    net = PerturbedNet(6, width=5).double()
    regressor = OnlineRegressor(net, lr=5.0, rho=0.1)
    x = inputs(1, 8, 6)
    for k in range(8):
        regressor.update(x[:, k : k + 1], torch.ones(1, 1))
        assert float((net.theta - net.theta_0).detach().norm()) <= 0.1 + 1e-12
    assert float((net.theta - net.theta_0).detach().norm()) == pytest.approx(0.1)
    thetas = []
    for options in ({}, {"schedule": "inverse"}, {"window": 4}, {"passes": 3}):
        other = PerturbedNet(6, width=5, c_p=0.0).double()
        online = OnlineRegressor(other, **options)
        for k in range(8):
            online.update(x[:, k : k + 1], torch.ones(1, 1))
        thetas.append(other.theta.detach())
    assert all(not torch.equal(a, b) for i, a in enumerate(thetas) for b in thetas[:i])


@pytest.mark.parametrize("cls", [NeuralUCB, NeuralTS])
def test_covariance_against_its_definition(cls: type[NeuralUCB]) -> None:
    """Full: Z is inverted outright; diagonal: its diagonal; width nu sqrt(g Z^-1 g / m)."""
    for gradient in ("current", "initial"):
        full, diagonal = (
            ConfidencePolicy(
                cls(width=4, nu=0.3, lam=0.7, lr=0.1, gradient=gradient, covariance=c),
                arms=3,
                features=6,
                seeds=(0,),
            )
            for c in ("full", "diagonal")
        )
        net = full.regressor_.net
        z = 0.7 * torch.eye(net.theta.shape[1])
        d = torch.full((net.theta.shape[1],), 0.7)
        context = inputs(1, 3, 6).float()
        for arm in (0, 2, 2, 1):
            at = net.linearise(context, theta=net.theta_0 if gradient == "initial" else None)
            g = net.gradients(at).detach()[0]
            expected = 0.3 * torch.einsum("kp,pq,kq->k", g, z.inverse(), g).div(4).sqrt()
            torch.testing.assert_close(full.widths(context)[0], expected, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(diagonal.widths(context)[0], 0.3 * ((g**2 / d).sum(1) / 4).sqrt())
            z, d = z + torch.outer(g[arm], g[arm]) / 4, d + g[arm] ** 2 / 4
            for policy in (full, diagonal):
                policy.update(context, torch.tensor([arm]), torch.tensor([1.0]))


def test_thompson_samples_have_the_papers_variance() -> None:
    policy = ConfidencePolicy(NeuralTS(width=4, depth=1, nu=0.5, lam=4.0), arms=3, features=6, seeds=tuple(range(2000)))
    yhat, width = torch.zeros(2000, 3), torch.ones(2000, 3)
    found = policy.learner.scores(yhat, width, policy)
    assert float(found.std()) == pytest.approx(2.0, rel=0.03)  # sqrt(lam) times the width


def test_a_window_does_not_follow_a_buffer_that_is_filled_again() -> None:
    thetas = []
    for reuse in (False, True):
        net = PerturbedNet(6, width=5, c_p=0.0)
        online, buffer = OnlineRegressor(net, window=4), torch.empty(1, 1, 6)
        for row in inputs(1, 6, 6).float()[0]:
            x = buffer.copy_(row[None, None]) if reuse else row[None, None]
            online.update(x, torch.ones(1, 1))
        thetas.append(net.theta.detach())
    assert torch.equal(*thetas)


def test_linear_models_are_depth_zero() -> None:
    x = inputs(200, 3).float()
    env = ClassificationBandit(x / x.norm(dim=1, keepdim=True), (x[:, 0] > 0).long(), seeds=(0, 1))
    for learner in (NeuSquareCB(depth=0, c_p=0.0, lr=0.3), NeuFastCB(depth=0, c_p=0.0, lr=1.0, gamma=40.0)):
        assert float(run_bandit(learner, env).cost[:, 100:].mean()) < 0.35


def test_a_greedy_optimist_locks_in_and_inverse_gaps_do_not() -> None:
    """An adversary makes arm 0 cost 0.4 from the start and arm 1 nothing later: without width the optimist stays."""

    class Switch:
        arms, features, rounds, seeds = 2, 4, 600, (0, 1, 2)

        def context(self, t: int) -> torch.Tensor:
            return torch.tensor([[0.6, 0.8]]).expand(3, 2)

        def costs(self, t: int) -> torch.Tensor:
            return torch.tensor([[0.4, 1.0 if t < 40 else 0.0]]).expand(3, 2)

    options = {"width": 16, "lr": 0.2}
    stuck = run_bandit(NeuralUCB(nu=0.0, **options), Switch())  # type: ignore[arg-type]
    free = run_bandit(NeuSquareCB(gamma=30.0, copies=3, **options), Switch())  # type: ignore[arg-type]
    assert (stuck.arm[:, 60:] == 0).all()
    assert (free.arm[:, -50:] == 1).double().mean() > 0.8
    assert free.probs.min() >= 1 / (2 + 30 * 1.5)
    assert (free.regret[:, -1] < 0.5 * stuck.regret[:, -1]).all()


def test_rates_of_the_theory() -> None:
    assert square_gamma(10, 1000, 2.0, 0.1) == pytest.approx(math.sqrt(10_000 / (2 + math.log(10))))
    assert fast_gamma(10, 1e6, 1.0) == pytest.approx(math.sqrt(1e7 / 3))
    assert fast_gamma(10, 5.0, 1.0) == 100


def test_classification_bandit() -> None:
    x, y = torch.eye(6), torch.arange(6) % 3
    env = ClassificationBandit(x, y, seeds=(4, 5))
    assert (env.arms, env.features, env.rounds) == (3, 18, 6)
    assert sorted(env.order[0].tolist()) == list(range(6))
    assert not torch.equal(env.order[0], env.order[1])
    alone = ClassificationBandit(x, y, seeds=(5,))
    assert torch.equal(alone.order[0], env.order[1])
    for t in range(6):
        right = y[env.context(t).argmax(1)]
        assert torch.equal(env.costs(t).argmin(1), right)
        assert torch.equal(env.costs(t).sum(1), torch.full((2,), 2.0, dtype=torch.float64))
    assert torch.equal(ClassificationBandit(x, y, seeds=(1,), shuffle=False).context(2), x[2:3])


def test_bad_input() -> None:
    y = torch.tensor([0.1, 0.2])
    for weigh in (inverse_gap_weighting, fast_igw):
        for bad, gamma in ((y, 0.0), (y, -1.0), (y, math.inf), (y[:1], 1.0), (y * torch.nan, 1.0)):
            with pytest.raises(InputError, match="expected"):
                weigh(bad, gamma)
    with pytest.raises(InputError, match="below 0"):
        fast_igw(y - 0.15, 1.0)
    for wrong in (
        lambda: NeuSquareCB(gamma=0.0),
        lambda: NeuFastCB(gamma=-1.0),
        lambda: NeuFastCB(loss="square"),
        lambda: NeuralEpsGreedy(eps=1.5),
        lambda: NeuralUCB(lam=0.0),
        lambda: NeuralTS(nu=-1.0),
        lambda: NeuralUCB(covariance="block"),  # type: ignore[arg-type]
        lambda: NeuralUCB(gradient="last"),  # type: ignore[arg-type]
        lambda: NeuralUCB(covariance="full").start(10, 640, seeds=(0,)),
        lambda: PerturbedNet(0),
        lambda: PerturbedNet(3, c_p=-1.0),
        lambda: PerturbedNet(3, activation="sine"),  # type: ignore[arg-type]
        lambda: PerturbedNet(3, scaling="free"),  # type: ignore[arg-type]
        lambda: OnlineRegressor(PerturbedNet(3), lr=0.0),
        lambda: OnlineRegressor(PerturbedNet(3), seeds=(0, 1)),
        lambda: OnlineRegressor(PerturbedNet(3), loss="hinge"),  # type: ignore[arg-type]
        lambda: square_gamma(3, 10, 0.0, 1.0),
        lambda: square_gamma(3, 10, -1.0),
        lambda: fast_gamma(3, 10.0, 0.0),
        lambda: fast_gamma(3, -1.0, 1.0),
        lambda: ClassificationBandit(torch.rand(3, 2), torch.zeros(3, dtype=torch.int64), seeds=(0,)),
        lambda: ClassificationBandit(torch.rand(3, 2), torch.tensor([0, 1, 3]), seeds=(0,), classes=3),
    ):
        with pytest.raises(InputError):
            wrong()
    regressor = OnlineRegressor(PerturbedNet(3), loss="kl")
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        regressor.update(torch.rand(1, 1, 3), torch.tensor([[1.5]]))
    with pytest.raises(InputError, match="not finite"):
        OnlineRegressor(PerturbedNet(3)).predict(torch.full((1, 1, 3), math.inf))
