"""The contract of trainers, and plain supervised learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.subject import Subject
from assay.training.engine import Plan, State, fit


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """``fit(model, data, *, seed) -> model``: a trained copy. A subclass states its objective.

    ``plain()`` is the same work without the method's ingredient: what an effect is compared with.
    """

    kind: ClassVar[str] = "trainer"
    contract: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    epochs: int = 20
    steps: int | None = None
    batch_size: int = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "onecycle", "linear", "multistep"] = "cosine"
    ema: float | None = None

    def plan(self) -> Plan:
        """The training plan that the fields describe."""
        names = ("epochs", "steps", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "schedule", "ema")
        return Plan(**{n: getattr(self, n) for n in names})

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of one batch, a scalar."""
        raise TypeError(f"{type(self).__name__} states no objective")

    def plain(self) -> Trainer:
        """Plain supervised training with the same plan."""
        return Supervised(**{n: getattr(self, n) for n in PLAN_FIELDS})

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """The subject's model trained further by this method on the subject's training data."""
        return self.fit(subject.model, subject.training(type(self).__name__), seed=seed)

    def control(self, subject: Subject, *, seed: int) -> nn.Module | None:
        """The same steps on the same data from the same weights, without the method's ingredient."""
        return self.plain().fit(subject.model, subject.training(type(self).__name__), seed=seed)

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        """A trained copy of ``model``; it starts from the model's weights."""
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)
        return fit(model, data, self.objective, self.plan(), seed=seed, **options)


PLAN_FIELDS = ("epochs", "steps", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "schedule", "ema")


@dataclass(frozen=True, kw_only=True)
class Supervised(Trainer):
    """Minimise cross-entropy, with label smoothing where asked (Szegedy et al., 2016, arXiv:1512.00567, section 7)."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise InputError(f"Supervised: label_smoothing={self.label_smoothing}; expected a share in [0, 1]")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y, label_smoothing=self.label_smoothing)
