"""GD-UAP: a universal perturbation that needs no data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assay.attacks.universal import ActivationAttack


@dataclass(frozen=True, kw_only=True)
class GDUAP(ActivationAttack):
    """The sum over stages of log(||l||^2 / 2) is made large (Mopuri et al., 2018, arXiv:1801.08092).

    l is a convolutional stage's output for the batch d + delta. The paper writes log ||l||, the authors' code the
    form used here: twice that, less a constant. Priors, loop, shapes and errors: see ActivationAttack.
    """

    def objective(self, stages: list[Tensor]) -> Tensor:
        return torch.stack([(out.square().sum() / 2 + 1e-12).log() for out in stages]).sum()
