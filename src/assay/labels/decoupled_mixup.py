"""Training on mixed samples with the decoupled regulariser."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from assay.data import Batch
from assay.labels.mixup import Mixup
from assay.losses import DecoupledBCELoss, DecoupledMixupLoss
from assay.runtime.errors import unknown
from assay.training import State, Trainer
from assay.training.trainer import PLAN_FIELDS


@dataclass(frozen=True, kw_only=True)
class DecoupledMixup(Trainer):
    """``mixing`` (Mixup, CutMix, ManifoldMixup) under a decoupled objective (Liu et al., 2023, arXiv:2203.10761).

    ``form`` "ce" is ``losses.DecoupledMixupLoss`` with ``eta``, ``mode``, ``thr``, ``scale``, ``xi`` and ``t``, "bce"
    is ``losses.DecoupledBCELoss`` with ``xi`` and ``t`` on sigmoids. The mixed samples cost what they cost without it.
    The plan is this trainer's own; that of ``mixing`` is not used. Errors: those of the two, and another form.
    """

    mixing: Mixup = field(default_factory=Mixup)
    form: Literal["ce", "bce"] = "ce"
    eta: float = 0.1
    mode: Literal["both", "less", "more"] = "both"
    thr: float = 0.5
    scale: Literal["none", "pow"] = "none"
    xi: float = 1.0
    t: float = 0.0

    def __post_init__(self) -> None:
        self.loss()

    def loss(self) -> nn.Module:
        """The objective on logits, two labels and a share."""
        if self.form == "ce":
            return DecoupledMixupLoss(self.eta, self.mode, self.thr, self.scale, self.xi, self.t)
        if self.form == "bce":
            return DecoupledBCELoss(self.xi, self.t)
        raise unknown("form of DecoupledMixup", str(self.form), ("ce", "bce"))

    def plain(self) -> Trainer:
        """``mixing`` alone, with the same plan."""
        return replace(self.mixing, **{name: getattr(self, name) for name in PLAN_FIELDS})

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return self.loss()(*self.mixing.mixed_logits(model, batch, state))
