"""How well adversarial examples transfer, and how many networks that is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import predict


def transfer_success(
    target: nn.Module, x: Float[Tensor, "n ..."], x_adv: Float[Tensor, "n ..."], y: Int[Tensor, " n"]
) -> float:
    """The share of adversarial examples that ``target`` gets wrong, among inputs that it gets right.

    (Gubri et al., 2022, arXiv:2011.05074, section 4.) Raises InputError where it gets none right.
    """
    check_inputs("transfer_success", x, y)
    check_inputs("transfer_success: x_adv", x_adv, y)
    if x.shape != x_adv.shape:
        raise InputError(
            f"transfer_success: x_adv has shape {tuple(x_adv.shape)}; expected that of x, {tuple(x.shape)}"
        )
    right = predict(target, x).argmax(1) == y
    if not right.any():
        raise InputError("transfer_success: the target gets no input right; expected at least one")
    return float((predict(target, x_adv[right]).argmax(1) != y[right]).double().mean())


def deep_ensemble_equivalent(curve_n: Sequence[float], curve_success: Sequence[float], value: float) -> float:
    """How many networks trained apart reach the success ``value``, by linear interpolation of their curve.

    The curve is made to rise with the number of networks (running maximum). Beyond it the ends are given: at most, or
    at least, so many. (Gubri et al., 2022, arXiv:2011.05074, section 4.2.) Raises InputError unless numbers of networks
    rise and there is one success for each.
    """
    n, success = np.asarray(curve_n, float), np.asarray(curve_success, float)
    if n.ndim != 1 or n.shape != success.shape or len(n) < 1 or (np.diff(n) <= 0).any():
        raise InputError(
            f"deep_ensemble_equivalent: {len(n)} numbers of networks and {len(success)} rates; expected rising numbers "
            "and one rate each"
        )
    if not (np.isfinite(n).all() and np.isfinite(success).all() and np.isfinite(value)):
        raise InputError("deep_ensemble_equivalent: numbers that are not finite; expected finite ones")
    rising = np.maximum.accumulate(success)
    if value <= rising[0]:
        return float(n[0])
    above = np.flatnonzero(rising >= value)
    if not len(above):
        return float(n[-1])
    k = above[0]
    return float(n[k - 1] + (n[k] - n[k - 1]) * (value - rising[k - 1]) / (rising[k] - rising[k - 1]))
