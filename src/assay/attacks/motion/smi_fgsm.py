"""The fast gradient sign method with motion-informed gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.attacks.balls import wide
from assay.attacks.engine import Climb, Memory
from assay.attacks.mifgsm import MIFGSM
from assay.attacks.motion.smi import SMIGradient


@dataclass(frozen=True, kw_only=True)
class SMIFGSM(MIFGSM):
    """MI-FGSM that climbs the motion-informed gradient (Lu et al., 2023, arXiv:2308.05681).

    G = ``momentum`` G + SMI(gradient / mean |gradient|); the step is the ball's steepest direction for G. ``smi``
    fits how the frames of x depend on those before, once, before the first step. Its order 0 is MI-FGSM; ``momentum`` 0
    with order 1 and 2 are the paper's I-S1MI-FGSM and I-S2MI-FGSM, momentum 1 its MI-FGSM forms. x is anything with
    time along ``smi.time_dim``: motions (n, 3, t, joints, persons), or images read row by row. Further shapes, ranges
    and errors: see Attack and SMIGradient; options: see MIFGSM.
    """

    smi: SMIGradient = SMIGradient()

    def frames(self, run: Climb) -> Int[Tensor, " n"] | None:
        """The number of real frames of each clip; None where all are."""
        return None

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        run.memory["responses"] = self.smi.responses(run.x, self.frames(run))
        return super().begin(run)

    def direction(self, grad: Tensor, z: Tensor, memory: Memory, step: int) -> Float[Tensor, "n ..."]:
        grad = self.shape(grad)
        g = self.smi.combine(grad / wide(grad.flatten(1).abs().mean(1).clamp_min(1e-30), grad), memory["responses"])
        memory["g"] = self.momentum * memory.get("g", torch.zeros_like(g)) + g
        return self.ball.ascent(memory["g"], z, self.bounds)
