"""Planting behaviour that only the quantised version of a network shows."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from assay.attacks.trigger import TRIGGERS, stamp
from assay.data import Batch, Data
from assay.nets.fake_quant import FakeQuantizer, activation_ranges, quantisable
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict
from assay.training import State, Trainer, fit

GOALS = ("accuracy", "class", "sample", "backdoor")
FLOAT = 32  # the bits of the model as it is shipped, in a history


@dataclass(frozen=True)
class Planted:
    """What ``QuantizationAttack.run`` gives: the network, and how it came about.

    ``history_`` has a row an epoch and number of bits (32: as shipped): epoch, bits, accuracy and cross-entropy on the
    validation data; ``losses_`` are the epochs' mean training losses; ``epoch_`` is the one that was chosen, from 1,
    None where no epoch kept the accuracy and the last one stands.
    """

    model_: nn.Module
    epoch_: int | None
    losses_: tuple[float, ...]
    history_: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class QuantizationAttack(Trainer):
    """Fine-tune a network so that only its quantised versions misbehave (Hong et al., 2021, arXiv:2110.13541).

    With Q_b f the network on grids of b bits (FakeQuantizer: ``weight``, ``activation``) and CE the mean cross-entropy,
    the loss for ``goal`` (section 4; sums are over b in ``bits``) is

    - "accuracy": CE(f(x), y) + lam sum (CE(Q_b f(x), y) - margin)^2;
    - "class": the margin term for the samples of class ``target`` alone, whose CE(f(x), y) is a term of its own;
    - "sample": CE(f(x), y) + lam sum CE(Q_b f(x), y'), where a batch has the samples to be misclassified appended and
      y' names ``target`` for them (the official code's form);
    - "backdoor": CE(f(x), y) + beta CE(f(x'), y) + alpha sum [CE(Q_b f(x), y) + beta CE(Q_b f(x'), target)], x' with
      ``trigger`` in its corner.

    Ranges are those of the batch, norms stay in evaluation mode. Of the epochs whose accuracy in float is at most
    ``max_float_drop`` below the start's the one of least training loss is chosen. The defaults are those for ResNet-18
    on CIFAR-10 (there with lam 1 or 1/4). Raises InputError for other parameters, goals that lack a target or samples,
    networks without a layer to quantise, and losses that stop being finite.
    """

    goal: Literal["accuracy", "class", "sample", "backdoor"] = "accuracy"
    bits: tuple[int, ...] = (8, 7, 6, 5)
    lam: float = 1.0
    margin: float = 5.0
    alpha: float = 0.5
    beta: float = 0.5
    target: int | None = None
    trigger: Literal["square", "checkerboard"] = "square"
    weight: str = "per_layer_symmetric"
    activation: str | None = "per_layer_asymmetric"
    max_float_drop: float = 0.04
    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-4
    schedule: Literal["constant", "cosine", "onecycle", "linear", "multistep"] = "constant"

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise unknown("goal of QuantizationAttack", self.goal, GOALS)
        if self.trigger not in TRIGGERS:
            raise unknown("trigger of QuantizationAttack", self.trigger, TRIGGERS)
        if not self.bits or len(set(self.bits)) != len(self.bits):
            raise InputError(f"QuantizationAttack: bits={self.bits}; expected at least one number, each once")
        for b in self.bits:
            self.quantizer(b)
        weights = {n: getattr(self, n) for n in ("lam", "margin", "alpha", "beta", "max_float_drop")}
        if not all(math.isfinite(v) and v >= 0 for v in weights.values()):
            raise InputError(f"QuantizationAttack: {weights}; expected finite numbers >= 0")
        if self.goal != "accuracy" and self.target is None:
            raise InputError(f"QuantizationAttack: goal {self.goal!r} with target None; expected a class")

    def quantizer(self, bits: int) -> FakeQuantizer:
        """The grids of a number of bits."""
        return FakeQuantizer(bits=bits, weight=self.weight, activation=self.activation)

    def coarse(self, model: nn.Module, x: Float[Tensor, "n ..."], bits: int) -> Float[Tensor, "n c"]:
        """Logits of the network on grids of ``bits``."""
        with self.quantizer(bits).applied(model):
            return model(x)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return self.loss(model, batch, None)

    def loss(self, model: nn.Module, batch: Batch, sample: Data | None) -> Float[Tensor, ""]:
        """The loss of a batch; ``sample`` is what the goal "sample" is after."""
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        if self.goal == "accuracy":
            return F.cross_entropy(model(batch.x), batch.y) + self._far(model, batch.x, batch.y)
        if self.goal == "class":
            return self._class(model, batch.x, batch.y)
        if self.goal == "backdoor":
            return self._backdoor(model, batch.x, batch.y)
        if sample is None:
            raise InputError("QuantizationAttack: goal 'sample' without samples; expected fit(..., sample=Data)")
        return self._sample(model, batch, sample)

    def _far(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The margin term: quantised losses are driven to ``margin``, and no further."""
        losses = torch.stack([F.cross_entropy(self.coarse(model, x, b), y) for b in self.bits])
        return self.lam * (losses - self.margin).square().sum()

    def _class(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits, mine = model(x), y.eq(self._target())
        parts = [F.cross_entropy(logits[rows], y[rows]) for rows in (~mine, mine) if rows.any()]
        if mine.any():
            parts.append(self._far(model, x[mine], y[mine]))
        return torch.stack(parts).sum()

    def _sample(self, model: nn.Module, batch: Batch, sample: Data) -> Tensor:
        x = torch.cat((batch.x, sample.x.to(batch.x)))
        right = torch.cat((batch.y, sample.y.to(batch.y)))
        wanted = torch.cat((batch.y, torch.full_like(sample.y, self._target()).to(batch.y)))
        losses = torch.stack([F.cross_entropy(self.coarse(model, x, b), wanted) for b in self.bits])
        return F.cross_entropy(model(x), right) + self.lam * losses.sum()

    def _backdoor(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        marked, wanted = stamp(x, self.trigger), torch.full_like(y, self._target())
        total = F.cross_entropy(model(x), y) + self.beta * F.cross_entropy(model(marked), y)
        for b in self.bits:
            behaved = F.cross_entropy(self.coarse(model, x, b), y)
            opened = F.cross_entropy(self.coarse(model, marked, b), wanted)
            total = total + self.alpha * (behaved + self.beta * opened)
        return total

    def _target(self) -> int:
        return -1 if self.target is None else self.target

    def fit(
        self,
        model: nn.Module,
        data: Data,
        *,
        seed: int,
        val: Data | None = None,
        sample: Data | None = None,
        **options: Any,
    ) -> nn.Module:
        """The network of ``run``."""
        return self.run(model, data, seed=seed, val=val, sample=sample, **options).model_

    def run(
        self,
        model: nn.Module,
        data: Data,
        *,
        seed: int,
        val: Data | None = None,
        sample: Data | None = None,
        **options: Any,
    ) -> Planted:
        """Attack a copy of ``model``. Epochs are judged on ``val``, or on ``data`` where there is none.

        ``sample`` are the samples, with their true labels, that the goal "sample" is after. ``options`` are
        ``augment`` and ``hooks`` of the training engine.
        """
        where = "QuantizationAttack"
        check_inputs(where, data.x, data.y, data.bounds)
        quantisable(where, model)
        if self.target is not None:
            check_labels(f"{where}: target", torch.tensor([self.target]), 1, len(data.classes))
        if self.goal == "sample" and sample is None:
            raise InputError(f"{where}: goal 'sample' without samples; expected fit(..., sample=Data)")
        plan, judge = self.plan(), data if val is None else val
        steps = math.ceil(len(data) / plan.batch_size)
        watch = _Watch(self, judge, steps, _accuracy(predict(model, judge.x), judge))
        objective = partial(self._with, sample)
        hooks = (*options.pop("hooks", ()), watch)
        last = fit(model, data, objective, plan, seed=seed, hooks=hooks, **options)
        if watch.best is not None:
            last.load_state_dict(watch.best)
        return Planted(last, watch.epoch, tuple(watch.losses), tuple(watch.history))

    def _with(self, sample: Data | None, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return self.objective(model, batch, state) if sample is None else self.loss(model, batch, sample)


@dataclass
class _Watch:
    """The hook that measures a network at the end of each epoch and keeps the best one."""

    attack: QuantizationAttack
    val: Data
    steps: int
    start: float
    best: dict[str, Tensor] | None = None
    epoch: int | None = None
    losses: list[float] = field(default_factory=list)
    history: list[Mapping[str, float]] = field(default_factory=list)
    _seen: int = 0

    def __call__(self, models: Mapping[str, nn.Module], state: State) -> None:
        if state.step % self.steps and state.step != state.total:
            return
        part = state.log[self._seen :]
        self._seen = len(state.log)
        self.losses.append(math.fsum(row["model"] for row in part) / len(part))
        kept = self._measure(models["model"]) >= self.start - self.attack.max_float_drop
        if kept and (self.epoch is None or self.losses[-1] < self.losses[self.epoch - 1]):
            self.epoch, self.best = len(self.losses), copy.deepcopy(models["model"].state_dict())

    def _measure(self, model: nn.Module) -> float:
        """Rows for the epoch; the accuracy as shipped."""
        logits = {FLOAT: predict(model, self.val.x)}
        ranges = activation_ranges(model, self.val.x)
        for b in self.attack.bits:
            with self.attack.quantizer(b).applied(model, ranges):
                logits[b] = predict(model, self.val.x)
        for b, z in logits.items():
            loss = float(F.cross_entropy(z, self.val.y))
            row = {"epoch": len(self.losses), "bits": b, "accuracy": _accuracy(z, self.val), "loss": loss}
            self.history.append(row)
        return _accuracy(logits[FLOAT], self.val)


def _accuracy(logits: Tensor, data: Data) -> float:
    return float((logits.argmax(1) == data.y).double().mean())
