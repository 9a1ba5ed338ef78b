"""The maximum mean discrepancy of two samples from their kernel matrices."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError, unknown


def squared_distances(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """|a_i - b_j|^2 by the product of matrices, cut at 0; differentiable. Use float64 where distances are small."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None]
    return (squares - 2 * a @ b.T).clamp(min=0)


def _check(xx: Tensor, yy: Tensor, xy: Tensor, paired: bool) -> None:
    n, m = xy.shape if xy.dim() == 2 else (0, 0)
    if xx.shape != (n, n) or yy.shape != (m, m) or min(n, m) < 1 + paired or (paired and n != m):
        shapes = f"{tuple(xx.shape)}, {tuple(yy.shape)}, {tuple(xy.shape)}"
        need = "(n, n) each, n >= 2" if paired else "(n, n), (m, m), (n, m)"
        raise InputError(f"MMD: kernel matrices of shapes {shapes}; expected {need}")


def mmd2(
    xx: Float[Tensor, "n n"],
    yy: Float[Tensor, "m m"],
    xy: Float[Tensor, "n m"],
    estimator: Literal["u", "v"] = "u",
) -> Float[Tensor, ""]:
    """MMD^2 from k(x, x'), k(y, y') and k(x, y) (Gretton et al., 2012, JMLR 13).

    "v" is the biased estimate mean(xx) + mean(yy) - 2 mean(xy), >= 0 for a kernel; "u" the one-sample U-statistic over
    pairs (x_i, y_i), n = m: the means leave out all three diagonals (their eq. 4), so it is unbiased and may be below 0
    (as in Liu et al., 2020, arXiv:2002.09116). Raises InputError for shapes that do not fit.
    """
    if estimator not in ("u", "v"):
        raise unknown("estimator of MMD", str(estimator), ("u", "v"))
    _check(xx, yy, xy, estimator == "u")
    if estimator == "v":
        return xx.mean() + yy.mean() - 2 * xy.mean()
    h = xx + yy - xy - xy.T
    n = len(h)
    return (h.sum() - h.diagonal().sum()) / (n * (n - 1))


def mmd_variance(xx: Float[Tensor, "n n"], yy: Float[Tensor, "n n"], xy: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """n times the variance of that U-statistic where the samples differ: 4 (mean_i (mean_j h_ij)^2 - (mean h)^2).

    h = xx + yy - xy - xy^T (Liu et al., 2020, arXiv:2002.09116, eq. 5, without its regulariser).
    """
    _check(xx, yy, xy, True)
    h = xx + yy - xy - xy.T
    return 4 * (h.mean(1).square().mean() - h.mean().square())


def median_bandwidth(x: Float[Tensor, "n d"]) -> float:
    """The median of the squared distances between different rows, n >= 2; InputError where it is 0."""
    if len(x) < 2:
        raise InputError(f"MMD: {len(x)} reference samples; expected at least 2")
    rows, columns = torch.triu_indices(len(x), len(x), 1)
    found = float(np.median(squared_distances(x, x)[rows, columns].detach().cpu().numpy()))
    if not found > 0:
        raise InputError("MMD: half of the reference samples are equal; expected different ones")
    return found
