"""Federated averaging by hand: one client, one step, mean gradients, local steps, servers, buffers, workers."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks import FGSM, Linf
from assay.data import Data, load_data
from assay.defenses import FedAvg, FederatedAT, fedavg
from assay.dynamics import TwoLayerReLU, separable_sphere
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "batch_size": 1000}
FIXED = FGSM(ball=Linf(0.1), random_start=False, early_stop=False)


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with seeded(seed, "fed"):
        return MLP(hidden=(16,)).to(dtype)


@pytest.fixture(scope="module")
def clients() -> list[Data]:
    data = load_data("digits:train")
    return [data[:60], data[60:120], data[120:180]]


def wide(data: Data) -> Data:
    return data.with_x(data.x.double())


def attacked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One signed step of 0.1 in the box, by hand."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
    return (x + 0.1 * grad.sign()).clamp(0, 1).detach()


def stepped(model: nn.Module, x: Tensor, y: Tensor, lr: float = 0.1) -> nn.Module:
    model = copy.deepcopy(model)
    F.cross_entropy(model(x), y).backward()
    torch.optim.SGD(model.parameters(), lr).step()
    return model.requires_grad_()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(p.equal(q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def close(a: nn.Module, b: nn.Module, atol: float = 1e-6) -> None:
    for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, atol=atol, rtol=0)


def stepped_times(model: nn.Module, data: Data, times: int) -> nn.Module:
    for _ in range(times):
        model = stepped(model, attacked(model, data.x, data.y), data.y)
    return model


def test_one_client_one_step_is_the_central_step(clients: list[Data]) -> None:
    """Bit for bit with one sample; more are shuffled, and sums in another order differ in their last bits."""
    method = FederatedAT(attack=FIXED, rounds=3, local_steps=1, **SGD)
    one = clients[0][:1]
    assert same(method.run(net(), [one], seed=0).model_, stepped_times(net(), one, 3))
    close(method.run(net(), clients[:1], seed=0).model_, stepped_times(net(), clients[0], 3))


def test_one_local_step_of_equal_clients_is_the_central_step_on_all(clients: list[Data]) -> None:
    every = [wide(c) for c in clients]
    model = net(dtype=torch.float64)
    method = FederatedAT(attack=FIXED, rounds=1, local_steps=1, global_lr=0.7, **SGD)
    x, y = (torch.cat([getattr(c, k) for c in every]) for k in "xy")
    central = stepped(model, attacked(model, x, y), y, lr=0.07)
    close(method.run(model, every, seed=0).model_, central, atol=1e-12)


def test_two_local_steps_attack_the_present_weights(clients: list[Data]) -> None:
    every, model = [wide(c) for c in clients[:2]], net(dtype=torch.float64)
    ends = [stepped_times(model, c, 2) for c in every]
    mean = {k: (ends[0].state_dict()[k] + ends[1].state_dict()[k]) / 2 for k in model.state_dict()}
    by_hand = copy.deepcopy(model)
    by_hand.load_state_dict(mean)
    run = FederatedAT(attack=FIXED, rounds=1, local_steps=2, **SGD).run(model, every, seed=0)
    close(run.model_, by_hand, atol=1e-12)
    spread = [sum(float((e.state_dict()[k] - mean[k]).square().sum()) for k in mean) for e in ends]
    assert run.history_[0].drift == pytest.approx(math.sqrt(sum(spread) / 2))
    worst = [attacked(by_hand, c.x, c.y) for c in every]
    losses = [float(F.cross_entropy(by_hand(w), c.y).detach()) for w, c in zip(worst, every, strict=True)]
    assert run.history_[0].robust_loss == pytest.approx(sum(losses) / 2)
    hits = [float((by_hand(w).argmax(1) == c.y).double().mean()) for w, c in zip(worst, every, strict=True)]
    assert run.history_[0].robust_acc == pytest.approx(sum(hits) / 2)


def test_the_order_of_clients_does_not_matter(clients: list[Data]) -> None:
    method = FederatedAT(rounds=2, local_steps=2, attack_steps=2, batch_size=20, participation=0.67)
    first, second = (method.run(net(), c, seed=4) for c in (clients, clients[::-1]))
    assert same(first.model_, second.model_)
    assert first.history_ == second.history_


def test_weights_by_size_and_alike(clients: list[Data]) -> None:
    uneven = [clients[0][:10], clients[1][:30]]
    for weighting, shares in (("uniform", (0.5, 0.5)), ("size", (0.25, 0.75))):
        method = FedAvg(rounds=1, local_steps=1, weighting=weighting, **SGD)
        found = method.run(net(), uneven, seed=0).model_
        ends = [stepped(net(), c.x, c.y).state_dict() for c in uneven]
        expected = fedavg(ends, shares)
        for k, v in found.state_dict().items():
            torch.testing.assert_close(v, expected[k].float(), atol=1e-6, rtol=0)


def test_servers_against_their_formulas(clients: list[Data]) -> None:
    """Two rounds on a model without slope: every client moves by the same known step."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.w.expand(len(x))

    one = replace(clients[0][:8], y=torch.ones(8, dtype=torch.int64))

    def after(server: str) -> float:
        method = FedAvg(rounds=2, local_steps=1, global_lr=0.5, server=server, loss="absolute", **SGD)  # type: ignore[arg-type]
        return float(method.run(Constant(), [one], seed=0).model_.w.detach())

    # Each local step is +0.1, the slope of |w - 1| being -1.
    assert after("sgd") == pytest.approx(0.1)
    assert after("momentum") == pytest.approx(0.5 * (0.1 + 0.19))
    assert after("adam") == pytest.approx(2 * 0.5 * 0.1 / (0.1 + 1e-3), rel=1e-5)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.flatten(1)))


