"""The one training loop: an objective, a plan, one or several named players."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from assay.data import Batch, Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of
from assay.runtime.random import Draws, derive, seeded, torch_rng
from assay.subject.subject import model_hash

Objective = Callable[[nn.Module, Batch, "State"], Tensor]
PlayerObjective = Callable[[Mapping[str, nn.Module], Batch, "State"], Tensor]
Hook = Callable[[Mapping[str, nn.Module], "State"], None]
Augment = Callable[[Tensor, Draws], Tensor]
OptimizerFactory = Callable[[Sequence[Tensor]], torch.optim.Optimizer]
SCHEDULES = ("constant", "cosine", "onecycle", "linear", "multistep")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model is trained. ``steps`` overrides ``epochs``; ``warmup`` is a fraction of the steps.

    ``optimizer`` is "sgd" (Nesterov when momentum > 0), "adam", "adamw", or a function of the parameters.
    "multistep" divides the rate by ten at 2/5, 3/5 and 4/5 of the steps.
    ``ema`` is the decay of a weight average that is returned in place of the last weights.
    Where a step has one sample, as the last of an epoch may, batch norms that get one value a channel, which has no
    variance, use their running statistics for it and leave them; all others work as ever.
    """

    epochs: int = 20
    steps: int | None = None
    batch_size: int = 64
    optimizer: str | OptimizerFactory = "adam"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "onecycle", "linear", "multistep"] = "cosine"
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
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", str(self.schedule), SCHEDULES)
        if self.precision not in ("fp32", "bf16"):
            raise unknown("precision", str(self.precision), ("fp32", "bf16"))
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"plan: ema={self.ema}; expected a decay in [0, 1)")

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
        known = {"constant": 1.0, "linear": 1 - t, "multistep": 0.1 ** sum(t >= part for part in (0.4, 0.6, 0.8))}
        return known.get(self.schedule, 0.5 * (1 + math.cos(math.pi * t)))


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
    _sorted: tuple[Tensor, Tensor] | None = None

    def rows(self, index: Tensor) -> Tensor:
        """Positions in the training set of samples named by ``index``, -1 for one that is not there."""
        if self._sorted is None:
            self._sorted = self.data.index.sort(stable=True)
        names, order = (t.to(index.device) for t in self._sorted)
        at = (torch.searchsorted(names, index.contiguous(), right=True) - 1).clamp_min(0)
        return torch.where(names[at] == index, order[at], -1)

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
    every epoch, and a run that was stopped goes on from it to the same result, bit for bit. Raises InputError where the
    file is no checkpoint of this run (same start, data, plan and seed).
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
        if not self.parameters:
            raise InputError("training: no parameter requires a gradient; expected at least one to train")
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

    def result(self) -> nn.Module:
        """The trained network, or its average, in evaluation mode."""
        self.model.zero_grad(set_to_none=True)
        return (self.average if self.average is not None else self.model).eval()

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
    origin = _origin(runs, data, state, seed) if checkpoint is not None else ""
    if checkpoint is not None and checkpoint.exists():
        _restore(checkpoint, runs, state, origin)
    with seeded(seed, "fit"):
        for model in models.values():
            model.train()
        while state.step < state.total:
            # Every epoch draws (dropout ...) from its own seed, so that a resumed run needs no generator state.
            torch.manual_seed(derive(seed, "fit", state.epoch))
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
                _keep(checkpoint, runs, state, origin)
    return {name: run.result() for name, run in runs.items()}


def _step(
    runs: Mapping[str, _Run], models: Mapping[str, nn.Module], batch: Batch, state: State, augment: Augment | None
) -> None:
    if augment is not None:
        x = augment(batch.x, state.draws("augment", batch.index))
        batch = Batch(x, batch.y, batch.index, batch.fields)
    lone = [m for model in models.values() for m in model.modules()] if len(batch.x) == 1 else []
    with _lone_values([m for m in lone if isinstance(m, _BatchNorm)]):
        for name, run in runs.items():
            if state.step % run.player.every:
                continue
            bf16 = run.player.plan.precision == "bf16"
            with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=bf16):
                loss = run.player.objective(models, batch, state)
            if not torch.isfinite(loss):
                raise InputError(
                    f"training: the loss of {name!r} is {loss.item()} at step {state.step}; expected finite"
                )
            run.update(loss, state.step, state.total)
            state.log.append({"step": state.step, name: loss.item()})
    state.step += 1


@contextmanager
def _lone_values(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Within, each of ``norms`` is in evaluation mode for a batch of one value a channel."""
    switched: set[int] = set()

    def before(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not norm.training or inputs[0].numel() != norm.num_features:
            return
        if norm.running_mean is None:
            raise InputError(
                "training: a batch of one sample under a batch norm without running statistics; expected another "
                "batch_size, or drop_last"
            )
        switched.add(id(norm))
        norm.eval()

    def after(norm: nn.Module, _inputs: object, _output: object) -> None:
        if id(norm) in switched:
            switched.remove(id(norm))
            norm.train()

    handles = [h for n in norms for h in (n.register_forward_pre_hook(before), n.register_forward_hook(after))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _origin(runs: Mapping[str, _Run], data: Data, state: State, seed: int) -> str:
    """Names what a checkpoint belongs to: start, data, plans, seed (an optimiser given as a function by its name)."""
    parts: list[object] = [seed, data.hash, state.total]
    for name, run in runs.items():
        optimizer = run.player.plan.optimizer
        maker = (
            optimizer if isinstance(optimizer, str) else getattr(optimizer, "__qualname__", type(optimizer).__name__)
        )
        plan = replace(run.player.plan, optimizer=maker)
        parts += [name, run.player.every, plan, model_hash(run.model)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _keep(path: Path, runs: Mapping[str, _Run], state: State, origin: str) -> None:
    kept = {
        "origin": origin,
        "runs": {name: run.state_dict() for name, run in runs.items()},
        "epoch": state.epoch,
        "step": state.step,
        "memory": state.memory,
        "log": state.log,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("wb") as file:
        torch.save(kept, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _restore(path: Path, runs: Mapping[str, _Run], state: State, origin: str) -> None:
    try:
        kept = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"checkpoint {path}: cannot be read ({type(error).__name__}); expected one written by training"
        ) from error
    if not isinstance(kept, dict) or kept.get("origin") != origin:
        raise InputError(f"checkpoint {path}: of another run; expected the same start, data, plan and seed")
    for name, run in runs.items():
        run.load_state_dict(kept["runs"][name])
    device = device_of(next(iter(runs.values())).model)
    state.memory = {name: value.to(device) for name, value in kept["memory"].items()}
    state.epoch, state.step, state.log = kept["epoch"], kept["step"], kept["log"]
