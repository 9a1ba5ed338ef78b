"""Unlearning by noise where the retained data do not care."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import torch_rng
from assay.subject import Subject
from assay.unlearn.base import Unlearner

CHUNK = 16


def fisher_diagonal(model: nn.Module, data: Data) -> Float[Tensor, " p"]:
    """The diagonal of the Fisher matrix: mean over samples of sum_c p_c (d log p_c / d theta)^2, float64.

    The expectation is over the model's own labels, not over the true ones; evaluation mode, in the order of
    ``model.parameters()``. One vectorised pass a chunk of samples, for all classes at once.
    """
    free, device = {k: p.detach() for k, p in model.named_parameters()}, device_of(model)

    def log_p(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        out = functional_call(model, weights, (x[None],))[0].log_softmax(0)
        return out, out

    total = torch.zeros(sum(p.numel() for p in free.values()), dtype=torch.float64, device=device)
    with evaluating(model):
        for batch in data.batches(CHUNK):
            slopes, values = vmap(jacrev(log_p, has_aux=True), in_dims=(None, 0))(free, batch.x.to(device))
            flat = torch.cat([g.flatten(2) for g in slopes.values()], 2).double()  # (b, c, p)
            total += torch.einsum("bc,bcp->p", values.double().exp(), flat.square())
    return total / len(data)


@dataclass(frozen=True, kw_only=True)
class FisherForgetting(Unlearner):
    """Add noise to each weight, the more the less the retained data need it (Golatkar et al., 2020, arXiv:1911.04933,
    equation 8, "Fisher forgetting").

    theta + ``strength`` F^(-1/4) n with n standard normal and F the diagonal of the Fisher matrix on ``retain``, at
    least ``floor`` > 0; ``strength`` >= 0 is the paper's (lambda sigma_h^2)^(1/4). The official code draws with
    deviation sqrt(alpha / F), capped and averaged over rows: the paper's exponent is followed here. No training;
    buffers and frozen parameters stay. ``forget`` itself is never read: what it alone needed is drowned with everything
    else that ``retain`` does not need. ``control`` adds no noise.
    """

    strength: float = 1e-3
    floor: float = 1e-8

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0 and self.floor > 0):
            raise InputError(
                f"FisherForgetting: strength={self.strength}, floor={self.floor}; expected strength >= 0, floor > 0"
            )

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The subject's model with the noise."""
        self.check(subject, forget, retain)
        return self._noisy(subject.model, retain, seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The subject's model as it is."""
        self.check(subject, forget, retain)
        return copy.deepcopy(subject.model).eval()

    def _noisy(self, model: nn.Module, data: Data, seed: int) -> nn.Module:
        if not any(p.requires_grad for p in model.parameters()):
            raise InputError("FisherForgetting: no parameter requires a gradient; expected at least one to change")
        fisher = fisher_diagonal(model, data).clamp_min(self.floor)
        noise = torch.randn(len(fisher), generator=torch_rng(seed, "fisher noise"), dtype=torch.float64)
        step = self.strength * fisher**-0.25 * noise.to(fisher.device)
        other = copy.deepcopy(model).eval()
        with torch.no_grad():
            for p, part in zip(other.parameters(), step.split([p.numel() for p in other.parameters()]), strict=True):
                if p.requires_grad:
                    p.add_(part.view_as(p).to(p))
        return other
