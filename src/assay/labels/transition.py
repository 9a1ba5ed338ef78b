"""How given labels depend on true ones, estimated from a network's predictions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError


def estimate_transition(probs: Float[Tensor, "n c"], percentile: float = 100.0) -> Float[Tensor, "c c"]:
    """T[i, j] = P(given label j | true label i) (Patrini et al., 2017, arXiv:1609.03872, eq. 12-13), float64.

    ``probs`` are the predictions of a network trained on the given labels. Row i is that of the sample that stands at
    ``percentile``, in [0, 100], by the probability of class i: at 100 the surest one, as in the equation; the authors'
    code has 97 against outliers. It is right where that sample is of class i for certain and the network is calibrated.
    Raises InputError for rows that are no distributions and another percentile.
    """
    check_inputs("estimate_transition", probs)
    p = probs.double()
    if p.dim() != 2 or p.shape[1] < 2 or p.min() < 0 or not torch.allclose(p.sum(1), p.new_ones(len(p)), atol=1e-3):
        raise InputError(f"estimate_transition: probs of shape {tuple(p.shape)}; expected (n, c), rows of sum 1")
    if not 0 <= percentile <= 100:
        raise InputError(f"estimate_transition: percentile={percentile}; expected a number in [0, 100]")
    place = int(percentile / 100 * (len(p) - 1) + 1e-9)
    rows = p[p.argsort(dim=0, stable=True)[place]]
    return rows / rows.sum(1, keepdim=True)
