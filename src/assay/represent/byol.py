"""BYOL: one view predicts what a slowly moving copy of the network makes of the other; there are no negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.represent.simsiam import SelfSupervised
from assay.represent.two_views import Followed, TwoViews, follow, head
from assay.runtime.errors import InputError
from assay.training import State
from assay.training.engine import Hook


def byol_loss(prediction: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """|q / |q| - z / |z||^2 = 2 - 2 cos(q, z), mean over samples, no gradient through z (eq. 2); in [0, 4]."""
    return 2 - 2 * F.cosine_similarity(prediction, target.detach()).mean()


@dataclass(frozen=True, kw_only=True)
class BYOL(TwoViews):
    """Grill et al., 2020, arXiv:2006.07733, section 3; ``fit`` as in TwoViews.

    The loss is ``byol_loss`` of both ways. The target's momentum is 1 - (1 - ``momentum``) (cos(pi k / K) + 1) / 2 at
    step k of K (section 3.3): from ``momentum`` to 1. ``hidden`` is the width of the predictor's inner layer.
    """

    projector: tuple[int, ...] = (4096, 256)
    hidden: int = 4096
    momentum: float = 0.996

    def __post_init__(self) -> None:
        if self.hidden < 1 or not 0 <= self.momentum <= 1:
            given = f"hidden={self.hidden}, momentum={self.momentum}"
            raise InputError(f"BYOL: {given}; expected hidden >= 1, momentum in [0, 1]")

    def network(self, encoder: SelfSupervised, features: Float[Tensor, "1 w"]) -> nn.Module:
        width = self.projector[-1] if self.projector else features.shape[1]
        return Followed(encoder, head((width, self.hidden, width)).to(features.dtype))

    def momentum_at(self, step: int, total: int) -> float:
        """The target's momentum after ``step`` of ``total`` steps."""
        return 1 - (1 - self.momentum) * (math.cos(math.pi * step / total) + 1) / 2

    def hooks(self) -> Sequence[Hook]:
        return (lambda models, state: follow(models["model"], self.momentum_at(state.step, state.total)),)

    def loss(self, model: nn.Module, one: Tensor, two: Tensor, state: State) -> Tensor:
        assert isinstance(model, Followed)
        with torch.no_grad():
            z1, z2 = model.target(one), model.target(two)
        q1, q2 = (model.predictor(model.encoder(view)) for view in (one, two))
        return byol_loss(q1, z2) + byol_loss(q2, z1)
