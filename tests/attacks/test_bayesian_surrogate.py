"""The sampler against closed forms and torch's SGD, the attack against I-FGSM, and the measures by hand."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.attacks import (
    L2,
    PGD,
    BNNTransferAttack,
    CyclicalSGLD,
    DeepEnsembleSurrogate,
    Langevin,
    Linf,
    SnapshotSurrogate,
    Surrogates,
    SWAGSurrogate,
    Untargeted,
    cosine_cycle,
    deep_ensemble_equivalent,
    transfer_success,
)
from assay.data import Data, load_data
from assay.nets import MLP, ResNet
from assay.runtime.errors import InputError
from assay.runtime.random import seeded


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


def network(seed: int = 0) -> nn.Module:
    with seeded(seed, "net"):
        return MLP(hidden=(16,))


def members(count: int, seed: int = 0) -> list[nn.Module]:
    return [network(seed + k).double() for k in range(count)]


def batch(n: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 8, 8, generator=g, dtype=torch.float64), torch.randint(10, (n,), generator=g)


def test_the_variance_is_that_of_the_discrete_chain() -> None:
    """theta <- (1 - a) theta + sqrt(2 l T / n) xi has the variance 2 l T / n / (1 - (1 - a)^2)."""
    theta = nn.Parameter(torch.zeros(200_000))
    sampler = Langevin([theta], 0.4, size=5, temperature=0.3)
    with seeded(0, "chain"):
        for _ in range(60):
            theta.grad = 2 * theta.detach()
            sampler.step()
    noise = 2 * 0.4 * 0.3 / 5
    assert float(theta.detach().var()) == pytest.approx(noise / (1 - 0.2**2), rel=0.01)


def test_without_heat_it_is_sgd() -> None:
    mine, theirs = (nn.Parameter(torch.ones(3)) for _ in range(2))
    sampler = Langevin([mine], 0.1, size=5, temperature=0.0, alpha=0.2, weight_decay=0.3)
    sgd = torch.optim.SGD([theirs], 0.1, momentum=0.8, weight_decay=0.3)
    for k in range(5):
        for p, optimiser in ((mine, sampler), (theirs, sgd)):
            p.grad = torch.tensor([1.0, -2.0, k])
            optimiser.step()
    torch.testing.assert_close(mine, theirs)


def test_noise_comes_in_the_last_steps_of_each_cycle() -> None:
    theta = nn.Parameter(torch.zeros(4))
    sampler = Langevin([theta], 0.1, size=5, cycle=6, noisy=2)
    moved = []
    with seeded(0, "cycle"):
        for _ in range(12):
            before = theta.detach().clone()
            theta.grad = torch.zeros(4)
            sampler.step()
            moved.append(bool((theta.detach() != before).any()))
    assert moved == [False] * 4 + [True] * 2 + [False] * 4 + [True] * 2


def test_a_stopped_sampler_goes_on_where_it_was() -> None:
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    make = partial(Langevin, lr=0.1, size=5, cycle=4, alpha=0.5, temperature=0.0)
    one, two = make([first]), make([second])
    for k in range(6):
        first.grad, second.grad = torch.full((3,), 1.0 + k), torch.full((3,), 1.0 + k)
        one.step()
        two.step()
        if k == 2:
            kept = two.state_dict()
            two = make([second])
            two.load_state_dict(kept)
    assert torch.equal(first, second)


@given(step=st.integers(0, 1000), length=st.integers(1, 300))
@settings(max_examples=50)
def test_the_cycle_repeats_and_falls(step: int, length: int) -> None:
    assert cosine_cycle(step, length) == cosine_cycle(step + 3 * length, length)
    assert 0 < cosine_cycle(step, length) <= 1
    assert cosine_cycle(length * 2, length) == 1
    if (step + 1) % length:
        assert cosine_cycle(step + 1, length) < cosine_cycle(step, length)


def test_samples_are_kept_at_the_ends_of_cycles(data: Data) -> None:
    small, start = data[:64], network()
    method = CyclicalSGLD(cycles=2, epochs_per_cycle=4, samples_per_cycle=2, lr=0.1, temperature=0.0)
    found = method.fit(start, small, seed=0)
    assert len(found.samples) == 4
    once = SnapshotSurrogate(cycles=1, epochs_per_cycle=4, samples_per_cycle=1, lr=0.1).fit(start, small, seed=0)
    assert all(
        torch.equal(a, b) for a, b in zip(found.samples[1].parameters(), once.samples[0].parameters(), strict=True)
    )


def test_cold_restarts_begin_at_new_weights(data: Data) -> None:
    method = CyclicalSGLD(
        cycles=2, epochs_per_cycle=1, samples_per_cycle=1, lr=1e-6, temperature=0.0, cold_restarts=True
    )
    start = network()
    first, second = method.fit(start, data[:64], seed=0).samples
    weight = start.get_parameter("head.weight")
    assert (first.get_parameter("head.weight") - weight).abs().max() < 1e-4
    assert (second.get_parameter("head.weight") - weight).abs().max() > 1e-2


def test_the_official_heat() -> None:
    assert CyclicalSGLD(batch_size=64).heat(8000) == pytest.approx(0.512)
    assert CyclicalSGLD(batch_size=64).heat(50_000) == pytest.approx(50_000 / 782**2)
    assert CyclicalSGLD(temperature=0.7).heat(50_000) == 0.7


def test_statistics_of_norms_go_with_each_sample(data: Data) -> None:
    with seeded(0, "net"):
        start = ResNet((1, 8, 8), width=4)
    method = CyclicalSGLD(cycles=1, epochs_per_cycle=2, samples_per_cycle=2, lr=0.05)
    first, second = method.fit(start, data[:100], seed=0).samples
    name = "stem.1.running_mean"
    assert not torch.equal(first.get_buffer(name), second.get_buffer(name))


def test_members_of_an_ensemble_begin_apart(data: Data) -> None:
    start = network()
    found = DeepEnsembleSurrogate(members=3, epochs=1, lr=1e-6).fit(start, data[:64], seed=0).samples
    weights = [net.get_parameter("head.weight") for net in found]
    assert (weights[0] - start.get_parameter("head.weight")).abs().max() < 1e-4
    assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(weights) for b in weights[:i])


def test_swag_has_the_mean_and_the_covariance_of_its_gaussian() -> None:
    seen = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = SWAGSurrogate(samples=200_000, rank=4)
    found = method.draws(seen, 0).numpy()
    w = seen.numpy()
    away = np.stack([w[i] - w[: i + 1].mean(0) for i in range(6)])[2:]
    expected = np.diag((w**2).mean(0) - w.mean(0) ** 2) / 2 + away.T @ away / (2 * 3)
    np.testing.assert_allclose(found.mean(0), w.mean(0), atol=0.01)
    np.testing.assert_allclose(np.cov(found.T), expected, atol=0.02)
    still = SWAGSurrogate(samples=2, scale=0.0).draws(seen, 0)
    torch.testing.assert_close(still, seen.mean(0).expand(2, 3))


def test_the_full_attack_follows_the_mean_of_the_logits() -> None:
    nets, (x, y) = members(3), batch()
    attack = BNNTransferAttack(ball=Linf(0.1), steps=5, mode="full")
    z = x.clone()
    for _ in range(5):
        z.requires_grad_()
        loss = F.cross_entropy(torch.stack([net(z) for net in nets]).mean(0), y, reduction="sum")
        moved = z.detach() + 0.01 * torch.autograd.grad(loss, z)[0].sign()
        z = torch.minimum(torch.maximum(moved, x - 0.1), x + 0.1).clamp(0, 1)
    torch.testing.assert_close(attack(Surrogates(nets), x, y, seed=0), z)


def test_the_light_attack_takes_the_networks_in_turn() -> None:
    nets, (x, y) = members(3), batch()
    attack = BNNTransferAttack(ball=L2(1.0), steps=7, shuffle=False)
    z = x.clone()
    for t in range(7):
        z.requires_grad_()
        slope = torch.autograd.grad(F.cross_entropy(nets[t % 3](z), y, reduction="sum"), z)[0]
        moved = z.detach() + 0.1 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None] - x
        size = moved.flatten(1).norm(dim=1)[:, None, None, None]
        z = (x + moved * (1 / size).clamp(max=1)).clamp(0, 1)
    torch.testing.assert_close(attack(Surrogates(nets), x, y, seed=0), z)


def test_order_does_not_depend_on_batches_but_on_the_seed() -> None:
    whole, (x, y) = Surrogates(members(5)), batch(20)
    attack = BNNTransferAttack(ball=Linf(0.1), steps=3)
    first = attack(whole, x, y, seed=1)
    torch.testing.assert_close(attack.run(whole, x, Untargeted(y), seed=1, batch_size=3).x_adv, first)
    assert any(not torch.equal(attack(whole, x, y, seed=s), first) for s in (2, 3, 4))
    twice = BNNTransferAttack(ball=Linf(0.1), steps=3, random_start=True, restarts=2)
    found = twice.run(whole, x, Untargeted(y), seed=1)
    assert (found.gradients == 6).all()
    with torch.no_grad():
        assert torch.equal(whole(found.x_adv).argmax(1) != y, found.success)


def test_light_costs_as_many_gradients_as_one_network() -> None:
    (x, y), one = batch(), PGD(ball=Linf(0.1), steps=9, early_stop=False, random_start=False)
    light = BNNTransferAttack(ball=Linf(0.1), steps=9).run(Surrogates(members(4)), x, Untargeted(y), seed=0)
    single = one.run(network().double(), x, Untargeted(y), seed=0)
    assert torch.equal(light.gradients, single.gradients)
    assert BNNTransferAttack(steps=0)(Surrogates(members(2)), x, y, seed=0).equal(x)


class _Threshold(nn.Module):
    """Class 1 where the first number is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((0.5 - x[:, 0], x[:, 0] - 0.5), 1)


