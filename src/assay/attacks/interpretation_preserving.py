"""MI-FGSM that keeps the map of where the model looks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.attacks.base import Goal, Toward, Untargeted, check_outputs
from assay.attacks.engine import Climb
from assay.attacks.mifgsm import MIFGSM
from assay.runtime.errors import InputError, unknown
from assay.runtime.saliency import SALIENCY, Saliency


@dataclass(frozen=True, kw_only=True)
class InterpretationPreservingMIFGSM(MIFGSM):
    """MI-FGSM down CE(f(x'), t) + ``lam_int`` ||m(x') - m(x)||^2 (Abdukhamidov et al., 2023, arXiv:2307.06496).

    m is the map of the class that the goal starts from (y; of what the model predicts on x for Targeted goals), in
    [0, 1]: "grad", whose gradient takes second derivatives, "cam" for networks with a global average pool, or a
    function (model, x, y) -> (n, h, w) that can be differentiated. Untargeted goals climb CE(f(x'), y) instead.
    ``detach_map`` is what the authors' code does: its map carries no gradient, so that the second term does nothing.
    That code also ascends the term, and clamps around the image that it starts from; here it descends, and the ball is
    around x, wherever ``start`` lies. x is images (n, c, h, w). Shapes, ranges and errors: see Attack; options: MIFGSM.
    """

    lam_int: float = 1e-3
    attribution: str | Saliency = "grad"
    detach_map: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lam_int < float("inf"):
            self.refuse("lam_int", self.lam_int, "a finite weight >= 0")
        if not callable(self.attribution) and self.attribution not in SALIENCY:
            raise unknown(f"attribution of {type(self).__name__}", str(self.attribution), SALIENCY)

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        if isinstance(goal, Untargeted):
            return F.cross_entropy(logits, goal.y, reduction="none")
        return -F.cross_entropy(logits, getattr(goal, "t", goal.labels()), reduction="none")

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        if run.x.dim() != 4:
            raise InputError(
                f"{type(self).__name__}: a sample is {tuple(run.x.shape[1:])}; expected an image (c, h, w)"
            )
        with torch.no_grad():
            logits = run.model(run.x)
        check_outputs(type(self).__name__, logits, run.goal)
        run.queries[run.rows] += 1
        run.memory["y"] = run.goal.y if isinstance(run.goal, (Untargeted, Toward)) else logits.argmax(1)
        run.memory["map"] = self._map(run, run.x).detach()
        return super().begin(run)

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        if self.lam_int and not self.detach_map:
            with torch.enable_grad():
                z = run.z.detach().requires_grad_()
                change = (self._map(run, z) - run.memory["map"]).square().sum()
                (slope,) = torch.autograd.grad(change, z)
            run.grad = run.grad - self.lam_int * slope
            run.queries[run.rows] += 1
            run.gradients[run.rows] += 2
        return super().move(run)

    def _map(self, run: Climb, z: Tensor) -> Float[Tensor, "n h w"]:
        how = self.attribution if callable(self.attribution) else SALIENCY[self.attribution]
        return how(run.model, z, run.memory["y"])
