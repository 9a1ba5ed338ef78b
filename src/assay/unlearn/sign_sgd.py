"""Descent along the sign of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from assay.runtime.errors import InputError


class SignSGD(torch.optim.Optimizer):
    """p <- p - ``lr`` sign(dp) (Bernstein et al., 2018, arXiv:1802.04434, algorithm 1), ``lr`` > 0.

    A zero gradient leaves its weight as it is. Where each step is a sign, the weights reached are piecewise constant in
    whatever the loss depends on: their derivative by it is 0 almost everywhere.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3) -> None:
        if not lr > 0:
            raise InputError(f"SignSGD: lr={lr}; expected lr > 0")
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
        return loss
