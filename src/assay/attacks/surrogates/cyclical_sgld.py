"""Cyclical stochastic-gradient Langevin dynamics: networks sampled from the posterior in one training."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks.surrogates.base import Surrogate, Surrogates, at_epochs
from assay.attacks.surrogates.langevin import Langevin
from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.random import derive
from assay.subject import fresh
from assay.training import Plan, State, fit


@dataclass(frozen=True, kw_only=True)
class CyclicalSGLD(Surrogate):
    """Samples at the end of each cycle of the learning rate (Gubri et al., 2022, arXiv:2011.05074, section 3).

    ``cycles`` of ``epochs_per_cycle``: the rate falls from ``lr`` along a half cosine (Langevin), noise comes in the
    last ``noise_epochs`` (None: as many as samples), and after each of the last ``samples_per_cycle`` epochs the
    network is kept, statistics of norms and all. A cycle goes on from the weights where the last one ended, or
    from new ones with ``cold_restarts``. ``alpha`` = 1 is SGLD, less is SGHMC with momentum 1 - alpha; ``weight_decay``
    is the Gaussian prior. ``temperature`` scales the variance of the noise: 1 is the posterior, and "code" is what the
    official code does, n / batches^2 for n samples in so many batches an epoch (its noise is divided by batches). The
    defaults are those for CIFAR-10; ImageNet has cycles of 45 epochs, a rate of 0.1 and batches of 256. Raises
    InputError for other options.
    """

    contract: ClassVar[bool] = False
    sampler: ClassVar[type[Langevin]] = Langevin

    cycles: int = 5
    epochs_per_cycle: int = 50
    samples_per_cycle: int = 3
    lr: float = 0.5
    alpha: float = 1.0
    temperature: float | Literal["code"] = "code"
    weight_decay: float = 5e-4
    noise_epochs: int | None = None
    batch_size: int = 64
    cold_restarts: bool = False

    def __post_init__(self) -> None:
        if self.cycles < 1 or self.batch_size < 1:
            self.refuse("cycles, batch_size", (self.cycles, self.batch_size), "at least 1 each")
        if not 1 <= self.samples_per_cycle <= self.epochs_per_cycle:
            given = self.samples_per_cycle, self.epochs_per_cycle
            self.refuse("samples_per_cycle, epochs_per_cycle", given, "1 <= samples <= epochs")
        if self.noise_epochs is not None and not 0 <= self.noise_epochs <= self.epochs_per_cycle:
            self.refuse("noise_epochs", self.noise_epochs, f"0 to epochs_per_cycle ({self.epochs_per_cycle})")
        numbers = {"lr": self.lr, "weight_decay": self.weight_decay}
        if not all(math.isfinite(v) and v >= 0 for v in numbers.values()) or self.lr == 0 or not 0 < self.alpha <= 1:
            self.refuse(
                "lr, weight_decay, alpha", (*numbers.values(), self.alpha), "lr > 0, decay >= 0, 0 < alpha <= 1"
            )
        t = self.temperature
        if t != "code" and not (isinstance(t, (int, float)) and math.isfinite(t) and t >= 0):
            self.refuse("temperature", repr(t), "a finite number >= 0, or 'code'")

    def heat(self, n: int) -> float:
        """The temperature for ``n`` samples."""
        batches = math.ceil(n / self.batch_size)
        return n / batches**2 if self.temperature == "code" else float(self.temperature)

    def plan(self, n: int, epochs: int) -> Plan:
        """The training of ``epochs`` on ``n`` samples; the rate is the sampler's own."""
        steps = math.ceil(n / self.batch_size)
        noisy = self.samples_per_cycle if self.noise_epochs is None else self.noise_epochs
        sampler = partial(
            self.sampler,
            lr=self.lr,
            size=n,
            temperature=self.heat(n),
            alpha=self.alpha,
            weight_decay=self.weight_decay,
            cycle=steps * self.epochs_per_cycle,
            noisy=steps * noisy,
        )
        return Plan(epochs=epochs, batch_size=self.batch_size, optimizer=sampler, lr=self.lr, schedule="constant")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The mean loss of a batch, a scalar."""
        return F.cross_entropy(model(batch.x), batch.y)

    def fit(self, model: nn.Module, data: Data, *, seed: int) -> Surrogates:
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)
        starts, length = [model], self.cycles * self.epochs_per_cycle
        if self.cold_restarts:
            length = self.epochs_per_cycle
            starts += [fresh(model, seed=derive(seed, "cycle", k)) for k in range(1, self.cycles)]
        kept: list[nn.Module] = []

        def keep(epoch: int, now: nn.Module) -> None:
            if (epoch - 1) % self.epochs_per_cycle >= self.epochs_per_cycle - self.samples_per_cycle:
                kept.append(copy.deepcopy(now).eval())
                kept[-1].zero_grad(set_to_none=True)

        hook = at_epochs(math.ceil(len(data) / self.batch_size), keep)
        for number, start in enumerate(starts):
            fit(start, data, self.objective, self.plan(len(data), length), seed=derive(seed, number), hooks=(hook,))
        return Surrogates(kept).eval()
