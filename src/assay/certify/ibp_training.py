"""Certified training by interval bound propagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from assay.certify.box_training import Box, BoxTrainer, clipped_box
from assay.data import Batch
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class IBPTraining(BoxTrainer):
    """Train on the worst margins over the whole linf ball (Gowal et al., 2018, arXiv:1810.12715, section 3).

    The ball of radius ``eps`` is cut to the data's bounds. Their recipe for images has kappa 0.5 at the end and a third
    of the steps or less in warm-up; Mao et al. (2024, arXiv:2306.10426) take kappa 0. Options: see BoxTrainer.
    """

    contract: ClassVar[bool] = False

    def box(self, model: nn.Module, batch: Batch, eps: float, state: State) -> Box:
        return clipped_box(batch.x, eps, state.data.bounds)