def test_transfer_counts_only_what_the_target_gets_right() -> None:
    x, y = torch.tensor([[0.1], [0.2], [0.9], [0.8]]), torch.tensor([0, 0, 1, 0])
    x_adv = torch.tensor([[0.7], [0.3], [0.2], [0.7]])
    assert transfer_success(_Threshold(), x, x_adv, y) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="gets no input right"):
        transfer_success(_Threshold(), x, x_adv, torch.tensor([1, 1, 0, 0]))
    with pytest.raises(InputError, match="expected that of x"):
        transfer_success(_Threshold(), x, x_adv.repeat(1, 2), y)


def test_equivalents_by_hand() -> None:
    assert deep_ensemble_equivalent((1, 2, 5), (0.2, 0.4, 0.7), 0.5) == pytest.approx(3.0)
    assert deep_ensemble_equivalent((1, 2, 5), (0.2, 0.4, 0.7), 0.1) == 1
    assert deep_ensemble_equivalent((1, 2, 5), (0.2, 0.4, 0.7), 0.9) == 5
    assert deep_ensemble_equivalent((1, 2, 5), (0.4, 0.3, 0.7), 0.55) == pytest.approx(3.5)
    for n, rates in (((1, 1), (0.1, 0.2)), ((1, 2), (0.1,)), ((1, 2), (0.1, math.nan))):
        with pytest.raises(InputError, match="deep_ensemble_equivalent"):
            deep_ensemble_equivalent(n, rates, 0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CyclicalSGLD(cycles=0), "cycles"),
        (lambda: CyclicalSGLD(epochs_per_cycle=2, samples_per_cycle=3), "samples <= epochs"),
        (lambda: CyclicalSGLD(noise_epochs=51), "noise_epochs"),
        (lambda: CyclicalSGLD(temperature=-1.0), "temperature"),
        (lambda: CyclicalSGLD(alpha=0.0), "alpha"),
        (lambda: SnapshotSurrogate(temperature=1.0), "no noise"),
        (lambda: DeepEnsembleSurrogate(members=0), "members"),
        (lambda: SWAGSurrogate(collect=1), "collect"),
        (lambda: BNNTransferAttack(mode="heavy"), "light"),  # type: ignore[arg-type]
        (lambda: BNNTransferAttack(early_stop=True), "early_stop"),
        (lambda: Langevin([nn.Parameter(torch.zeros(1))], 0.1, size=0), "size"),
        (lambda: Langevin([nn.Parameter(torch.zeros(1))], 0.1, size=1, cycle=0), "cycle"),
    ],
)
def test_bad_options(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
