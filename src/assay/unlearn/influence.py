"""Unlearning by one influence step."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from assay.data import Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of, evaluating
from assay.runtime.random import torch_rng
from assay.subject import Subject
from assay.unlearn.base import Unlearner

CHUNK = 64


def gradients(model: nn.Module, data: Data, *, frozen: bool = True) -> Iterator[Float[Tensor, "b p"]]:
    """Per-sample gradients of the cross-entropy in all parameters, or all but the ``frozen`` ones, in evaluation mode,
    float64, in chunks.
    """
    free, device = _weights(model, frozen), device_of(model)

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    with evaluating(model):
        for batch in data.batches(CHUNK):
            each = vmap(grad(loss), in_dims=(None, 0, 0))(free, batch.x.to(device), batch.y.to(device))
            yield torch.cat([g.flatten(1) for g in each.values()], 1).double()


def total_gradient(model: nn.Module, data: Data) -> Float[Tensor, " p"]:
    """The sum over samples of ``gradients``, frozen parameters left out, batch by batch."""
    free, device = _weights(model, False), device_of(model)

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (x,)), y, reduction="sum")

    total = torch.zeros(sum(p.numel() for p in free.values()), dtype=torch.float64, device=device)
    with evaluating(model):
        for batch in data.batches(BATCH):
            each = grad(loss)(free, batch.x.to(device), batch.y.to(device))
            total += torch.cat([g.flatten() for g in each.values()])
    return total


def _weights(model: nn.Module, frozen: bool) -> dict[str, Tensor]:
    return {k: p.detach() for k, p in model.named_parameters() if frozen or p.requires_grad}


def fisher_solve(g: Float[Tensor, "m p"], v: Float[Tensor, " p"], damping: float = 1e-3) -> Float[Tensor, " p"]:
    """(lambda I + G^T G / M)^-1 v, with lambda ``damping`` > 0 times the mean diagonal of G^T G / M.

    By the Gram matrix: (v - G^T (lambda M I + G G^T)^-1 G v) / lambda; no p x p matrix is formed.
    """
    m, p = g.shape
    scale = damping * float(g.square().sum()) / (m * p)
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"fisher_solve: the mean diagonal times the damping is {scale}; expected finite and > 0")
    inner = g @ g.T + scale * m * torch.eye(m, dtype=g.dtype, device=g.device)
    return (v - g.T @ torch.linalg.solve(inner, g @ v)) / scale


def running_solve(g: Float[Tensor, "m p"], v: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """The official code's shortcut, which is no inverse: it scales one running vector o, the first gradient.

    k <- k - (k.g) / (M + o.g) o, then o <- o - (o.g) / (M + o.g) o, one gradient after the other. As the o of every
    step is a multiple of the first gradient, k leaves v along that one direction only.
    """
    m, k, o = len(g), v.clone(), g[0].clone()
    for one in g[1:]:
        t = o @ one
        k = k - (k @ one) / (m + t) * o
        o = o - t / (m + t) * o
    return k


@dataclass(frozen=True, kw_only=True)
class InfluenceUnlearn(Unlearner):
    """One Newton-like step away from what is forgotten (Jia et al., 2023, arXiv:2304.04934, "IU"; Koh & Liang, 2017).

    theta + alpha H^-1 v with v = (1/N) sum of the gradients on ``forget`` - n_f / (N n_r) sum of those on ``retain``,
    N = n_f + n_r, and H the empirical Fisher matrix of ``n_fisher`` >= 1 random retained samples: "exact" solves with
    damping ``damping`` > 0 times its mean diagonal (``fisher_solve``), "fast" is the official code's recursion, which
    is not that inverse (``running_solve``). ``alpha`` >= 0 is tuned: the paper's 1 to 20 go with "fast", whose step is
    about v; an exact step grows as 1 / lambda, so that networks that fit their data need far less. Evaluation mode, so
    that batch norms stay; frozen parameters stay and count in no gradient. Raises InputError where all are frozen and
    for steps that are not finite. Memory: n_fisher times the parameters. ``control`` steps the other way.
    """

    alpha: float = 1.0
    n_fisher: int = 1000
    damping: float = 1e-3
    mode: Literal["exact", "fast"] = "exact"

    def __post_init__(self) -> None:
        good = math.isfinite(self.alpha) and self.alpha >= 0 and self.n_fisher >= 1 and self.damping > 0
        if not good:
            raise InputError(
                f"InfluenceUnlearn: alpha={self.alpha}, n_fisher={self.n_fisher}, damping={self.damping}; "
                "expected alpha >= 0, n_fisher >= 1, damping > 0"
            )
        if self.mode not in ("exact", "fast"):
            raise unknown("mode of InfluenceUnlearn", str(self.mode), ("exact", "fast"))

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The subject's model after the step."""
        return self._move(subject, forget, retain, 1.0, seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The subject's model after a step of the same size the other way."""
        return self._move(subject, forget, retain, -1.0, seed)

    def step(self, model: nn.Module, forget: Data, retain: Data, *, seed: int) -> Float[Tensor, " p"]:
        """H^-1 v, float64, in the order of those ``model.parameters()`` that are not frozen."""
        if not any(p.requires_grad for p in model.parameters()):
            raise InputError("InfluenceUnlearn: no parameter requires a gradient; expected at least one to move")
        n, kept = len(forget) + len(retain), len(retain)
        lost, held = total_gradient(model, forget), total_gradient(model, retain)
        v = lost / n - len(forget) / (n * kept) * held
        drawn = torch.randperm(kept, generator=torch_rng(seed, "fisher"))[: self.n_fisher].sort().values
        g = torch.cat(list(gradients(model, retain[drawn], frozen=False)))
        return fisher_solve(g, v, self.damping) if self.mode == "exact" else running_solve(g, v)

    def _move(self, subject: Subject, forget: Data, retain: Data, sign: float, seed: int) -> nn.Module:
        self.check(subject, forget, retain)
        step = sign * self.alpha * self.step(subject.model, forget, retain, seed=seed)
        if not torch.isfinite(step).all():
            raise InputError("InfluenceUnlearn: the step is not finite; expected finite gradients (or more damping)")
        moved = copy.deepcopy(subject.model).eval()
        with torch.no_grad():
            free = [p for p in moved.parameters() if p.requires_grad]
            for p, part in zip(free, step.split([p.numel() for p in free]), strict=True):
                p.add_(part.view_as(p).to(p))
        return moved
