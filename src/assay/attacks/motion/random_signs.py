"""Random signs: what a no-box attack of the same size has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.motion.base import FittedNoBox, NoBoxAttack
from assay.runtime.random import Draws


@dataclass(frozen=True)
class FittedRandomSigns(FittedNoBox):
    """Draws anew for each sample."""

    def perturb(
        self, x: Tensor, moved: Tensor, frames: Int[Tensor, " n"], *, seed: int, index: Int[Tensor, " n"]
    ) -> Float[Tensor, "n ..."]:
        signs = Draws(seed, "RandomSigns", index).signs(*x.shape[1:]).to(x)
        return (x + self.attack.eps * signs * moved).clamp(*self.attack.bounds)


@dataclass(frozen=True, kw_only=True)
class RandomSigns(NoBoxAttack):
    """Every coordinate moves by ``eps`` up or down with equal probability: the largest noise in the ball.

    What Goodfellow et al. (2015, arXiv:1412.6572, section 4) set adversarial perturbations against. Further options,
    shapes, ranges and errors: see NoBoxAttack.
    """

    def learn(self, encoder: nn.Module, pool: Tensor, *, seed: int) -> FittedRandomSigns:
        return FittedRandomSigns(self, encoder)
