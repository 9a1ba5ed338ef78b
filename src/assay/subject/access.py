"""What a model lets one see, and an oracle that counts what was asked."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

from assay.runtime.errors import AccessError, BudgetError, InputError


class Access(IntEnum):
    """Each level grants all below it."""

    DECISION = 1
    SCORE = 2
    GRADIENT = 3
    WEIGHTS = 4


def require(granted: Access, needed: Access, who: str) -> None:
    """Raise AccessError when ``granted`` does not cover ``needed``."""
    if granted < needed:
        raise AccessError(f"{who} needs {needed.name} access; the subject grants {granted.name}")


class Oracle:
    """A model behind a counter: ``oracle(x)`` gives scores (n, c), or decisions (n,) when only those are granted.

    ``queries`` counts samples asked; past ``budget`` it raises BudgetError before asking. InputError where the model
    gives no tensor, or scores of a single class where decisions are asked for.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], *, access: Access = Access.SCORE, budget: int | None = None
    ) -> None:
        self.model, self.access, self.budget, self.queries = model, access, budget, 0

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        if self.budget is not None and self.queries + len(x) > self.budget:
            raise BudgetError(f"oracle: {self.queries} of {self.budget} queries spent, {len(x)} more asked")
        self.queries += len(x)
        out = self.model(x)
        if not isinstance(out, Tensor):
            raise InputError(f"oracle: the model gives {type(out).__name__}; expected a tensor of scores (n, c)")
        if self.access != Access.DECISION or out.dim() != 2:
            return out
        if out.shape[1] < 2:
            raise InputError(
                f"oracle: the model gives shape {tuple(out.shape)}; expected scores of two classes or more"
            )
        return out.argmax(1)

    def decisions(self, x: Tensor) -> Tensor:
        """Predicted classes (n,)."""
        out = self(x)
        return out.argmax(1) if out.dim() == 2 else out

    def scores(self, x: Tensor) -> Tensor:
        """Scores (n, c); AccessError where only decisions are granted."""
        require(self.access, Access.SCORE, "this query")
        return self(x)
