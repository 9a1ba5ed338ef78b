"""DP-SGD: its steps against SGD written out, the bound on each sample's part, and its epsilon."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn

from assay.data import Data
from assay.nets import MLP
from assay.privacy import DPSGD, OneRunAudit, clipped_gradients
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.subject import Subject
from assay.training import State, Supervised

N = 40
PLAIN: dict[str, Any] = {"noise": 0.0, "clip": math.inf}


def network(seed: int = 0) -> MLP:
    with seeded(seed, "test"):
        return MLP((6,), 3, (5,))


@pytest.fixture(scope="module")
def data() -> Data:
    rng = torch.Generator().manual_seed(0)
    return Data(torch.randn(N, 6, generator=rng), torch.arange(N) % 3, ("a", "b", "c"), (-9.0, 9.0))


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_all_samples_without_noise_or_clip_is_sgd_step_for_step(data: Data) -> None:
    # With a batch of all samples q is 1, and plain training sees the same batch in another order.
    options: dict[str, Any] = {"epochs": 6, "batch_size": N, "lr": 0.3, "optimizer": "sgd", "schedule": "cosine"}
    private = DPSGD(**PLAIN, **options).fit(network(), data, seed=1)
    plain = Supervised(**options).fit(network(), data, seed=1)
    torch.testing.assert_close(flat(private), flat(plain), rtol=1e-4, atol=1e-6)
    assert (flat(private) - flat(network())).norm() > 0.1


def test_poisson_steps_without_noise_are_sgd_written_out(data: Data) -> None:
    method = DPSGD(**PLAIN, steps=5, batch_size=8, lr=0.3, momentum=0.0, chunk=3)
    by_hand, state, sizes = network(), State(2, data, 5), []
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.3)
    for step in range(5):
        state.step = step
        batch = method.drawn(state)
        sizes.append(len(batch.y))
        optimizer.zero_grad()
        (F.cross_entropy(by_hand(batch.x), batch.y, reduction="sum") / 8).backward()
        optimizer.step()
    torch.testing.assert_close(flat(method.fit(network(), data, seed=2)), flat(by_hand), rtol=1e-4, atol=1e-6)
    assert len(set(sizes)) > 1  # the sizes of Poisson samples differ
    assert abs(sum(sizes) / 5 - 8) < 4 * (8 * 0.8 / 5) ** 0.5


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e6])
def test_each_sample_counts_at_most_the_clip(data: Data, clip: float) -> None:
    model = network()
    model.body[1].bias.requires_grad_(False)
    gradients, losses = clipped_gradients(model, data.x * 5, data.y, clip)
    assert "body.1.bias" not in gradients
    norms = torch.cat([g.flatten(1) for g in gradients.values()], 1).norm(dim=1)
    assert (norms <= clip * (1 + 1e-5)).all()
    for i in range(0, N, 7):
        model.zero_grad()
        loss = F.cross_entropy(model(data.x[i : i + 1] * 5), data.y[i : i + 1])
        loss.backward()
        raw = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        size = torch.cat([g.flatten() for g in raw.values()]).norm()
        torch.testing.assert_close(losses[i], loss.detach())
        for k, g in raw.items():
            torch.testing.assert_close(gradients[k][i], g * min(1.0, clip / size.item()), rtol=1e-4, atol=1e-6)
    assert ((norms - clip).abs() < 1e-4 * clip).any() or clip > 1e3


def test_one_sample_more_moves_the_sum_by_at_most_the_clip(data: Data) -> None:
    method, model = DPSGD(noise=0.0, clip=0.3, batch_size=N), network()
    sums = []
    for rows in (slice(0, N), slice(1, N)):
        part = data[rows]
        state = State(0, part, 1)
        gradients, _ = method.private_gradient(model, part.batch(torch.arange(len(part))), state)
        sums.append(torch.cat([g.flatten() for g in gradients.values()]) * len(part))
    assert (sums[0] - sums[1]).norm() <= 0.3 * (1 + 1e-4)


def test_the_noise_has_the_deviation_it_says(data: Data) -> None:
    method, model = DPSGD(noise=2.0, clip=0.5, batch_size=10), MLP((6,), 3, (600,))
    nothing = data.batch(torch.arange(0))
    gradients, loss = method.private_gradient(model, nothing, State(3, data, 1))
    values = torch.cat([g.flatten() for g in gradients.values()])
    deviation = 2.0 * 0.5 / 10
    assert loss == 0
    assert abs(values.std().item() / deviation - 1) < 4 / (2 * len(values)) ** 0.5
    assert abs(values.mean().item()) < 4 * deviation / len(values) ** 0.5
    again, _ = method.private_gradient(model, nothing, replace(State(3, data, 1), step=1))
    assert not torch.cat([g.flatten() for g in again.values()]).allclose(values)


def test_chunks_change_nothing(data: Data) -> None:
    first, second = (DPSGD(steps=3, batch_size=20, chunk=c).fit(network(), data, seed=0) for c in (2, 64))
    torch.testing.assert_close(flat(first), flat(second), rtol=1e-5, atol=1e-6)


def test_a_repair_starts_from_new_weights(data: Data) -> None:
    method = DPSGD(steps=2, batch_size=8)
    subjects = [Subject(network(k), data, data) for k in (0, 1)]
    assert flat(method.repair(subjects[0], seed=3)).equal(flat(method.repair(subjects[1], seed=3)))
    assert not flat(method.repair(subjects[0], seed=3)).equal(flat(method.control(subjects[0], seed=3)))


def test_refuses(data: Data) -> None:
    for options, words in (
        ({"clip": 0.0}, "clip > 0"),
        ({"clip": math.nan}, "clip > 0"),
        ({"noise": -1.0}, "noise >= 0"),
        ({"clip": math.inf}, "finite clip"),
        ({"accountant": "gdp"}, "rdp"),
    ):
        with pytest.raises(InputError, match=words):
            DPSGD(**options)
    mixing = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(InputError, match="layer '1' normalises"):
        DPSGD(steps=1).fit(mixing, data, seed=0)
    keeping = nn.Sequential(nn.Linear(6, 3), nn.InstanceNorm1d(3, track_running_stats=True))
    with pytest.raises(InputError, match="layer '1' keeps statistics"):
        DPSGD(steps=1).fit(keeping, data, seed=0)
    with pytest.raises(InputError, match="delta in"):
        DPSGD().epsilon(100, delta=0.0)
    assert DPSGD(noise=0.0).epsilon(100, delta=1e-5) == math.inf


def gaussian_epsilon(noise: float, steps: int, delta: float) -> float:
    """Of ``steps`` Gaussian mechanisms on all samples, exactly (Balle & Wang, 2018, arXiv:1805.06530, theorem 8)."""
    mu = steps**0.5 / noise

    def excess(e: float) -> float:
        return float(norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta)

    return float(brentq(excess, 0.0, 60.0))


def one_hot(m: int) -> Data:
    return Data(torch.eye(m), torch.arange(m) % 2, ("a", "b"), index=torch.arange(m))


def test_the_audit_stays_below_the_true_epsilon_and_rises_above_it_without_noise() -> None:
    # Every canary has an input of its own: without noise the trained model tells each from the others.
    pool, audit = one_hot(220), OneRunAudit(delta=1e-6)
    start = nn.Linear(220, 2, bias=False)
    nn.init.zeros_(start.weight)
    private = DPSGD(steps=4, batch_size=220, noise=4.0, clip=1.0, lr=1.0, momentum=0.0)
    true = gaussian_epsilon(4.0, 4, 1e-6)
    bounds = {}
    for noise in (4.0, 0.0):
        method = replace(private, noise=noise)
        found = audit.run(partial(method.fit, start, seed=3), pool[:20], pool[20:], guesses=200, seed=1)
        bounds[noise] = found.epsilon
    assert bounds[4.0] < true < bounds[0.0]
    assert true == pytest.approx(2.2, abs=0.4)


def test_epsilon_by_opacus() -> None:
    pytest.importorskip("opacus", reason="the extra assay[dp] (opacus) is not installed")
    full = DPSGD(steps=4, batch_size=220, noise=4.0)
    exact = gaussian_epsilon(4.0, 4, 1e-6)
    for accountant in ("rdp", "prv"):
        found = replace(full, accountant=accountant).epsilon(220, delta=1e-6)
        assert exact <= found < 1.35 * exact
    sampled = DPSGD(epochs=3, batch_size=16, noise=1.1)
    few, many = sampled.epsilon(2000, delta=1e-5), sampled.epsilon(200, delta=1e-5)
    assert few < many
    assert replace(sampled, noise=2.0).epsilon(200, delta=1e-5) < many
    fitted = sampled.for_budget(200, epsilon=3.0, delta=1e-5)
    assert 2.9 < fitted.epsilon(200, delta=1e-5) <= 3.0
    with pytest.raises(InputError, match="budget"):
        sampled.for_budget(200, epsilon=0.0, delta=1e-5)


def test_without_opacus_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opacus.accountants.utils", None)
    monkeypatch.setitem(__import__("sys").modules, "opacus", None)
    with pytest.raises(InputError, match=r"assay\[dp\]"):
        DPSGD().epsilon(100, delta=1e-5)


def test_clipped_sum_equals_that_of_opacus(data: Data) -> None:
    optimizers = pytest.importorskip("opacus.optimizers", reason="the extra assay[dp] (opacus) is not installed")
    model, method = network(), DPSGD(noise=0.0, clip=0.2, batch_size=N)
    raw, _ = clipped_gradients(model, data.x, data.y, math.inf)
    peer = optimizers.DPOptimizer(
        torch.optim.SGD(model.parameters(), 1.0), noise_multiplier=0.0, max_grad_norm=0.2, expected_batch_size=N
    )
    for k, p in model.named_parameters():
        p.grad_sample = raw[k]  # type: ignore[attr-defined]
    peer.pre_step()
    ours, _ = method.private_gradient(model, data.batch(torch.arange(N)), State(0, data, 1))
    for k, p in model.named_parameters():
        torch.testing.assert_close(ours[k], p.grad, rtol=1e-4, atol=1e-7)


def test_augmentations_are_refused(data: Data) -> None:
    with pytest.raises(InputError, match="augment"):
        DPSGD(epochs=1).fit(network(), data, seed=0, augment=lambda x, draws: x)
