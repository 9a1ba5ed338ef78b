"""The training engine: players, averages, schedules, checkpoints, per-sample memory and randomness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.data import Batch, Data, load_data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded, torch_rng
from assay.training import Plan, Player, State, fit, fit_players


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")[:150]


def network(dropout: float = 0.0) -> nn.Module:
    with seeded(0, "test"):
        layers = nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 10)
        return nn.Sequential(*layers)


def cross_entropy(model: nn.Module, batch: Batch, state: State) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at(step: int):
    def hook(models: Mapping[str, nn.Module], state: State) -> None:
        if state.step == step:
            raise Killed

    return hook


@pytest.mark.parametrize("at", [1, 3, 4, 7, 11])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_killed_run_resumes_to_the_same_bits(data: Data, tmp_path: Path, at: int, optimizer: str) -> None:
    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        logits = model(batch.x)
        memory = state.ema("target", batch.index, logits.softmax(1), 0.7)
        return F.cross_entropy(logits, batch.y) + 0.1 * (logits.softmax(1) - memory).square().sum()

    def noise(x: Tensor, draws: Draws) -> Tensor:
        return x + 0.1 * draws.normal(*x.shape[1:])

    plan = Plan(epochs=4, batch_size=50, optimizer=optimizer, lr=0.01, ema=0.9)
    model, path = network(dropout=0.3), tmp_path / "deep" / "run.pt"
    whole = fit(model, data, objective, plan, seed=3, augment=noise)
    with pytest.raises(Killed):
        fit(model, data, objective, plan, seed=3, augment=noise, checkpoint=path, hooks=[kill_at(at)])
    torch.rand(5)  # the resumed process has another generator state
    resumed = fit(model, data, objective, plan, seed=3, augment=noise, checkpoint=path)
    assert equal(whole, resumed)
    assert equal(whole, fit(model, data, objective, plan, seed=3, augment=noise, checkpoint=path))
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]


def test_checkpointing_changes_nothing(data: Data, tmp_path: Path) -> None:
    plan = Plan(epochs=2, batch_size=50)
    model = network(dropout=0.5)
    plain = fit(model, data, cross_entropy, plan, seed=0)
    assert equal(plain, fit(model, data, cross_entropy, plan, seed=0, checkpoint=tmp_path / "a.pt"))


def test_the_log_survives_a_restart(data: Data, tmp_path: Path) -> None:
    plan, logs = Plan(epochs=3, batch_size=50), []

    def keep(models: Mapping[str, nn.Module], state: State) -> None:
        logs.append(list(state.log))

    fit(network(), data, cross_entropy, plan, seed=0, hooks=[keep])
    whole = logs[-1]
    with pytest.raises(Killed):
        fit(network(), data, cross_entropy, plan, seed=0, checkpoint=tmp_path / "a.pt", hooks=[kill_at(5)])
    fit(network(), data, cross_entropy, plan, seed=0, checkpoint=tmp_path / "a.pt", hooks=[keep])
    assert logs[-1] == whole
    assert [entry["step"] for entry in whole] == list(range(9))


def test_a_checkpoint_of_another_run_is_refused(data: Data, tmp_path: Path) -> None:
    path, plan = tmp_path / "a.pt", Plan(epochs=1, batch_size=50)
    model = network()
    fit(model, data, cross_entropy, plan, seed=0, checkpoint=path)
    others = {
        "seed": (model, data, plan, 1),
        "data": (model, data[:149], plan, 0),
        "plan": (model, data, Plan(epochs=1, batch_size=50, lr=0.1), 0),
        "start": (fit(model, data, cross_entropy, plan, seed=0), data, plan, 0),
    }
    for other, samples, steps, seed in others.values():
        with pytest.raises(InputError, match="another run"):
            fit(other, samples, cross_entropy, steps, seed=seed, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        fit(model, data, cross_entropy, plan, seed=0, checkpoint=path)


class Scalar(nn.Module):
    """One number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def test_two_players_descend_each_on_its_own_loss(data: Data) -> None:
    # min over a of (a - b)^2, max over b of (a - b)^2 - 2 b^2, by hand: each sees the other's latest value.
    def pull(models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
        return (models["a"].value - models["b"].value).square().sum()

    def push(models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
        a, b = models["a"].value, models["b"].value
        return (2 * b**2 - (a - b) ** 2).sum()

    plain = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "batch_size": 50}
    first, second = Scalar(1.0), Scalar(-0.5)
    players = {
        "a": Player(model=first, objective=pull, plan=Plan(steps=7, lr=0.1, **plain)),
        "b": Player(model=second, objective=push, plan=Plan(lr=0.05, ema=0.8, **plain), every=2),
    }
    trained = fit_players(players, data, seed=0)
    a, b, average = 1.0, -0.5, -0.5
    for step in range(7):
        a -= 0.1 * 2 * (a - b)
        if step % 2 == 0:
            b -= 0.05 * (4 * b + 2 * (a - b))
            average = 0.8 * average + 0.2 * b
    assert trained["a"].value.item() == pytest.approx(a, abs=1e-12)
    assert trained["b"].value.item() == pytest.approx(average, abs=1e-12)
    assert (first.value.item(), second.value.item()) == (1.0, -0.5)
    assert first.value.grad is None
    assert trained["a"].value.grad is None


def test_two_players_resume_to_the_same_bits(data: Data, tmp_path: Path) -> None:
    def generate(models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
        z = state.draws("z", batch.index).normal(4)
        return F.softplus(-models["d"](models["g"](z))).mean()

    def judge(models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
        z = state.draws("z", batch.index).normal(4)
        real, fake = models["d"](batch.x.flatten(1)), models["d"](models["g"](z).detach())
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    with seeded(0, "test"):
        g, d = nn.Linear(4, 64), nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1))
    plan = Plan(epochs=3, batch_size=50, lr=0.01, ema=0.9)
    players = {
        "d": Player(model=d, objective=judge, plan=plan),
        "g": Player(model=g, objective=generate, plan=Plan(epochs=3, optimizer="sgd", lr=0.02)),
    }
    whole = fit_players(players, data, seed=0)
    with pytest.raises(Killed):
        fit_players(players, data, seed=0, checkpoint=tmp_path / "gan.pt", hooks=[kill_at(5)])
    resumed = fit_players(players, data, seed=0, checkpoint=tmp_path / "gan.pt")
    assert all(equal(whole[name], resumed[name]) for name in players)
    assert not equal(whole["g"], g)
    assert not equal(whole["d"], d)


def test_the_average_is_the_closed_form(data: Data) -> None:
    seen: list[Tensor] = []

    def keep(models: Mapping[str, nn.Module], state: State) -> None:
        seen.append(models["model"][1].weight.detach().clone().double())

    decay, model = 0.6, network()
    plan = Plan(epochs=3, batch_size=50, lr=0.05, schedule="constant", ema=decay)
    averaged = fit(model, data, cross_entropy, plan, seed=0, hooks=[keep])
    t = len(seen)
    closed = decay**t * model[1].weight.detach().double()
    closed = closed + sum((1 - decay) * decay ** (t - 1 - k) * w for k, w in enumerate(seen))
    assert t == 9
    assert torch.allclose(averaged[1].weight.double(), closed, atol=1e-6)
    assert not torch.allclose(averaged[1].weight.double(), seen[-1], atol=1e-3)


@given(total=st.integers(2, 500), warmup=st.floats(0, 0.9))
@settings(max_examples=50)
def test_schedules(total: int, warmup: float) -> None:
    for schedule in ("constant", "cosine", "onecycle", "linear"):
        plan = Plan(schedule=schedule, warmup=warmup)
        factors = [plan.factor(s, total) for s in range(total)]
        ramp = round((max(warmup, 0.3) if schedule == "onecycle" else warmup) * total)
        assert all(0 < f <= 1 for f in factors)
        assert factors[:ramp] == [(s + 1) / ramp for s in range(ramp)]
        rest = [(s - ramp) / max(total - ramp, 1) for s in range(ramp, total)]
        cosine = [0.5 * (1 + math.cos(math.pi * t)) for t in rest]
        expected = {"constant": [1.0] * len(rest), "linear": [1 - t for t in rest]}.get(schedule, cosine)
        assert factors[ramp:] == pytest.approx(expected, abs=1e-12)


def test_the_schedule_sets_the_rate_of_every_step(data: Data) -> None:
    # With gradient 1 and plain SGD the weight falls by exactly the rates of the schedule.
    plan = Plan(steps=5, optimizer="sgd", momentum=0.0, lr=0.1, schedule="linear")
    trained = fit(Scalar(0.0), data, lambda m, b, s: m.value.sum(), plan, seed=0)
    assert trained.value.item() == pytest.approx(-0.1 * (1 + 0.8 + 0.6 + 0.4 + 0.2), abs=1e-9)


def test_steps_epochs_and_a_dropped_last_batch(data: Data) -> None:
    def count(plan: Plan) -> tuple[int, set[int]]:
        sizes: list[int] = []

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            sizes.append(len(batch.x))
            return cross_entropy(model, batch, state)

        fit(network(), data, objective, plan, seed=0)
        return len(sizes), set(sizes)

    assert count(Plan(epochs=2, batch_size=64)) == (6, {64, 22})
    assert count(Plan(epochs=2, batch_size=64, drop_last=True)) == (4, {64})
    assert count(Plan(steps=5, batch_size=64)) == (5, {64, 22})
    assert count(Plan(epochs=1, batch_size=999, drop_last=True)) == (1, {150})
    assert count(Plan(epochs=0)) == (0, set())


def test_a_last_batch_of_one_under_batch_norm_reads_the_running_statistics(data: Data) -> None:
    seen: list[Tensor] = []

    def keep(models: Mapping[str, nn.Module], state: State) -> None:
        norm = models["model"][2]
        assert norm.training
        seen.append(norm.running_mean.clone())

    plan = Plan(epochs=1, batch_size=50, optimizer="sgd", momentum=0.0, lr=0.1, schedule="constant", clip=1e9)
    before = fit(network(), data[:101], cross_entropy, replace(plan, steps=2), seed=0)
    after = fit(network(), data[:101], cross_entropy, plan, seed=0, hooks=[keep])
    assert len(seen) == 3
    assert torch.equal(seen[2], seen[1])
    last = data[:101][torch.randperm(101, generator=torch_rng(0, "order", 0))[100:]]
    loss = F.cross_entropy(before.eval()(last.x), last.y)
    (gradient,) = torch.autograd.grad(loss, [before[1].weight])
    assert torch.allclose(after[1].weight, before[1].weight - 0.1 * gradient, atol=1e-6)
    assert not after[2]._forward_hooks
    assert not after[2]._forward_pre_hooks
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10, track_running_stats=False))
    with pytest.raises(InputError, match="a batch of one sample"):
        fit(bare, data[:101], cross_entropy, plan, seed=0)


