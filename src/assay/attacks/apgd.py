"""Auto-PGD: projected gradient ascent that sets its own step sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.attacks.balls import L1, wide
from assay.attacks.engine import Climb, GradientAttack

MOMENTUM = 0.75  # alpha of eq. 2 and 3
SHARE, SPARSER, SHRINK, LEAST = 0.2, 0.95, 1.5, 10.0  # of the l1 version, section 4.2


def checkpoints(steps: int) -> list[int]:
    """The steps ceil(p_j steps) at which step sizes are reconsidered: p_0 = 0, p_1 = 0.22 and
    p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), as long as p_j <= 1 (section 3.4; in whole percents).
    """
    p = [0, 22]
    while p[-1] <= 100:
        p.append(p[-1] + max(p[-1] - p[-2] - 3, 6))
    return sorted({-(-share * steps // 100) for share in p[:-1]})


@dataclass(frozen=True, kw_only=True)
class APGD(GradientAttack):
    """Auto-PGD (Croce and Hein, 2020, arXiv:2003.01690, algorithm 1), in an l-infinity, l2 or l1 ball.

    Steps start at 2 eps and carry momentum (eq. 2, 3). At each of the ``checkpoints`` a sample's step is halved, and it
    goes back to its best point, where fewer than ``rho`` of the steps since the last one raised its objective, or
    where neither its step nor its best objective changed there (conditions 1 and 2). Its best point counts. ``loss``
    is "ce" or "dlr" (eq. 6); ``targets=9, loss="dlr"`` is the targeted version (eq. 7), which has success with any
    wrong class.

    In an l1 ball (Croce and Hein, 2021, arXiv:2103.01208, algorithm 1, for one radius) steps start at eps, without
    momentum, and change the share 0.2 of the coordinates with the largest gradient. At every 4% of the steps the share
    becomes that of the best perturbation over 1.5. Where that got sparser by 5%, the step is eps again and starts at
    the best point; elsewhere it shrinks by 1.5, down to eps / 10. Shapes, ranges and errors: see Attack; options: see
    GradientAttack.
    """

    steps: int = 100
    loss: Literal["ce", "dlr", "margin"] = "ce"
    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            self.refuse("step_size", self.step_size, "None: it starts at 2 eps and adapts")
        if not 0 < self.rho < 1:
            self.refuse("rho", self.rho, "a share of the steps in (0, 1)")

    def settle(self, run: Climb) -> Bool[Tensor, " n"]:
        better = run.level.detach() > run.value[run.rows]
        out = run.met if self.early_stop else torch.zeros_like(run.met)
        run.record(better | out)
        run.memory["better"] = better
        return out

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        memory = run.memory
        if isinstance(self.ball, L1):
            return self._sparse_move(run)
        if run.step == 0:
            return self._first(run)
        memory["raised"] = memory["raised"] + (run.level > memory["level"])
        memory["level"] = run.level
        memory["uphill"] = torch.where(wide(memory["better"], run.z), run.grad, memory["uphill"])
        z, grad = run.z, run.grad
        marks = checkpoints(self.steps)
        if run.step in marks[1:]:
            back = self._halve(run, run.step - marks[marks.index(run.step) - 1])
            z = torch.where(wide(back, z), run.x_adv[run.rows], z)
            grad = torch.where(wide(back, z), memory["uphill"], grad)
        ahead = self._step(z, grad, run) - z
        aside = z - memory["previous"]
        memory["previous"] = z
        return self.ball.project(z + MOMENTUM * ahead + (1 - MOMENTUM) * aside, run.x, self.bounds)

    def _first(self, run: Climb) -> Float[Tensor, "n ..."]:
        size = torch.full_like(run.level, 2 * self.ball.eps)
        run.memory.update(size=size, raised=torch.zeros_like(size), halved=torch.ones_like(run.met))
        run.memory.update(level=run.level, checked=run.value[run.rows], previous=run.z, uphill=run.grad)
        return self._step(run.z, run.grad, run)

    def _step(self, z: Tensor, grad: Tensor, run: Climb) -> Float[Tensor, "n ..."]:
        step = wide(run.memory["size"], z) * self.ball.ascent(grad, z, self.bounds)
        return self.ball.project(z + step, run.x, self.bounds)

    def _halve(self, run: Climb, since: int) -> Bool[Tensor, " n"]:
        """Halve the step where condition 1 or 2 says so, ``since`` steps after the last checkpoint."""
        memory, best = run.memory, run.value[run.rows]
        stuck = ~memory["halved"] & (memory["checked"] >= best)
        back = (memory["raised"] < self.rho * since) | stuck
        memory["size"] = torch.where(back, memory["size"] / 2, memory["size"])
        memory.update(halved=back, checked=best, raised=torch.zeros_like(memory["raised"]))
        return back

    def _sparse_move(self, run: Climb) -> Float[Tensor, "n ..."]:
        """The step of the l1 version."""
        memory, z, grad, d = run.memory, run.z, run.grad, run.x[0].numel()
        if run.step == 0:
            size = torch.full_like(run.level, self.ball.eps)
            memory.update(size=size, share=torch.full_like(size, SHARE), count=torch.full_like(size, d), uphill=grad)
        else:
            memory["uphill"] = torch.where(wide(memory["better"], z), grad, memory["uphill"])
        if run.step and run.step % max(self.steps // 25, 1) == 0:
            best = run.x_adv[run.rows]
            count = (best != run.x).flatten(1).sum(1).to(memory["count"])
            back = count < SPARSER * memory["count"]
            shorter = (memory["size"] / SHRINK).clamp_min(self.ball.eps / LEAST)
            memory.update(size=torch.where(back, self.ball.eps, shorter), share=count / d / SHRINK, count=count)
            z, grad = torch.where(wide(back, z), best, z), torch.where(wide(back, z), memory["uphill"], grad)
        step = sparse_signs(grad, (d * memory["share"]).ceil().clamp_min(1).long())
        return self.ball.project(z + wide(memory["size"], z) * step, run.x, self.bounds)


def sparse_signs(grad: Float[Tensor, "n ..."], k: Int[Tensor, " n"]) -> Float[Tensor, "n ..."]:
    """The signs of the ``k`` largest entries of each row of a gradient (of all that tie), over their number."""
    size = grad.flatten(1).abs()
    least = size.sort(1, descending=True).values.gather(1, k[:, None] - 1)
    signs = torch.where(size >= least, grad.flatten(1).sign(), 0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(grad)
