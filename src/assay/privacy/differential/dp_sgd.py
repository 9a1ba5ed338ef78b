"""Differentially private stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from assay.data import Batch, Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import torch_rng
from assay.subject import Subject, fresh
from assay.training import State, Trainer

ACCOUNTANTS = ("rdp", "prv")
Gradients = dict[str, Tensor]


def clipped_gradients(
    model: nn.Module, x: Float[Tensor, "b ..."], y: Int[Tensor, " b"], clip: float
) -> tuple[Gradients, Float[Tensor, " b"]]:
    """Each sample's gradient of the cross-entropy, scaled to a norm of at most ``clip`` over all trainable parameters.

    Returns (b, ...) by parameter and the losses (b,), in one vectorised pass. Random layers draw for each sample.
    """
    trained = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    rest = {k: t.detach() for k, t in (*model.named_parameters(), *model.named_buffers()) if k not in trained}

    def loss(weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {**rest, **weights}, (x[None],)), y[None])

    each = vmap(grad_and_value(loss), in_dims=(None, 0, 0), randomness="different")
    gradients, losses = each(trained, x, y)
    norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    factor = (clip / norm.clamp_min(1e-30)).clamp_max(1.0)
    return {k: torch.einsum("b,b...->b...", factor, g) for k, g in gradients.items()}, losses


@dataclass(frozen=True, kw_only=True)
class DPSGD(Trainer):
    """Clip every sample's gradient, sum, add Gaussian noise (Abadi et al., 2016, arXiv:1607.00133, algorithm 1).

    Each step takes every sample with probability q = ``batch_size`` / n (Poisson sampling), and hands the optimiser

        (sum of g_i min(1, ``clip`` / ||g_i||) + ``noise`` ``clip`` N(0, I)) / ``batch_size``

    of cross-entropies; what the optimiser makes of it (momentum, Adam) is post-processing. ``batch_size`` is an
    expected size; above n it is n. ``chunk`` samples have their gradients in memory at once. ``noise`` 0 with ``clip``
    inf is SGD, and not private. Models with layers that mix samples (batch normalisation) or keep statistics of them
    are refused with InputError.

    ``epsilon`` is what the accountants of Opacus say of the sampled Gaussian mechanism (Mironov et al., 2019,
    arXiv:1908.10530; Gopi et al., 2021, arXiv:2106.02848), for data sets that differ by one sample added or removed and
    an adversary who sees every step; it needs the extra ``assay[dp]``, training does not. It does not cover what else
    was looked at on the same data (choice of options, early stopping), and counts on a secret seed: the draws are
    pseudo-random, not cryptographic.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.05
    schedule: Literal["constant", "cosine", "onecycle", "linear", "multistep"] = "constant"
    clip: float = 1.0
    noise: float = 1.0
    chunk: int = 256
    accountant: Literal["rdp", "prv"] = "rdp"

    def __post_init__(self) -> None:
        if not (self.clip > 0 and 0 <= self.noise < math.inf and self.chunk >= 1) or math.isnan(self.clip):
            raise InputError(
                f"DPSGD: clip={self.clip}, noise={self.noise}, chunk={self.chunk}; "
                "expected clip > 0, noise >= 0, chunk >= 1"
            )
        if self.noise > 0 and math.isinf(self.clip):
            raise InputError(f"DPSGD: noise={self.noise} with clip=inf; expected a finite clip, which scales the noise")
        if self.accountant not in ACCOUNTANTS:
            raise unknown("accountant of DPSGD", str(self.accountant), ACCOUNTANTS)

    def rate(self, n: int) -> float:
        """The probability q of each of ``n`` samples to be in a step."""
        return min(self.batch_size / n, 1.0)

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        """A trained copy of ``model``; see Trainer. Raises InputError for ``augment``, which no sample would pass."""
        if options.get("augment") is not None:
            raise InputError("DPSGD: augment is given; expected none, as every step draws its own samples")
        for name, layer in model.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                raise InputError(f"DPSGD: layer {name!r} normalises over the batch; expected layers within a sample")
            if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats:
                raise InputError(f"DPSGD: layer {name!r} keeps statistics of the data without noise; expected none")
        return super().fit(model, data, seed=seed, **options)

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """The subject's architecture trained anew: its own weights have seen the data, and nothing private follows."""
        return self.fit(fresh(subject.model, seed=seed), subject.training("DPSGD"), seed=seed)

    def control(self, subject: Subject, *, seed: int) -> nn.Module:
        """The same training from the same new weights, neither clipped nor noisy."""
        return self.plain().fit(fresh(subject.model, seed=seed), subject.training("DPSGD"), seed=seed)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """A scalar whose gradient is the private one and whose value is the mean loss of the step's samples.

        The engine's batch is only the clock: the step draws its own samples from all of the data.
        """
        gradients, value = self.private_gradient(model, self.drawn(state).to(batch.x.device), state)
        weights = dict(model.named_parameters())
        product = torch.stack([(weights[k] * g).sum() for k, g in gradients.items()]).sum()
        return product - product.detach() + value

    def drawn(self, state: State) -> Batch:
        """The step's Poisson sample; it may be empty."""
        coin = state.draws("poisson", state.data.index).uniform(1)[:, 0]
        return state.data.batch((coin < self.rate(len(state.data))).nonzero()[:, 0])

    def private_gradient(self, model: nn.Module, batch: Batch, state: State) -> tuple[Gradients, Tensor]:
        """The noisy mean of the clipped gradients by parameter, and the mean loss (0 without samples)."""
        total = {k: torch.zeros_like(p) for k, p in model.named_parameters() if p.requires_grad}
        value = batch.x.new_zeros(())
        for x, y in zip(batch.x.split(self.chunk), batch.y.split(self.chunk), strict=True) if len(batch.y) else ():
            gradients, losses = clipped_gradients(model, x, y, self.clip)
            total = {k: t + gradients[k].sum(0) for k, t in total.items()}
            value = value + losses.sum() / len(batch.y)
        if self.noise > 0:
            rng = torch_rng(state.seed, "dp noise", state.step)
            scale = self.noise * self.clip
            total = {k: t + scale * torch.randn(t.shape, generator=rng).to(t) for k, t in total.items()}
        size = self.rate(len(state.data)) * len(state.data)
        return {k: t / size for k, t in total.items()}, value

    def epsilon(self, n: int, *, delta: float) -> float:
        """The eps at ``delta`` of training on ``n`` samples; math.inf without noise. Needs ``assay[dp]``."""
        _check(n, delta)
        if self.noise == 0:
            return math.inf
        accountant = _opacus().accountants.create_accountant(self.accountant)
        accountant.history = [(self.noise, self.rate(n), self.plan().total(n))]
        return float(accountant.get_epsilon(delta))

    def for_budget(self, n: int, *, epsilon: float, delta: float) -> DPSGD:
        """The same training with the least noise (to 0.01 of eps) whose eps on ``n`` samples is at most ``epsilon``."""
        _check(n, delta)
        if not 0 < epsilon < math.inf:
            raise InputError(f"DPSGD: a budget of epsilon={epsilon}; expected a positive number")
        find = _opacus().accountants.utils.get_noise_multiplier
        noise = find(
            target_epsilon=epsilon,
            target_delta=delta,
            sample_rate=self.rate(n),
            steps=self.plan().total(n),
            accountant=self.accountant,
        )
        return replace(self, noise=float(noise))


def _check(n: int, delta: float) -> None:
    if n < 1 or not 0 < delta < 1:
        raise InputError(f"DPSGD: the epsilon of {n} samples at delta={delta}; expected n >= 1, delta in (0, 1)")


def _opacus() -> Any:
    try:
        import opacus.accountants.utils
    except ImportError as error:
        raise InputError("DPSGD: the package opacus is not installed; expected pip install 'assay[dp]'") from error
    return opacus
