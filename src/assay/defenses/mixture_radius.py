"""Radii within which a mixture with a certified robust model keeps its class, whatever the other model does."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError

TOLERANCE = 1e-4  # by how much the probabilities of a sample may miss a sum of 1


def _checked(where: str, h_probs: Tensor, y: Tensor, alpha: float, error: float) -> None:
    if h_probs.dim() != 2 or len(h_probs) == 0 or h_probs.shape[1] < 2:
        raise InputError(f"{where}: probabilities of shape {tuple(h_probs.shape)}; expected (n, c) with c >= 2")
    off = (h_probs.sum(1) - 1).abs().max()
    if not (h_probs >= 0).all() or not off <= TOLERANCE:
        raise InputError(
            f"{where}: sums of probabilities miss 1 by up to {float(off):.2g}; expected rows that sum to 1"
        )
    check_labels(where, y, len(h_probs), h_probs.shape[1])
    if not 0 <= alpha <= 1 or not 0 <= error < 1:
        raise InputError(f"{where}: alpha = {alpha}, error = {error}; expected alpha in [0, 1] and error in [0, 1)")


def _sides(h_probs: Tensor, y: Tensor, error: float) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n c"]]:
    """What y has at least, and what each class has at most."""
    h = h_probs.double()
    return (h.gather(1, y[:, None]) - error).clamp_min(0), (h + error).clamp_max(1)


def _least(radii: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The smallest over the classes other than y, at least 0."""
    return radii.scatter(1, y[:, None], torch.inf).amin(1).clamp_min(0)


def certified_radius_lipschitz(
    h_probs: Float[Tensor, "n c"],
    y: Int[Tensor, " n"],
    alpha: float,
    lip: float | Float[Tensor, " c"],
    *,
    error: float = 0.0,
) -> Float[Tensor, " n"]:
    """r = min over i != y of (alpha (h_y - h_i) + alpha - 1) / (alpha (Lip(h_y) + Lip(h_i))), or 0 where that is less
    (Bai et al., 2023, arXiv:2301.12554, theorem 3.5): float64, in the norm and the units of ``lip`` > 0.

    ``h_probs`` are the robust model's probabilities at the inputs, ``lip`` the Lipschitz constant of each of them, or
    one for all; sqrt(2 / pi) / sigma in l2 for a model smoothed by noise of deviation sigma. ``error`` is how far off
    each probability may be where they are estimated: y counts with that much less and the others with that much more.
    The radius is 0 where y is not the robust model's class, and for alpha up to 1/2.
    """
    _checked("certified_radius_lipschitz", h_probs, y, alpha, error)
    constants = torch.as_tensor(lip, dtype=torch.float64)
    if constants.dim() and constants.shape != h_probs.shape[1:]:
        where = f"certified_radius_lipschitz: {tuple(constants.shape)} Lipschitz constants"
        raise InputError(f"{where}; expected one, or ({h_probs.shape[1]},), one a class")
    constants = constants.expand(h_probs.shape[1])
    if not (constants > 0).all():
        raise InputError(f"certified_radius_lipschitz: lip = {lip}; expected Lipschitz constants above 0")
    if alpha == 0:
        return torch.zeros(len(y), dtype=torch.float64)
    own, other = _sides(h_probs, y, error)
    spare = alpha * (own - other) + alpha - 1
    return _least(spare / (alpha * (constants[y][:, None] + constants)), y)


def certified_radius_smoothing(
    h_probs: Float[Tensor, "n c"], y: Int[Tensor, " n"], alpha: float, sigma: float, *, error: float = 0.0
) -> Float[Tensor, " n"]:
    """r = sigma / 2 (Phi^-1(alpha h_y) - Phi^-1(alpha h_i + 1 - alpha)) for the runner-up i, or 0 where that is less
    (Bai et al., 2023, arXiv:2301.12554, theorem 3.7): l2, float64, in the units of ``sigma`` > 0.

    ``h_probs`` are probabilities averaged over Gaussian noise of deviation ``sigma``; for ``error`` see
    ``certified_radius_lipschitz``. At alpha = 1 it is the radius of randomised smoothing.
    """
    _checked("certified_radius_smoothing", h_probs, y, alpha, error)
    if not 0 < sigma < math.inf:
        raise InputError(f"certified_radius_smoothing: sigma = {sigma}; expected a finite number above 0")
    own, other = _sides(h_probs, y, error)
    ahead = torch.special.ndtri(alpha * own) - torch.special.ndtri(alpha * other + 1 - alpha)
    return _least((sigma / 2 * ahead).nan_to_num(nan=0.0, neginf=0.0, posinf=torch.inf), y)
