"""Alignment with smooth expert trajectories: distillation from strong experts, with a steadier student."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assay.curate.expert_trajectories import Trajectories
from assay.curate.trajectory_matching import TrajectoryMatching
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import torch_rng

INTERMEDIATE = ("agg", "adaptive")


@dataclass(frozen=True, kw_only=True)
class AST(TrajectoryMatching):
    """Trajectory matching from smooth experts (see ExpertTrajectories) with representative images to start from, a
    student with momentum, and what steadies it (Shen et al., 2023, arXiv:2310.10541, section 3.3; details after the
    official code).

    ``momentum``: heavy-ball buffer of the student. ``perturb`` a: every convolution's weights start at w + a (d /
    ||d||_F) w, entry by entry, d standard normal; other weights stay. ``balance``: for a start at epoch t the student's
    loss is multiplied by log_5(t - h + 8) from h = max_start // 2 on and divided by log_5(h - t + 8) before.
    ``intermediate``: the distances to theta_{t+1}, ..., theta_{t+M-1}, after syn_steps // M steps each, count beside
    the last, all of them 1 ("agg") or the j-th j / M ("adaptive"). Other options: see TrajectoryMatching.
    """

    init: Literal["random", "representative"] = "representative"
    momentum: float = 0.9
    balance: bool = True
    intermediate: Literal["agg", "adaptive"] | None = "agg"
    perturb: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.intermediate is not None and self.intermediate not in INTERMEDIATE:
            raise unknown("intermediate of AST", str(self.intermediate), INTERMEDIATE)
        if not 0 <= self.momentum < 1 or not self.perturb >= 0:
            raise InputError(
                f"AST: momentum={self.momentum}, perturb={self.perturb}; expected a share in [0, 1) and at least 0"
            )

    def perturbed(self, trajectories: Trajectories, start: Tensor, *, seed: int) -> Tensor:
        """The weights of convolutions moved at random, in proportion to themselves."""
        if self.perturb == 0:
            return start
        moved, g = trajectories.unflat(start), torch_rng(seed, "perturb")
        for name, w in moved.items():
            if w.dim() == 4:
                d = torch.randn(w.shape, generator=g, dtype=w.dtype).to(w.device)
                moved[name] = w + self.perturb * d / d.norm() * w
        return torch.cat([w.flatten() for w in moved.values()])

    def weights(self) -> list[float]:
        """1 for the last epoch, and what ``intermediate`` says for those before it."""
        m = self.expert_epochs
        before = {"agg": [1.0] * (m - 1), "adaptive": [j / m for j in range(1, m)], None: [0.0] * (m - 1)}
        return [*before[self.intermediate], 1.0]

    def factor(self, epoch: int) -> float:
        """log_5(t - h + 8), or its inverse before the middle h."""
        past = epoch - self.max_start // 2
        if not self.balance:
            return 1.0
        return math.log(past + 8, 5) if past >= 0 else 1 / math.log(8 - past, 5)

    def buffered(self, buffer: Tensor | None, gradient: Tensor) -> Tensor:
        """The momentum buffer after this gradient."""
        return gradient if buffer is None else self.momentum * buffer + gradient
