"""Margins of scores, and when a loss of the margin is good for classification."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.losses.binary_cross_entropy import check_scores
from assay.losses.pairs import check_logits
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError

STEP = 1e-6


def margins(
    where: str, scores: Float[Tensor, "n ..."], target: Int[Tensor, " n"], *, multiclass: bool = False
) -> Float[Tensor, " n"]:
    """y f of scores f (n,) or (n, 1) and labels 0 (y = -1) or 1 (y = +1), in float32 at least.

    Where ``multiclass``: f_y - max over k != y of f_k, of logits (n, c). Raises InputError for other scores or labels.
    """
    f = scores.to(torch.promote_types(scores.dtype, torch.float32)) if isinstance(scores, Tensor) else scores
    if multiclass:
        check_logits(where, f, target)
        own = f.gather(1, target[:, None])
        return (own - f.scatter(1, target[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]
    check_scores(where, f, most=1)
    check_labels(where, target, len(f), 2)
    return f.reshape(-1) * (2 * target - 1)


def is_classification_calibrated(phi: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether a *convex* loss phi of the margin leads to Bayes' rule: it has a slope at 0, and that is negative
    (Bartlett et al., 2006, "Convexity, classification, and risk bounds", Theorem 2).

    The one-sided slopes are taken at 1e-6 and agree to a thousandth of themselves, so that a factor of phi does not
    matter. Raises InputError where phi is found not to be convex on [-5, 5], or not finite.
    """
    grid = np.linspace(-5, 5, 2001)
    values = np.asarray(phi(grid), float)
    if values.shape != grid.shape or not np.isfinite(values).all():
        raise InputError(f"is_classification_calibrated: phi gives {values.shape}; expected finite values of one shape")
    if np.diff(values, 2).min() < -1e-9 * np.abs(values).max():
        raise InputError("is_classification_calibrated: phi is not convex on [-5, 5]; expected a convex loss")
    left, middle, right = np.asarray(phi(np.array([-STEP, 0.0, STEP])), float)
    below, above = (middle - left) / STEP, (right - middle) / STEP
    noise = 8 * np.finfo(float).eps * abs(middle) / STEP
    return bool(above < -noise and abs(below - above) <= 1e-3 * abs(below) + noise)


def check_derivatives(z: Float[Tensor, " n"], g: Float[Tensor, " n"]) -> None:
    """InputError unless ``g`` can be the slopes, at finite margins ``z``, of a convex loss that falls: negative,
    finite, and not decreasing in z. Equal margins may have unequal slopes, as at a kink, in any order.
    """
    if z.shape != g.shape or z.dim() != 1 or len(z) == 0 or not torch.isfinite(z).all():
        shapes = f"z {tuple(z.shape)} and g {tuple(g.shape)}"
        raise InputError(f"check_derivatives: {shapes}; expected one shape (n,), finite z")
    if not (torch.isfinite(g).all() and (g < 0).all()):
        raise InputError(f"check_derivatives: g is at most {float(g.max()):.3g}; expected finite numbers below 0")
    by_slope = g.argsort()
    if (g[by_slope[z[by_slope].argsort(stable=True)]].diff() < 0).any():
        raise InputError("check_derivatives: g decreases somewhere in z; expected the slopes of a convex loss")
