"""Checks of the matrix that says how labels are confused."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError


def check_transition(where: str, transition: Tensor) -> Float[Tensor, "c c"]:
    """``transition`` (c, c), c >= 2, in float64; InputError unless its rows are distributions and no class is lost."""
    t = torch.as_tensor(transition, dtype=torch.float64)
    if t.dim() != 2 or t.shape[0] != t.shape[1] or len(t) < 2:
        raise InputError(f"{where}: transition has shape {tuple(t.shape)}; expected (c, c), c >= 2")
    if not (torch.isfinite(t).all() and (t >= 0).all() and torch.allclose(t.sum(1), t.new_ones(len(t)), atol=1e-4)):
        raise InputError(f"{where}: rows of the transition are no distributions; expected values >= 0 of sum 1")
    if (t.amax(0) == 0).any():
        raise InputError(f"{where}: class {int((t.amax(0) == 0).nonzero()[0])} is never given; expected a full column")
    return t


def matched(where: str, transition: Tensor | None, logits: Tensor) -> Float[Tensor, "c c"]:
    """The matrix in the type of ``logits``, the identity where there is none; InputError for another size."""
    c = logits.shape[1]
    if transition is None:
        return torch.eye(c).to(logits)
    if len(transition) != c:
        raise InputError(f"{where}: a transition of {len(transition)} classes, {c} logits; expected one a class")
    return transition.to(logits)
