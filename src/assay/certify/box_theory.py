"""What interval bounds lose on linear networks: the two boxes, when they agree, and what to expect at random weights.

Mao et al., 2024, arXiv:2306.10426. A linear network is a sequence of matrices W_1, ..., W_L, the first applied first;
biases move boxes and change no radius.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

from jaxtyping import Bool, Float
from torch import Tensor

from assay.runtime.errors import InputError


def _checked(where: str, weights: Sequence[Float[Tensor, "m n"]]) -> list[Float[Tensor, "m n"]]:
    """The matrices in float64, once they are known to fit together."""
    if not weights:
        raise InputError(f"{where}: no weights; expected at least one matrix")
    for k, w in enumerate(weights):
        if w.dim() != 2 or not w.isfinite().all():
            raise InputError(f"{where}: weights[{k}] has shape {tuple(w.shape)}; expected a finite matrix (out, in)")
        if k and w.shape[1] != weights[k - 1].shape[0]:
            raise InputError(
                f"{where}: weights[{k}] takes {w.shape[1]} inputs; expected {weights[k - 1].shape[0]}, as many as "
                f"weights[{k - 1}] gives"
            )
    return [w.double() for w in weights]


def _product(weights: Sequence[Float[Tensor, "m n"]]) -> Float[Tensor, "m n"]:
    """W_L ... W_1."""
    return reduce(lambda total, w: w @ total, weights)


def _radius(where: str, e: Float[Tensor, "*b n"], width: int) -> Float[Tensor, "*b n"]:
    if e.shape[-1:] != (width,) or not (e >= 0).all():
        raise InputError(f"{where}: e has shape {tuple(e.shape)}; expected numbers >= 0 with a last axis of {width}")
    return e.double()


def optimal_box(weights: Sequence[Float[Tensor, "m n"]], e: Float[Tensor, "*b n"]) -> Float[Tensor, "*b m"]:
    """Radius |W_L ... W_1| e of the smallest box around the image of a box of radius ``e`` >= 0 (section 3).

    ``weights`` (out, in) each, the first applied first; float64. Raises InputError where shapes do not fit or e < 0.
    """
    matrices = _checked("optimal_box", weights)
    return _radius("optimal_box", e, matrices[0].shape[1]) @ _product(matrices).abs().T


def layerwise_box(weights: Sequence[Float[Tensor, "m n"]], e: Float[Tensor, "*b n"]) -> Float[Tensor, "*b m"]:
    """Radius |W_L| ... |W_1| e that interval bound propagation gives (section 3). Arguments: see optimal_box."""
    matrices = [w.abs() for w in _checked("layerwise_box", weights)]
    return _radius("layerwise_box", e, matrices[0].shape[1]) @ _product(matrices).T


def is_propagation_invariant(weights: Sequence[Float[Tensor, "m n"]], tol: float = 0.0) -> bool:
    """Whether |W_L ... W_1| = |W_L| ... |W_1|: interval bounds are then exact for every box (section 3).

    Two layers are so where the products W2[i, k] W1[k, j] have one sign over k, zeros allowed, for all i and j.
    ``tol`` >= 0 is the difference that is let pass, relative to the largest entry.
    """
    if not tol >= 0:
        raise InputError(f"is_propagation_invariant: tol is {tol}; expected a number >= 0")
    matrices = _checked("is_propagation_invariant", weights)
    most = _product([w.abs() for w in matrices])
    return bool((most - _product(matrices).abs() <= tol * most.max()).all())


def sign_rank_one(matrix: Float[Tensor, "m n"]) -> bool:
    """Whether W[i, j] W[i, j'] W[i', j] W[i', j'] >= 0 everywhere: no 2 x 2 block has an odd number of minus signs.

    Without zeros the signs of the matrix are then an outer product, fixed by m + n - 1 of them. The product W2 W1 of a
    propagation-invariant pair whose *factors* have no zeros is such a matrix (section 3); with zeros in the factors
    it need not be: W2 = I is invariant with any W1.
    """
    (w,) = _checked("sign_rank_one", [matrix])
    agree = w.sign()[:, None] * w.sign()[None]  # (m, m, n): where two rows agree, differ, or one is zero
    both: Bool[Tensor, "m m"] = (agree > 0).any(2) & (agree < 0).any(2)
    return not bool(both.any())


def _mean_norm(n: int) -> float:
    """Gamma((n + 1) / 2) / Gamma(n / 2): the mean length of n standard normal numbers over sqrt(2)."""
    return math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2))


def init_tightness_theory(width: int, depth: int = 2) -> float:
    """Mean optimal radius over mean layer-wise radius at i.i.d. Gaussian weights, ``depth`` layers of hidden ``width``.

    Two layers: theta(d) = sqrt(pi) Gamma((d + 1) / 2) / (d Gamma(d / 2)), about sqrt(pi / (2 d)) (section 3). Deeper
    ones: theta(d)^(depth - 1) exactly, as every further Gaussian layer multiplies the mean length of a column by that
    of d normal numbers and the layer-wise radius by d sqrt(2 / pi); the paper states the bound theta(d)^floor(depth/2).
    It is a ratio of means over weights, whatever their deviations; the mean of ratios is another number.
    """
    if width < 1 or depth < 1:
        raise InputError(f"init_tightness_theory: width {width}, depth {depth}; expected integers of at least 1")
    return float((math.sqrt(math.pi) * _mean_norm(width) / width) ** (depth - 1))


def box_reconstruction_theory(k: int) -> tuple[float, float]:
    """(layer-wise, optimal) radius of x -> U U^T x per unit of input radius, U (d, k) Haar with d far above k.

    2 k / pi, and (2 / sqrt(pi)) Gamma((k + 1) / 2) / Gamma(k / 2), which grows as sqrt(k): a bottleneck of width k
    costs interval bounds a factor of about sqrt(2 k / pi) (section 3). Limits of the means as d grows.
    """
    if k < 1:
        raise InputError(f"box_reconstruction_theory: k is {k}; expected an integer of at least 1")
    return 2 * k / math.pi, 2 / math.sqrt(math.pi) * _mean_norm(k)
