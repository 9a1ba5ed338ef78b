"""Unlearning without training: dampen the weights that matter most to what is forgotten."""

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
from torch.func import functional_call, grad

from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import torch_rng
from assay.subject import Subject
from assay.unlearn.base import Unlearner, together
from assay.unlearn.influence import gradients

KINDS = ("batch", "sample")


def _batch_gradients(model: nn.Module, data: Data, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Gradients of the mean cross-entropy of random batches, in evaluation mode."""
    free, device = {k: p.detach() for k, p in model.named_parameters()}, device_of(model)

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (x,)), y)

    order = torch.randperm(len(data), generator=torch_rng(seed, "importance"))
    with evaluating(model):
        for batch in data.batches(size, order=order):
            yield grad(loss)(free, batch.x.to(device), batch.y.to(device))


def importances(
    model: nn.Module, data: Data, *, per: Literal["batch", "sample"] = "batch", batch_size: int = 128, seed: int = 0
) -> dict[str, Tensor]:
    """The mean square of each weight's gradient of the cross-entropy on ``data``, by parameter name.

    "sample" squares the gradient of every sample: the diagonal of the empirical Fisher matrix. "batch" squares the mean
    gradient of random batches of ``batch_size`` >= 1 and averages over batches, as the official code of SSD does: it
    falls as the batches grow. Evaluation mode; float32 in the shapes of the parameters.
    """
    if per not in KINDS:
        raise unknown("kind of importance", str(per), KINDS)
    if batch_size < 1:
        raise InputError(f"importances: batch_size={batch_size}; expected at least 1")
    check_inputs("importances", data.x, data.y, data.bounds)
    shapes = {k: p.shape for k, p in model.named_parameters()}
    if per == "sample":
        flat: Float[Tensor, " p"] = torch.stack([g.square().sum(0) for g in gradients(model, data)]).sum(0) / len(data)
        parts = flat.split([math.prod(s) for s in shapes.values()])
        return {k: part.view(s).float() for (k, s), part in zip(shapes.items(), parts, strict=True)}
    squares = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    for each in _batch_gradients(model, data, batch_size, seed):
        squares = {k: v + each[k].square() for k, v in squares.items()}
    return {k: v.detach() / -(-len(data) // batch_size) for k, v in squares.items()}


@dataclass(frozen=True, kw_only=True)
class SelectiveSynapticDampening(Unlearner):
    """Shrink the weights that the forget set needs more than all the data do (Foster et al., 2024, arXiv:2308.07707,
    equations 4 to 6, "SSD").

    With the importances I_f on ``forget`` and I_D on all the training data, forgotten ones included: where I_f >
    ``alpha`` I_D, theta <- min(``lam`` I_D / I_f, 1) theta; no weight grows. ``alpha`` > 0, ``lam`` >= 0; what a good
    value is depends on network and data (Goel et al., 2024, arXiv:2402.14015, search alpha from 0.1 to 1e6).
    ``importance`` and ``batch_size``: see ``importances``. No training; buffers and frozen parameters stay. Raises
    InputError where no gradient on ``forget`` is left. ``control`` takes I_f on as many random retained samples.
    """

    alpha: float = 10.0
    lam: float = 1.0
    importance: Literal["batch", "sample"] = "batch"
    batch_size: int = 128

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.lam >= 0 and self.batch_size >= 1):
            raise InputError(
                f"SelectiveSynapticDampening: alpha={self.alpha}, lam={self.lam}, batch_size={self.batch_size}; "
                "expected alpha > 0, lam >= 0, batch_size >= 1"
            )
        if self.importance not in KINDS:
            raise unknown("importance of SelectiveSynapticDampening", str(self.importance), KINDS)

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The dampened model."""
        return self._dampened(subject, forget, retain, forget, seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The model dampened for random retained samples."""
        order = torch.randperm(len(retain), generator=torch_rng(seed, "control"))
        return self._dampened(subject, forget, retain, retain[order[: len(forget)]], seed)

    def _dampened(self, subject: Subject, forget: Data, retain: Data, chosen: Data, seed: int) -> nn.Module:
        whole = together(self.check(subject, forget, retain), forget, retain)
        lost = self.importances(subject.model, chosen, seed)
        if not any(lost[k].any() for k, p in subject.model.named_parameters() if p.requires_grad):
            raise InputError("SelectiveSynapticDampening: every gradient on what is forgotten is 0; expected some")
        return self.dampen(subject.model, lost, self.importances(subject.model, whole, seed))

    def importances(self, model: nn.Module, data: Data, seed: int) -> dict[str, Tensor]:
        """The importance of each weight for ``data``."""
        return importances(model, data, per=self.importance, batch_size=self.batch_size, seed=seed)

    def shrink(self, lost: Tensor, whole: Tensor) -> Tensor:
        """What each weight is multiplied by, in [0, 1], from its importances I_f and I_D."""
        factor = (self.lam * whole / lost.clamp_min(torch.finfo(lost.dtype).tiny)).clamp_max(1)
        return torch.where(lost > self.alpha * whole, factor, torch.ones_like(lost))

    def dampen(self, model: nn.Module, lost: dict[str, Tensor], whole: dict[str, Tensor]) -> nn.Module:
        """A copy of ``model`` with its weights shrunk, given the importances by parameter name."""
        other = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, p in other.named_parameters():
                if p.requires_grad:
                    p.mul_(self.shrink(lost[name], whole[name]))
        return other
