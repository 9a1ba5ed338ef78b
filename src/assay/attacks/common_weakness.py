"""What makes a point a common weakness of several models: flatness, similar gradients, and optima that are near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import grad, vjp

from assay.attacks.balls import L2, Ball, Linf
from assay.attacks.base import OBJECTIVES, Untargeted
from assay.attacks.ensemble import Ensemble, members
from assay.attacks.pgd import PGD
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.random import Draws


@dataclass(frozen=True)
class WeaknessStats:
    """Of k models at n points: the Frobenius norms of the Hessians of the cross-entropies in the input, ``flatness``
    (k, n); the mean pairwise cosine of their gradients, ``closeness`` (n,); and the l2 distances to an optimum of each
    model, ``distance`` (k, n). Small norms and distances and cosines near 1 let a point transfer.
    """

    flatness: Float[Tensor, "k n"]
    closeness: Float[Tensor, " n"]
    distance: Float[Tensor, "k n"]


@dataclass(frozen=True, kw_only=True)
class _Onward(PGD):
    """PGD in the ball from the points ``here`` (n, ...)."""

    contract: ClassVar[bool] = True

    early_stop: bool = False
    here: Tensor

    def start(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        return self.here.to(x) - x


def gradient_cosine(
    models: Sequence[nn.Module], x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The mean over pairs of models of the cosine of their cross-entropies' gradients at ``x``: 1 where all agree.

    What the inner pass of the common weakness attack raises (Chen et al., 2023, arXiv:2303.09105). A
    gradient of 0 has the cosine 0 with any. InputError for fewer than two models or unusable inputs.
    """
    check_inputs("gradient_cosine", x, y)
    if len(models) < 2:
        raise InputError(f"gradient_cosine: {len(models)} models; expected at least two")
    k, ensemble = len(models), Ensemble(models)
    with evaluating(ensemble):
        units = torch.stack([_unit_gradient(m, x, y) for m in members(ensemble)])
    together = units.sum(0).flatten(1).square().sum(1)
    return (together - units.flatten(2).square().sum((0, 2))) / (k * (k - 1))


def _unit_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    def odds(z: Tensor) -> Tensor:
        return OBJECTIVES["ce"](model(z), Untargeted(y)).sum()

    return L2(1.0).ascent(grad(odds)(x.detach()), x, (0, 1))


def _hessian_norm(model: nn.Module, x: Tensor, y: Tensor, probes: list[Tensor]) -> Tensor:
    """||H||_F by E ||H v||^2 = ||H||_F^2 for vectors of random signs (Hutchinson, 1989)."""

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(model(z), y, reduction="sum")

    along = vjp(grad(loss), x.detach())[1]  # H is symmetric
    return torch.stack([along(v)[0].flatten(1).square().sum(1) for v in probes]).mean(0).sqrt()


def common_weakness_stats(
    models: Sequence[nn.Module],
    x: Float[Tensor, "n ..."],
    x_adv: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    seed: int,
    ball: Ball = Linf(16 / 255),
    probes: int = 10,
    steps: int = 50,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> WeaknessStats:
    """The two factors of the bound on an ensemble's transfer (Chen et al., 2023, arXiv:2303.09105) at ``x_adv``.

    The Hessians by ``probes`` random vectors; a model's optimum as where ``steps`` further steps of PGD in the ball
    around ``x`` lead. Piecewise linear models have a Hessian all the same: that of the softmax. InputError for fewer
    than two models, no probes or steps, or unusable inputs.
    """
    check_inputs("common_weakness_stats", x_adv, y, bounds)
    if probes < 1 or steps < 1 or x.shape != x_adv.shape:
        where = f"probes {probes}, steps {steps}, x {tuple(x.shape)}, x_adv {tuple(x_adv.shape)}"
        raise InputError(f"common_weakness_stats: {where}; expected at least 1 each, and the same shapes")
    closeness = gradient_cosine(models, x_adv, y)
    draws, ensemble = Draws(seed, "weakness", torch.arange(len(x))), Ensemble(models)
    signs = [draws.signs(*x.shape[1:]).to(x_adv) for _ in range(probes)]
    onward = _Onward(ball=ball, steps=steps, here=x_adv, bounds=bounds)
    with evaluating(ensemble):
        flatness = torch.stack([_hessian_norm(m, x_adv, y, signs) for m in members(ensemble)])
        optima = [onward(m, x, y, seed=seed) for m in members(ensemble)]
    distance = torch.stack([(p - x_adv).flatten(1).norm(dim=1) for p in optima])
    return WeaknessStats(flatness, closeness, distance)