def test_batch_norms_of_maps_train_on_one_sample_as_torch_does(data: Data) -> None:
    with seeded(0, "test"):
        net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    plan = Plan(steps=1, batch_size=1, optimizer="sgd", momentum=0.0, lr=0.1, schedule="constant")
    found = fit(net, data[:1], cross_entropy, plan, seed=0)
    assert float(found[0].running_mean) == pytest.approx(0.1 * float(data.x[0].mean()), rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training(data: Data, value: float) -> None:
    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        return cross_entropy(model, batch, state) * (value if state.step == 2 else 1.0)

    with pytest.raises(InputError, match=r"step 2; expected finite"):
        fit(network(), data, objective, Plan(epochs=1, batch_size=50), seed=0)


@given(order=st.permutations(range(12)), size=st.integers(1, 12))
@settings(max_examples=30)
def test_memory_is_by_index_whatever_the_batches(order: list[int], size: int) -> None:
    index = torch.tensor([40, 3, 17, 8, 10**15, 1, 2, 60, 5, 77, 30, 12])
    samples = Data(torch.zeros(12, 1), torch.zeros(12, dtype=torch.int64), ("a", "b"), index=index)
    state, value = State(0, samples, 1), index.float()[:, None] * torch.tensor([1.0, -2.0])
    for expected in (0.25, 0.25 + 0.75 * 0.25):
        for batch in samples.batches(size, order=torch.tensor(order)):
            rows = torch.tensor([index.tolist().index(i) for i in batch.index.tolist()])
            assert torch.equal(state.rows(batch.index), rows)
            moved = state.ema("m", batch.index, value[rows], momentum=0.75)
            assert torch.allclose(moved, expected * value[rows])
        assert torch.allclose(state.memory["m"], expected * value)
    assert state.rows(torch.tensor([[0, 3], [10**16, 12]])).tolist() == [[-1, 1], [-1, 11]]


def test_augmentation_draws_do_not_depend_on_the_batch(data: Data) -> None:
    def drawn(size: int) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}

        def augment(x: Tensor, draws: Draws) -> Tensor:
            noise = draws.uniform(3)
            found.update({int(i): n for i, n in zip(draws.index, noise, strict=True)})
            return x

        # Every batch size sees each sample at some first step; streams are keyed by step, so compare step 0 alone.
        fit(network(), data, cross_entropy, Plan(steps=1, batch_size=size), seed=0, augment=augment)
        return found

    small, large = drawn(20), drawn(100)
    assert len(small) == 20
    assert set(small) <= set(large)
    assert all(torch.equal(small[i], large[i]) for i in small)


def test_augmentation_differs_between_samples_and_steps(data: Data) -> None:
    seen: list[Tensor] = []

    def augment(x: Tensor, draws: Draws) -> Tensor:
        seen.append(draws.uniform(1)[:, 0])
        return x

    fit(network(), data, cross_entropy, Plan(epochs=2, batch_size=150), seed=0, augment=augment)
    assert len(torch.cat(seen).unique()) == 300


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"ema": 1.0}, "ema"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_bad_plans(options: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Plan(**options)


def test_an_unknown_optimizer_is_named(data: Data) -> None:
    with pytest.raises(InputError, match="did you mean 'adamw'"):
        fit(MLP(), data, cross_entropy, Plan(optimizer="adaw"), seed=0)
