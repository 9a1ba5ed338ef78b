"""Inverse gap weighting: from predicted costs to the probabilities of the arms."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError


def inverse_gap_weighting(yhat: Float[Tensor, "... k"], gamma: float) -> Float[Tensor, "... k"]:
    """p_a = 1 / (K + gamma (yhat_a - yhat_b)), b = argmin yhat; the rest goes to b (Foster & Rakhlin, 2020, alg. 1).

    ``yhat``: predicted costs. Float64, sums to 1; the expected gap sum_a p_a (yhat_a - yhat_b) is at most K / gamma.
    arXiv:2002.04926. InputError for gamma <= 0, K < 2 or a prediction that is not finite.
    """
    y = _checked("inverse_gap_weighting", yhat, gamma)
    best = y.min(-1, keepdim=True)
    return _rest_to_best(1 / (y.shape[-1] + gamma * (y - best.values)), best.indices)


def fast_igw(yhat: Float[Tensor, "... k"], gamma: float) -> Float[Tensor, "... k"]:
    """p_a = yhat_b / (K yhat_b + gamma (yhat_a - yhat_b)), the rest to b (Foster & Krishnamurthy, 2021, FastCB).

    ``yhat``: predicted costs, not negative. It explores less where the best arm is predicted to cost little; at
    yhat_b = 0 it plays b. arXiv:2107.02237. Errors as inverse_gap_weighting, and for a negative prediction.
    """
    y = _checked("fast_igw", yhat, gamma)
    if y.min() < 0:
        raise InputError(f"fast_igw: a predicted cost of {float(y.min()):.4g}; expected none below 0")
    best = y.min(-1, keepdim=True)
    bottom = y.shape[-1] * best.values + gamma * (y - best.values)
    return _rest_to_best(torch.where(best.values > 0, best.values / bottom.clamp(min=1e-300), 0.0), best.indices)


def square_gamma(arms: int, rounds: int, regret: float, delta: float = 0.05) -> float:
    """sqrt(K T / (Reg + log(1 / delta))): the rate for square loss when the regressor's regret is ``regret``.

    InputError unless ``regret`` >= 0 and 0 < ``delta`` < 1.
    """
    if not (regret >= 0 and 0 < delta < 1):
        raise InputError(f"square_gamma: regret={regret}, delta={delta}; expected regret >= 0 and delta in (0, 1)")
    return math.sqrt(arms * rounds / (regret + math.log(1 / delta)))


def fast_gamma(arms: int, best: float, regret: float) -> float:
    """max(sqrt(K L* / (3 Reg)), 10 K): the rate for KL loss when the best policy's total cost is L* = ``best``.

    InputError unless ``best`` >= 0 and ``regret`` > 0.
    """
    if not (best >= 0 and regret > 0):
        raise InputError(f"fast_gamma: best={best}, regret={regret}; expected best >= 0 and regret > 0")
    return max(math.sqrt(arms * best / (3 * regret)), 10.0 * arms)


def _checked(where: str, yhat: Tensor, gamma: float) -> Float[Tensor, "... k"]:
    if not (math.isfinite(gamma) and gamma > 0):
        raise InputError(f"{where}: gamma={gamma}; expected a finite number > 0")
    if yhat.dim() == 0 or yhat.shape[-1] < 2 or not torch.isfinite(yhat).all():
        raise InputError(f"{where}: predictions {tuple(yhat.shape)}; expected finite ones of two or more arms")
    return yhat.double()


def _rest_to_best(p: Tensor, best: Tensor) -> Tensor:
    p = p.scatter(-1, best, 0.0)
    return p.scatter(-1, best, 1 - p.sum(-1, keepdim=True))
