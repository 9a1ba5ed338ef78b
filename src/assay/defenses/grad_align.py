"""GradAlign: single-step adversarial training that keeps the gradient aligned across the ball."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch
from assay.defenses.single_step import SingleStepAT, Step
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class GradAlign(SingleStepAT):
    """FGSM training + ``strength`` (1 - mean cos(grad at x, grad at x + eta)), eta ~ U(-eps, eps).

    Andriushchenko & Flammarion, 2020, arXiv:2007.02617, eq. 4; 0.2 is for CIFAR-10 at 8/255 (0.63 at 16/255). As in the
    released code the first gradient is that of the attack's step, taken as constant, the second carries the gradient
    (through a double backward pass) at a point that is not cut to the bounds, and samples with a zero gradient do not
    count. It costs about two passes more than SingleStepAT.
    """

    contract: ClassVar[bool] = False

    init: Literal["zero", "rs", "nfgsm"] = "zero"
    strength: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise InputError(f"GradAlign: strength={self.strength}; expected a finite number >= 0")

    def misalignment(
        self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], slope: Float[Tensor, "n ..."]
    ) -> Float[Tensor, ""]:
        """1 - mean cosine of the loss's gradient at ``x`` with ``slope``, over samples that have both."""
        at = x.detach().requires_grad_()
        (here,) = torch.autograd.grad(F.cross_entropy(model(at), y), at, create_graph=True)
        a, b = slope.flatten(1), here.flatten(1)
        both = (a != 0).any(1) & (b.detach() != 0).any(1)
        if not both.any():
            return here.sum() * 0
        a, b = (g / g.detach().abs().amax(1, keepdim=True) for g in (a[both], b[both]))  # tiny ones do not underflow
        return 1 - F.cosine_similarity(a, b, dim=1).mean()

    def outer(self, model: nn.Module, batch: Batch, state: State, step: Step) -> Tensor:
        generator = torch_rng(state.seed, "align", state.step, device=batch.x.device)
        eta = torch.empty_like(batch.x).uniform_(-self.eps, self.eps, generator=generator)
        apart = self.misalignment(model, batch.x + eta, batch.y, step.slope)
        return super().outer(model, batch, state, step) + self.strength * apart
