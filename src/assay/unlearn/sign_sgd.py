"""Descent along the sign of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from assay.runtime.errors import InputError


class SignSGD(torch.optim.Optimizer):
    """p <- p - ``lr`` sign(b) with b = dp (Bernstein et al., 2018, arXiv:1802.04434, algorithm 1), ``lr`` > 0.

    With ``momentum`` in [0, 1) and ``weight_decay`` >= 0, b <- momentum b + dp + weight_decay p, as torch's SGD has it.
    A zero in b leaves its weight as it is; with ``rand_zero`` it counts as +1 or -1, drawn by torch's global generator,
    which training seeds. Where each step is a sign, the weights reached are piecewise constant in whatever the loss
    depends on: their derivative by it is 0 almost everywhere.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        rand_zero: bool = False,
    ) -> None:
        if not (lr > 0 and 0 <= momentum < 1 and weight_decay >= 0):
            raise InputError(
                f"SignSGD: lr={lr}, momentum={momentum}, weight_decay={weight_decay}; expected lr > 0, a momentum in "
                "[0, 1), weight_decay >= 0"
            )
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rand_zero": rand_zero}
        super().__init__(params, options)

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
                    sign = self._direction(p, group).sign()
                    if group["rand_zero"]:
                        sign = torch.where(sign == 0, torch.randint_like(sign, 2) * 2 - 1, sign)
                    p.sub_(sign, alpha=group["lr"])
        return loss

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """What the sign is taken of."""
        d: Tensor = p.grad  # type: ignore[assignment]
        if group["weight_decay"]:
            d = d.add(p, alpha=group["weight_decay"])
        if group["momentum"]:
            held = self.state[p].get("momentum_buffer")
            d = d.clone() if held is None else held.mul_(group["momentum"]).add_(d)
            self.state[p]["momentum_buffer"] = d
        return d
