"""Two processes train what one does: the same weights, up to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load
from torch import Tensor, nn

from assay.data import Batch, Data, load_data
from assay.defenses import TRADES
from assay.labels import ELR, CoTeaching
from assay.nets import MLP, ResNet
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import State, Supervised, Trainer
from assay.training.distributed import SharedObjective, _train, fit_distributed

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 50, "optimizer": "sgd", "lr": 0.05}
TRAINERS = (
    Supervised(**SHORT, ema=0.9),
    TRADES(**SHORT, norm="l2", eps=0.5, attack_steps=2),
)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")[:170]


@pytest.fixture(scope="module")
def start() -> nn.Module:
    with seeded(0, "start"):
        return MLP(hidden=(16,))


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda t: type(t).__name__)
def test_two_processes_end_with_the_weights_of_one(trainer: Trainer, start: nn.Module, data: Data) -> None:
    before = [p.clone() for p in start.parameters()]
    alone = trainer.fit(start, data, seed=3)
    # The processes compare their weights bit for bit before they answer.
    shared = fit_distributed(trainer, start, data, seed=3, processes=2)
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(alone.parameters(), before, strict=True))
    assert moved > 1e-2
    for a, b in zip(alone.parameters(), shared.parameters(), strict=True):
        assert float((a - b).detach().abs().max()) < 1e-5
    assert not shared.training
    assert all(a.equal(b) for a, b in zip(start.parameters(), before, strict=True))


@dataclass(frozen=True, kw_only=True)
class Watching(Supervised):
    """Says which samples it saw."""

    seen: Any = None

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        self.seen.append(batch.index)
        return super().objective(model, batch, state)


def test_each_process_sees_its_own_rows_and_the_parts_add_up(start: nn.Module, data: Data) -> None:
    state = State(0, data, total=1)
    batch = data.batch(torch.arange(40, 91))
    seen: list[Tensor] = []
    trainer = Watching(seen=seen)
    parts: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        parts.append(value)
        return value

    for rank in range(3):
        SharedObjective(trainer, note, rank, 3)(start, batch, state)
    together = torch.stack(parts).sum(0)
    assert torch.cat(seen).sort().values.equal(batch.index)
    value = SharedObjective(trainer, lambda v: together, 0, 3)(start, batch, state)
    whole = trainer.objective(start, batch, state)
    assert value.item() == pytest.approx(whole.item(), rel=1e-6)
    parameters = list(start.parameters())
    for a, b in zip(torch.autograd.grad(value, parameters), torch.autograd.grad(whole, parameters), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_a_sample_stays_with_its_process_and_so_does_its_memory(start: nn.Module, data: Data) -> None:
    """Over two epochs in other orders, the running averages of two processes are together those of one."""
    trainer, alone = ELR(**SHORT), State(0, data, total=2)
    states = [State(0, data, total=2) for _ in range(2)]
    for epoch in range(2):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
        for batch in data.batches(60, order=order):
            trainer.objective(start, batch, alone)
            for rank, state in enumerate(states):
                SharedObjective(trainer, lambda v: v, rank, 2)(start, batch, state)
    (name,) = alone.memory
    joined = sum(state.memory[name] for state in states)
    assert torch.allclose(joined, alone.memory[name], atol=1e-6)
    assert float(alone.memory[name].abs().min()) > 0


def test_a_process_without_rows_and_parameters_without_gradient(data: Data) -> None:
    model = MLP(hidden=(16,))
    model.spare = nn.Linear(2, 2)
    state, batch = State(0, data, total=1), data.batch(torch.tensor([0, 2]))
    other = SharedObjective(Supervised(), lambda v: v, 1, 2)(model, batch, state)
    assert other.item() == 0
    used = SharedObjective(Supervised(), lambda v: v, 0, 2)(model, batch, state)
    used.backward(inputs=list(model.parameters()))
    assert model.spare.weight.grad is None
    assert model.head.weight.grad is not None


@pytest.mark.parametrize(
    ("trainer", "model", "processes", "said"),
    [
        (CoTeaching(), MLP(hidden=(16,)), 2, "it trains in its own way; expected a trainer that states an objective"),
        (Supervised(), ResNet((1, 8, 8)), 2, "'stem.1' normalises over the batch"),
        (Supervised(), MLP(hidden=(16,)), 0, "in 0 processes; expected at least one"),
    ],
)
def test_what_cannot_be_shared_is_one_line(
    trainer: Any, model: nn.Module, processes: int, said: str, data: Data
) -> None:
    with pytest.raises(InputError, match=said) as error:
        fit_distributed(trainer, model, data, seed=0, processes=processes)
    assert "\n" not in str(error.value)


@dataclass(frozen=True, kw_only=True)
class Diverging(Supervised):
    """A loss that stops being finite."""

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return super().objective(model, batch, state) * float("inf")


def test_an_error_in_training_is_the_one_line_that_a_single_process_says(start: nn.Module, data: Data) -> None:
    with pytest.raises(InputError, match="the loss of 'model' is inf") as error:
        Diverging(**SHORT).fit(start, data, seed=0)
    one = Fabric(accelerator="cpu", devices=1)
    assert _train(Diverging(**SHORT), start, data, 0, one) == str(error.value)
    kept = _train(Supervised(**SHORT), start, data, 0, one)
    assert isinstance(kept, bytes)
    alone = Supervised(**SHORT).fit(start, data, seed=0).state_dict()
    assert all(torch.allclose(load(kept)[name], value, atol=1e-6) for name, value in alone.items())
