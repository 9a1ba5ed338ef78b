"""A robust classifier as a sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.base import Goal
from assay.attacks.engine import Climb, GradientAttack
from assay.generate import ClassPCA
from assay.losses.energies import joint_energy, marginal_energy
from assay.runtime.errors import InputError, unknown


def _conditional(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _marginal(logits: Tensor, y: Tensor) -> Tensor:
    return marginal_energy(logits)


ENERGIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "joint": joint_energy,
    "marginal": _marginal,
    "conditional": _conditional,
}


@dataclass(frozen=True, kw_only=True)
class Langevin(GradientAttack):
    """Steps down an energy of the label, with momentum and noise; no ball, only the bounds."""

    early_stop: bool = False
    random_start: bool = False
    energy: str
    rate: float
    momentum: float
    noise: float
    heun: bool

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        return -ENERGIES[self.energy](logits, goal.labels())

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        rise = run.grad
        if self.heun:
            rise = (rise + run.gradient(run.z + self.rate * rise)) / 2
        velocity = self.momentum * run.memory.get("velocity", 0.0) + self.rate / 2 * rise
        run.memory["velocity"] = velocity
        return (run.z + velocity + self.noise * run.draws.normal(*run.z.shape[1:]).to(run.z)).clamp_(*self.bounds)


@dataclass(frozen=True, kw_only=True)
class RobustSGLD:
    """Langevin dynamics with momentum on a classifier's energy (Mirza et al., 2024, arXiv:2407.06315, section 5).

    From ``class_pca`` (spread ``sigma``; see ClassPCA.draw), ``steps`` times v <- ``momentum`` v - ``step`` / 2 grad E,
    x <- clip(x + v + ``noise`` N(0, I)). ``energy`` is E(x, y) ("joint"), E(x) ("marginal") or their difference, the
    cross-entropy ("conditional"). ``method`` "heun" averages the gradient with that at the end of a step of plain
    descent; the released code moves against it, up the energy, which is not followed. The released notebooks have steps
    of 0.5 and 1 and noise 0.001; the momentum is 0.8 here, the source gives no single value. The classifier has to be
    robust: down the energy of an ordinary one lies noise. It is used in evaluation mode and never changed. Raises
    InputError for options out of range.
    """

    model: nn.Module
    class_pca: ClassPCA
    step: float = 0.5
    momentum: float = 0.8
    noise: float = 0.001
    steps: int = 20
    sigma: float = 0.005
    energy: Literal["joint", "marginal", "conditional"] = "joint"
    method: Literal["sgld", "heun"] = "sgld"

    def __post_init__(self) -> None:
        if self.energy not in ENERGIES:
            raise unknown("energy of RobustSGLD", str(self.energy), ENERGIES)
        if self.method not in ("sgld", "heun"):
            raise unknown("method of RobustSGLD", str(self.method), ("sgld", "heun"))
        usable = 0 < self.step < math.inf and 0 <= self.momentum < 1 and 0 <= self.noise < math.inf and self.steps >= 0
        if not usable:
            given = f"step={self.step}, momentum={self.momentum}, noise={self.noise}, steps={self.steps}"
            raise InputError(f"RobustSGLD: {given}; expected step > 0, momentum in [0, 1), noise and steps >= 0")

    def sample(self, y: Int[Tensor, " n"], *, seed: int) -> Float[Tensor, "n ..."]:
        """One sample a label, (n, *shape) in the bounds of the data. Raises InputError for a class without data."""
        start = self.class_pca.draw(y, seed=seed, sigma=self.sigma)
        dynamics = Langevin(
            steps=self.steps,
            bounds=self.class_pca.bounds,
            energy=self.energy,
            rate=self.step,
            momentum=self.momentum,
            noise=self.noise,
            heun=self.method == "heun",
        )
        return dynamics(self.model, start, y, seed=seed)
