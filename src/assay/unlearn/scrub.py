"""Unlearning by disobeying the teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.subject import Subject
from assay.training import State
from assay.unlearn.bad_teacher import divergence
from assay.unlearn.passes import Pass, PassLoss, PassUnlearner
from assay.unlearn.single import outputs_of


@dataclass(frozen=True, kw_only=True)
class SCRUB(PassUnlearner):
    """Stay near the subject on what is retained and leave it on what is forgotten (Kurmanji et al., 2023,
    arXiv:2302.09880, equation 3 and algorithm 1).

    ``max_epochs`` epochs start with a pass over ``forget`` that climbs d(x) = T^2 KL(subject || student) at
    ``temperature`` T; every one of ``epochs`` ends with a pass over ``retain`` that descends ``gamma`` CE + ``alpha``
    d(x). The teacher's outputs are those of evaluation mode. The divergence is 0 where the student starts, so that the
    first step on ``forget`` moves only by rounding. ``control`` descends d(x) on ``forget`` instead. The paper's
    SCRUB+R picks one of ``stages``. Other options: see PassUnlearner.
    """

    epochs: int = 5
    lr: float = 5e-4
    weight_decay: float = 5e-4
    max_epochs: int = 3
    alpha: float = 0.5
    gamma: float = 1.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        good = 0 <= self.max_epochs <= self.epochs and self.alpha >= 0 and self.gamma >= 0 and self.temperature > 0
        if not good:
            raise InputError(
                f"SCRUB: max_epochs={self.max_epochs} of {self.epochs}, alpha={self.alpha}, gamma={self.gamma}, "
                f"temperature={self.temperature}; expected 0 to epochs, alpha, gamma >= 0, temperature > 0"
            )

    def passes(self, forget: Data, retain: Data, *, seed: int) -> list[list[Pass]]:
        """A pass over ``forget`` in the first epochs, one over ``retain`` in all of them."""
        first = [[("forget", forget), ("retain", retain)]] * self.max_epochs
        return first + [[("retain", retain)]] * (self.epochs - self.max_epochs)

    def losses(self, subject: Subject, forget: Data, retain: Data, *, seed: int, control: bool) -> PassLoss:
        """The divergence from the subject: climbed, or descended beside the cross-entropy."""
        teacher = copy.deepcopy(subject.model).eval()

        def loss(model: nn.Module, name: str, batch: Batch, state: State) -> Tensor:
            with torch.no_grad():
                taught = teacher(batch.x)
            logits = outputs_of(model, batch.x)
            far = self.temperature**2 * divergence(taught, logits, self.temperature)
            if name == "forget":
                return far if control else -far
            return self.gamma * F.cross_entropy(logits, batch.y) + self.alpha * far

        return loss
