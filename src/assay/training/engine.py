"""The one training loop: an objective, a plan, one or several named players."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of
from assay.runtime.random import Draws, seeded, torch_rng

Objective = Callable[[nn.Module, Batch, "State"], Tensor]
PlayerObjective = Callable[[Mapping[str, nn.Module], Batch, "State"], Tensor]
Hook = Callable[[Mapping[str, nn.Module], "State"], None]
Augment = Callable[[Tensor, Draws], Tensor]
OptimizerFactory = Callable[[Sequence[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model is trained. ``steps`` overrides ``epochs``; ``warmup`` is a fraction of the steps.

    ``optimizer`` is "sgd" (Nesterov when momentum > 0), "adam", "adamw", or a function of the parameters.
    ``ema`` is the decay of a weight average that is returned in place of the last weights.
    """

    epochs: int = 20
    steps: int | None = None
    batch_size: int = 64
    optimizer: str | OptimizerFactory = "adam"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "onecycle", "linear"] = "cosine"
    warmup: float = 0.0
    clip: float | None = None
    ema: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.epochs < 0 or (self.steps is not None and self.steps < 0) or self.lr <= 0:
            raise InputError(
                f"plan: epochs={self.epochs}, steps={self.steps}, batch_size={self.batch_size}, lr={self.lr}; "
                "expected epochs, steps >= 0, batch_size >= 1, lr > 0"
            )

    def total(self, n: int) -> int:
        """Steps on ``n`` samples."""
        per_epoch = max(n // self.batch_size, 1) if self.drop_last else -(-n // self.batch_size)
        return self.epochs * per_epoch if self.steps is None else self.steps

    def make(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """The optimiser over ``parameters``."""
        if callable(self.optimizer):
            return self.optimizer(parameters)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.lr, self.momentum, nesterov=self.momentum > 0, weight_decay=self.weight_decay
            )
        makers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        if self.optimizer not in makers:
            raise unknown("optimizer", self.optimizer, ("sgd", *makers))
        return makers[self.optimizer](parameters, self.lr, weight_decay=self.weight_decay)

    def factor(self, step: int, total: int) -> float:
        """The multiple of ``lr`` at ``step`` of ``total``."""
        warm = self.warmup if self.schedule != "onecycle" else max(self.warmup, 0.3)
        ramp = round(warm * total)
        if step < ramp:
            return (step + 1) / ramp
        t = (step - ramp) / max(total - ramp, 1)
        return {"constant": 1.0, "linear": 1 - t}.get(self.schedule, 0.5 * (1 + math.cos(math.pi * t)))


@dataclass
class State:
    """What an objective may use: where training stands, per-sample memory, and random numbers."""

    seed: int
    data: Data
    total: int
    epoch: int = 0
    step: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)
    _rows: Tensor | None = None

    def rows(self, index: Tensor) -> Tensor:
        """Positions in the training set of samples named by ``index``."""
        if self._rows is None:
            self._rows = torch.full((int(self.data.index.max()) + 1,), -1, dtype=torch.int64)
            self._rows[self.data.index] = torch.arange(len(self.data))
        return self._rows.to(index.device)[index]

    def ema(self, name: str, index: Tensor, value: Tensor, momentum: float) -> Tensor:
        """Move the running average of each named sample to ``value`` (b, ...) and return it; it starts at zero."""
        if name not in self.memory:
            self.memory[name] = value.new_zeros((len(self.data), *value.shape[1:]))
        rows = self.rows(index)
        average = momentum * self.memory[name][rows] + (1 - momentum) * value.detach()
        self.memory[name][rows] = average
        return average

    def draws(self, stream: str, index: Tensor) -> Draws:
        """Random numbers for each named sample at this step."""
        return Draws(self.seed, f"{stream}/{self.step}", index)


@dataclass(frozen=True, kw_only=True)
class Player:
    """A named network with its own objective and plan, updated every ``every``-th step."""

    model: nn.Module
    objective: PlayerObjective
    plan: Plan
    every: int = 1
    parameters: Callable[[nn.Module], Sequence[Tensor]] = lambda model: list(model.parameters())


