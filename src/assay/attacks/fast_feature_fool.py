"""Fast Feature Fool: the predecessor of GD-UAP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assay.attacks.universal import ActivationAttack


@dataclass(frozen=True, kw_only=True)
class FastFeatureFool(ActivationAttack):
    """The sum over stages of the log of the mean activation is made large (Mopuri et al., 2017, arXiv:1707.05572).

    The mean is that of the absolute outputs, so that stages without a ReLU serve too. Only the objective is that of
    the predecessor; the loop, its priors and its halving are GD-UAP's. Shapes and errors: see ActivationAttack.
    """

    def objective(self, stages: list[Tensor]) -> Tensor:
        return torch.stack([(out.abs().mean() + 1e-12).log() for out in stages]).sum()