@pytest.mark.parametrize("buffers", ["average", "local"])
def test_running_statistics(clients: list[Data], buffers: str) -> None:
    with seeded(0, "norm"):
        model = Normed()
    method = FedAvg(rounds=2, local_steps=1, buffers=buffers, **SGD)  # type: ignore[arg-type]
    norm = method.run(model, clients, seed=0).model_.norm
    mean, rate = torch.stack([c.x.flatten(1).mean(0) for c in clients]), 0.1
    # Running means move by a tenth of the way; both ways end at the mean of the clients', as averaging is linear.
    torch.testing.assert_close(norm.running_mean, (1 - (1 - rate) ** 2) * mean.mean(0))
    assert int(norm.num_batches_tracked) == 0


def test_local_statistics_stay_with_their_client(clients: list[Data]) -> None:
    seen: list[Tensor] = []

    class Watching(FedAvg):
        def local(self, model: nn.Module, client: Data, *args: Any, **options: Any) -> nn.Module:
            seen.append(model.norm.running_mean.clone())
            return super().local(model, client, *args, **options)

    with seeded(0, "norm"):
        model = Normed()
    Watching(rounds=2, local_steps=1, buffers="local", **SGD).run(model, clients, seed=0)
    means = torch.stack([0.1 * c.x.flatten(1).mean(0) for c in clients])
    assert all(not s.any() for s in seen[:3])
    assert sorted(int((means - s).abs().amax(1).argmin()) for s in seen[3:]) == [0, 1, 2]
    assert all(float((means - s).abs().amax(1).min()) < 1e-6 for s in seen[3:])


@pytest.mark.parametrize(("on", "jobs"), [("local", 2), ("ray", 2)])
def test_where_clients_run_does_not_matter(clients: list[Data], on: str, jobs: int) -> None:
    if on == "ray":
        pytest.importorskip("ray")
    method = FederatedAT(rounds=2, local_steps=2, attack_steps=2, batch_size=20)
    here = method.run(net(), clients, seed=3)
    there = replace(method, on=on, jobs=jobs).run(net(), clients, seed=3)
    close(there.model_, here.model_, atol=1e-6)
    assert there.history_[-1].drift == pytest.approx(here.history_[-1].drift, rel=1e-4)


@pytest.mark.parametrize(("kind", "expected"), [("constant", [1.0, 1.0]), ("linear", [1.0, 0.5])])
def test_rounds_follow_from_the_plan_and_the_schedule_runs_over_them(
    clients: list[Data], kind: str, expected: list[float]
) -> None:
    """100 samples, batches of 20, two epochs: ten steps, five a round."""
    rates: list[float] = []

    class Rates(FedAvg):
        def local(self, model: nn.Module, client: Data, plan: Any, **options: Any) -> nn.Module:
            rates.append(plan.lr)
            assert (plan.steps, plan.schedule) == (5, "constant")
            return model

    method = Rates(epochs=2, batch_size=20, lr=1.0, schedule=kind)  # type: ignore[arg-type]
    method.run(net(), [clients[0], clients[1][:40]], seed=0)
    assert rates == [expected[0]] * 2 + [expected[1]] * 2