def fit(
    model: nn.Module,
    data: Data,
    objective: Objective,
    plan: Plan,
    *,
    seed: int,
    augment: Augment | None = None,
    hooks: Sequence[Hook] = (),
    checkpoint: Path | None = None,
) -> nn.Module:
    """A trained copy of ``model``; the input model is untouched.

    ``hooks`` run after every step with ({"model": model}, state). With ``checkpoint`` the state is kept there after
    every epoch, and a run that was stopped goes on from it to the same result.
    """

    def single(models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
        return objective(models["model"], batch, state)

    player = Player(model=model, objective=single, plan=plan)
    return fit_players({"model": player}, data, seed=seed, augment=augment, hooks=hooks, checkpoint=checkpoint)["model"]


class _Run:
    """One player while it trains: its copy of the model, optimiser and weight average."""

    def __init__(self, player: Player) -> None:
        self.player = player
        self.model = copy.deepcopy(player.model)
        self.parameters = [p for p in player.parameters(self.model) if p.requires_grad]
        self.optimizer = player.plan.make(self.parameters)
        self.base = [g["lr"] for g in self.optimizer.param_groups]
        self.average = copy.deepcopy(self.model) if player.plan.ema is not None else None

    def update(self, loss: Tensor, step: int, total: int) -> None:
        plan = self.player.plan
        for group, lr in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = lr * plan.factor(step, total)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)
        if plan.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, plan.clip)
        self.optimizer.step()
        if self.average is not None:
            _mix(self.average, self.model, plan.ema or 0.0)

    def state_dict(self) -> dict[str, Any]:
        average = self.average.state_dict() if self.average is not None else {}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


@torch.no_grad()
def _mix(average: nn.Module, model: nn.Module, decay: float) -> None:
    for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if a.is_floating_point():
            a.lerp_(b, 1 - decay)
        else:
            a.copy_(b)


def fit_players(
    players: Mapping[str, Player],
    data: Data,
    *,
    seed: int,
    augment: Augment | None = None,
    hooks: Sequence[Hook] = (),
    checkpoint: Path | None = None,
) -> dict[str, nn.Module]:
    """Train several networks on the same batches, in the order given; the first player's plan sets batches and steps.

    Returns trained copies by name (weight averages where a plan asks for them). Raises InputError when a loss stops
    being finite.
    """
    lead = next(iter(players.values()))
    plan, device = lead.plan, device_of(lead.model)
    runs = {name: _Run(player) for name, player in players.items()}
    models = {name: run.model for name, run in runs.items()}
    state = State(seed, data, plan.total(len(data)))
    if checkpoint is not None and checkpoint.exists():
        _restore(checkpoint, runs, state)
    with seeded(seed, "fit", state.step):
        for model in models.values():
            model.train()
        while state.step < state.total:
            order = torch.randperm(len(data), generator=torch_rng(seed, "order", state.epoch))
            if plan.drop_last and len(data) > plan.batch_size:
                order = order[: len(data) // plan.batch_size * plan.batch_size]
            for batch in data.batches(plan.batch_size, order=order):
                _step(runs, models, batch.to(device), state, augment)
                for hook in hooks:
                    hook(models, state)
                if state.step >= state.total:
                    break
            state.epoch += 1
            if checkpoint is not None:
                _keep(checkpoint, runs, state)
    return {name: (run.average if run.average is not None else run.model).eval() for name, run in runs.items()}


def _step(
    runs: Mapping[str, _Run], models: Mapping[str, nn.Module], batch: Batch, state: State, augment: Augment | None
) -> None:
    if augment is not None:
        x = augment(batch.x, state.draws("augment", batch.index))
        batch = Batch(x, batch.y, batch.index, batch.fields)
    for name, run in runs.items():
        if state.step % run.player.every:
            continue
        bf16 = run.player.plan.precision == "bf16"
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=bf16):
            loss = run.player.objective(models, batch, state)
        if not torch.isfinite(loss):
            raise InputError(f"training: the loss of {name!r} is {loss.item()} at step {state.step}; expected finite")
        run.update(loss, state.step, state.total)
        state.log.append({"step": state.step, name: loss.item()})
    state.step += 1


def _keep(path: Path, runs: Mapping[str, _Run], state: State) -> None:
    parts = {name: run.state_dict() for name, run in runs.items()}
    kept = {
        "runs": parts,
        "epoch": state.epoch,
        "step": state.step,
        "memory": state.memory,
        "rng": torch.get_rng_state(),
    }
    temporary = path.with_name(f"{path.name}.{time.monotonic_ns()}")
    torch.save(kept, temporary)
    temporary.replace(path)


def _restore(path: Path, runs: Mapping[str, _Run], state: State) -> None:
    kept = torch.load(path, weights_only=True)
    for name, run in runs.items():
        run.load_state_dict(kept["runs"][name])
    state.epoch, state.step, state.memory = kept["epoch"], kept["step"], kept["memory"]
