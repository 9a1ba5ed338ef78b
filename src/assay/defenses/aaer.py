"""AAER: single-step adversarial training that penalises samples whose step lowered their loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from assay.data import Batch
from assay.defenses.single_step import SingleStepAT, Step
from assay.losses import AAERLoss
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class AAER(SingleStepAT):
    """Single-step training under losses.AAERLoss (Lin et al., 2023, arXiv:2404.08154, section 3.3), for any ``init``.

    The factors are those of the released N-FGSM script; the paper tunes them for each radius and init. For
    ``ce_gradient`` see losses.AAERLoss. Published with 15 epochs of batches of 128, SGD, rate 0.05 (up over 2/5 of the
    steps, then down), momentum 0.9, weight decay 5e-4. The cost is that of SingleStepAT.
    """

    contract: ClassVar[bool] = False

    lam_number: float = 1.0
    lam_ce: float = 4.0
    lam_logit: float = 1.5
    ce_gradient: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.criterion()

    def criterion(self) -> AAERLoss:
        """The loss of the logits before and after the step."""
        return AAERLoss(self.lam_number, self.lam_ce, self.lam_logit, self.ce_gradient)

    def outer(self, model: nn.Module, batch: Batch, state: State, step: Step) -> Tensor:
        return self.criterion()(step.after, batch.y, step.before)
