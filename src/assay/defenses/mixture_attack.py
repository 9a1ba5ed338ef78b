"""Attacks on a mixture that also push its weight towards the accurate model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks.balls import Linf, wide
from assay.attacks.base import Goal, Untargeted
from assay.attacks.engine import Climb, GradientAttack
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError


class TwoOutputs(nn.Module):
    """A mixture that tells its log-probabilities (n, c) and the log-odds (n,) of its weight."""

    def both(self, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"]]:
        """The two outputs."""
        raise TypeError(f"{type(self).__name__} states no both")


class WithGamma(nn.Module):
    """Log-probabilities of an adaptive mixture and, as one more column, the log-odds of its weight."""

    def __init__(self, model: TwoOutputs) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c1"]:
        f, gamma = self.model.both(x)
        return torch.cat((f, gamma[:, None]), 1)


@dataclass(frozen=True)
class Deceive(Goal):
    """Any class but ``y``, with the share ``w`` (n,) of the objective on a weight near 0 (``WithGamma``'s last column).

    Its likelihood is (1 - w) CE(f, y) + w BCE(gamma, 1), the "simple composite" loss of the official code.
    """

    y: Int[Tensor, " n"]
    w: Float[Tensor, " n"]

    def check(self, where: str, n: int, classes: int | None = None) -> None:
        check_labels(where, self.y, n, classes)
        if self.w.shape != (n,):
            raise InputError(f"{where}: shares of shape {tuple(self.w.shape)}; expected ({n},)")

    def met(self, outputs: Float[Tensor, "n c1"]) -> Bool[Tensor, " n"]:
        return Untargeted(self.y).met(outputs[:, :-1])

    def margin(self, logits: Float[Tensor, "n c1"]) -> Float[Tensor, " n"]:
        return Untargeted(self.y).margin(logits[:, :-1])

    def likelihood(self, logits: Float[Tensor, "n c1"]) -> Float[Tensor, " n"]:
        wrong = F.cross_entropy(logits[:, :-1], self.y, reduction="none")
        return (1 - self.w) * wrong + self.w * F.softplus(-logits[:, -1])


@dataclass(frozen=True, kw_only=True)
class RandomisedPGD(GradientAttack):
    """PGD in Linf with a budget, a memory of gradients and a number of steps that are drawn for each sample.

    It may leave the ball by a tenth, so it is nothing to evaluate with: it is
    what a mixing network trains on (Bai et al., 2023, arXiv:2301.12554, section 4.3, as the official code has it): the
    ball's eps times a factor uniform in (0.4, 1.1), momentum with a decay uniform in (0, 0.9), 1 to ``steps`` steps of
    1.8 eps over their number. (The code draws one number of steps for a batch.) It is used with the goal ``Deceive``.
    """

    contract: ClassVar[bool] = True
    early_stop: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ball, Linf):
            self.refuse("ball", repr(self.ball), "Linf(eps)")

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        drawn = run.draws.uniform(2).to(run.x)
        run.memory["eps"] = self.ball.eps * (0.4 + 0.7 * drawn[:, 0])
        run.memory["decay"] = 0.9 * drawn[:, 1]
        run.memory["steps"] = 1 + run.draws.integers(max(self.steps, 1), 1)[:, 0].to(run.x)
        run.memory["g"] = torch.zeros_like(run.x)
        room = wide(run.memory["eps"], run.x)
        return (run.x + room * (2 * run.draws.uniform(*run.x.shape[1:]).to(run.x) - 1)).clamp(*self.bounds)

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        memory = run.memory
        memory["g"] = run.grad + wide(memory["decay"], run.x) * memory["g"]
        room = wide(memory["eps"], run.x)
        length = room * wide((memory["steps"] > run.step) * 1.8 / memory["steps"], run.x)
        moved = torch.minimum(torch.maximum(run.z + length * memory["g"].sign(), run.x - room), run.x + room)
        return moved.clamp(*self.bounds)