def test_a_run_ends_at_the_loss_that_is_asked_for(clients: list[Data]) -> None:
    method = FedAvg(rounds=30, local_steps=2, **SGD)
    losses = [r.robust_loss for r in method.run(net(), clients, seed=0).history_]
    level = losses[9]
    stopped = method.run(net(), clients, seed=0, until=level).history_
    assert len(stopped) == next(i for i, v in enumerate(losses) if v <= level) + 1
    assert not method.run(net(), clients, seed=0, track=False).history_


def test_the_network_of_the_theory_learns_from_clients_with_one_label_each() -> None:
    x = separable_sphere(16, 8, 0.5, seed=1)
    x = x[x[:, 0].argsort()]
    data = Data(x, torch.arange(16) // 8, ("-1", "1"), (-2.0, 2.0))
    method = FederatedAT(
        loss="absolute", norm="l2", eps=0.05, attack_steps=3, step_size=0.5, rounds=20, local_steps=3, optimizer="sgd",
        momentum=0.0, lr=0.1, schedule="cosine",
    )  # fmt: skip
    start = TwoLayerReLU(8, 400, seed=1)
    run = method.run(start, [data[:8], data[8:]], seed=0)
    assert run.history_[-1].robust_loss < 0.5 * run.history_[0].robust_loss
    worst = method.craft(run.model_, data.x, data.y, data.index, data, 5)
    assert float((worst - data.x).norm(dim=1).max()) <= 0.05 + 1e-9
    gap = [(run.model_(v) - (2 * data.y - 1)).abs().mean() for v in (worst, data.x)]
    assert float((gap[0] - gap[1]).detach()) > 0.02


def test_bad_options_and_states_are_refused(clients: list[Data]) -> None:
    for options in ({"global_lr": 0.0}, {"participation": 0.0}, {"local_steps": 0}, {"clients": 0}, {"eps": -1.0}):
        with pytest.raises(InputError, match="expected"):
            FederatedAT(**options)
    for name in ("server", "buffers", "weighting", "loss"):
        with pytest.raises(InputError, match=name):
            FedAvg(**{name: "other"})
    with pytest.raises(InputError, match="clients"):
        FedAvg().run(net(), [], seed=0)
    with pytest.raises(InputError, match="differ in names or shapes"):
        fedavg([net().state_dict(), MLP(hidden=(8,)).state_dict()], [0.5, 0.5])


def test_the_control_is_the_same_federation_without_attacks() -> None:
    control = FederatedAT(clients=3, local_steps=2, server="adam", eps=0.2).plain()
    assert type(control) is FedAvg
    assert (control.clients, control.local_steps, control.server) == (3, 2, "adam")


@pytest.mark.parametrize("buffers", ["average", "local"])
def test_shared_weights_move_at_the_servers_rate(clients: list[Data], buffers: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = (nn.Linear(64, d, bias=False) for d in (64, 64, 10))
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x.flatten(1)).relu()))

    with seeded(0, "tied"):
        start = Tied()
    half, whole = (
        FedAvg(rounds=1, local_steps=1, global_lr=rate, buffers=buffers, **SGD).run(start, clients, seed=0).model_  # type: ignore[arg-type]
        for rate in (0.5, 1.0)
    )
    moved = whole.a.weight - start.a.weight
    assert float(moved.detach().norm()) > 1e-3
    torch.testing.assert_close(half.a.weight - start.a.weight, moved / 2, rtol=1e-3, atol=1e-6)
    assert half.a.weight is half.b.weight


@pytest.mark.parametrize(
    "call",
    [
        lambda states, data: fedavg([], []),
        lambda states, data: fedavg(states, [1.0]),
        lambda states, data: fedavg(states, [1.0, 1.0]),
        lambda states, data: fedavg(states, [0.5, float("nan")]),
        lambda states, data: FedAvg(loss="absolute", rounds=1).run(column(), data, seed=0),
    ],
)
def test_weights_and_outputs_that_do_not_fit(call: Any, clients: list[Data]) -> None:
    with pytest.raises(InputError, match="expected"):
        call([net().state_dict(), net().state_dict()], [replace(clients[0], y=clients[0].y % 2)])


def column() -> nn.Module:
    """One output in a column, whose residuals would be those of all pairs of samples."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
