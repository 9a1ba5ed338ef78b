"""Unlearning by fine-tuning under a sparsity penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.subject import Subject
from assay.training import State, fit
from assay.training.engine import Hook
from assay.unlearn.finetune import FineTune

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
SCHEDULES = ("decreasing", "constant", "increasing")


@dataclass(frozen=True, kw_only=True)
class L1SparseUnlearn(FineTune):
    """Fine-tune on what is retained under gamma_t ||theta||_1 (Jia et al., 2023, arXiv:2304.04934, equation 4).

    The penalty is on all parameters, or all but those of normalisation layers (``exclude_norm``), by its subgradient.
    Its weight falls epoch by epoch from ``gamma`` >= 0 to 0 over the first ``epochs`` - ``no_l1_epochs`` ("decreasing",
    the paper's best, gamma (1 - t / (T - T0)) as in the official code), rises likewise ("increasing"), or stays
    ("constant"); the last ``no_l1_epochs`` epochs go without, except that all of them keep ``gamma`` where the two are
    equal, as in the official code. With gamma = 0 it is FineTune. The result is not pruned: see ``near_zero``. The
    paper searches gamma from 1e-5 to 1e-3. Everything else: see FineTune.
    """

    epochs: int = 10
    gamma: float = 5e-4
    schedule: Literal["decreasing", "constant", "increasing"] = "decreasing"
    no_l1_epochs: int = 0
    exclude_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.gamma) and self.gamma >= 0) or not 0 <= self.no_l1_epochs <= self.epochs:
            raise InputError(
                f"L1SparseUnlearn: gamma={self.gamma}, no_l1_epochs={self.no_l1_epochs} of {self.epochs}; "
                "expected gamma >= 0 and 0 <= no_l1_epochs <= epochs"
            )
        if self.schedule not in SCHEDULES:
            raise unknown("schedule of L1SparseUnlearn", str(self.schedule), SCHEDULES)

    def weight(self, epoch: int) -> float:
        """gamma_t in ``epoch``, counted from 0."""
        length = self.epochs - self.no_l1_epochs
        if length == 0 or (self.schedule == "constant" and epoch < length):
            return self.gamma
        if epoch >= length:
            return 0.0
        return self.gamma * (epoch / length if self.schedule == "increasing" else 1 - epoch / length)

    def norm(self, model: nn.Module) -> Tensor:
        """The penalised ||theta||_1."""
        return torch.stack([p.abs().sum() for p in self._penalised(model)]).sum()

    def _penalised(self, model: nn.Module) -> list[nn.Parameter]:
        skipped = {id(p) for m in model.modules() if self.exclude_norm and isinstance(m, NORMS) for p in m.parameters()}
        return [p for p in model.parameters() if p.requires_grad and id(p) not in skipped]

    def _train(self, subject: Subject, data: Data, seed: int, hooks: Sequence[Hook] = ()) -> nn.Module:
        trainer = self.trainer(subject)
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            loss, weight = trainer.objective(model, batch, state), self.weight(state.epoch)
            return loss + weight * self.norm(model) if weight > 0 else loss

        return fit(subject.model, data, objective, trainer.plan(), seed=seed, hooks=hooks)


def near_zero(model: nn.Module, below: float = 1e-3) -> float:
    """The share of all parameters with magnitude under ``below``."""
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return float((flat.abs() < below).double().mean())
