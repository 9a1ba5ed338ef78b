"""Stochastic-gradient Langevin steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError


def cosine_cycle(step: int, length: int) -> float:
    """(cos(pi mod(step, length) / length) + 1) / 2: from 1 at each cycle's start towards 0 (step counts from 0)."""
    return 0.5 * (math.cos(math.pi * (step % length) / length) + 1)


class Langevin(torch.optim.Optimizer):
    """SGLD, and with ``alpha`` < 1 SGHMC, at a cyclical rate (Zhang et al., 2020, arXiv:1902.03932, algorithm 1).

    With l the rate, g the gradient of the mean loss plus ``weight_decay`` theta and xi standard normal,

        v <- (1 - alpha) v + g + sqrt(2 alpha ``temperature`` / (``size`` l)) xi;    theta <- theta - l v,

    so that for ``alpha`` = 1 the noise of a step has deviation sqrt(2 l temperature / size): the law that is left alone
    is exp(-size loss / temperature), the posterior of ``size`` samples at temperature 1 as l goes to 0. The rate is
    ``lr`` cosine_cycle(step, ``cycle``), or ``lr`` where ``cycle`` is None; noise comes in the last ``noisy`` steps of
    each cycle (None: in all). Noise is drawn from torch's generator, which the training engine seeds. Raises
    InputError for other options.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        size: int,
        temperature: float = 1.0,
        alpha: float = 1.0,
        weight_decay: float = 0.0,
        cycle: int | None = None,
        noisy: int | None = None,
    ) -> None:
        numbers = {"lr": lr, "size": size, "temperature": temperature, "weight_decay": weight_decay}
        if not all(math.isfinite(v) and v >= 0 for v in numbers.values()) or lr == 0 or size < 1:
            raise InputError(f"Langevin: {numbers}; expected finite lr > 0, size >= 1, the others >= 0")
        if not 0 < alpha <= 1 or (cycle is not None and cycle < 1):
            raise InputError(f"Langevin: alpha={alpha}, cycle={cycle}; expected alpha in (0, 1] and cycle >= 1")
        options = {"alpha": alpha, "cycle": cycle, "noisy": noisy, "count": 0}
        super().__init__(params, {**numbers, **options})

    def deviation(self, rate: float, group: dict[str, Any]) -> float:
        """The deviation of the noise that is added to the gradient."""
        return math.sqrt(2 * group["alpha"] * group["temperature"] / (group["size"] * rate))

    def noise(self, parameter: Tensor, group: dict[str, Any]) -> Float[Tensor, ...]:
        """Standard normal numbers in the parameter's shape."""
        return torch.randn_like(parameter)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; ``closure`` is not used."""
        for group in self.param_groups:
            cycle, place = group["cycle"], group["count"]
            rate = group["lr"] * (1.0 if cycle is None else cosine_cycle(place, cycle))
            left = math.inf if cycle is None or group["noisy"] is None else group["noisy"]
            hot = group["temperature"] > 0 and (cycle is None or cycle - place % cycle <= left)
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group, rate, hot)
            group["count"] = place + 1

    def _move(self, p: Tensor, group: dict[str, Any], rate: float, hot: bool) -> None:
        force = p.grad.add(p, alpha=group["weight_decay"])  # type: ignore[union-attr]
        if hot:
            force.add_(self.noise(p, group), alpha=self.deviation(rate, group))
        if group["alpha"] < 1:
            kept = self.state[p].get("velocity")
            force = force if kept is None else force.add_(kept, alpha=1 - group["alpha"])
            self.state[p]["velocity"] = force
        p.add_(force, alpha=-rate)
