"""Training under bootstrapped labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from assay.data import Data
from assay.labels.robust_loss import RobustLoss
from assay.losses import BootstrapLoss
from assay.runtime.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Bootstrap(RobustLoss):
    """Training under BootstrapLoss, whose labels are mixed with the network's own predictions (Reed et al., 2014,
    arXiv:1412.6596): probabilities where ``mode`` is "soft", the likeliest class where "hard".

    ``beta`` in [0, 1] is the share of the given label; None is the paper's, 0.95 soft and 0.8 hard. InputError for
    other parameters.
    """

    mode: Literal["soft", "hard"] = "soft"
    beta: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("soft", "hard"):
            raise unknown("mode of Bootstrap", str(self.mode), ("soft", "hard"))
        BootstrapLoss(self.beta)  # refuses what is out of range

    def loss(self, data: Data) -> nn.Module:
        return BootstrapLoss(self.beta, hard=self.mode == "hard")
