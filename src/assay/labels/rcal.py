"""Representation calibration: a classifier trained beside points that robust Gaussians of its classes give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.labels.robust_class_gaussians import FittedClassGaussians, RobustClassGaussians
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import batched, device_of, evaluating
from assay.training import State, Trainer, fit

KEPT = "representation"  # the field with each sample's representation under the starting weights


@dataclass(frozen=True, kw_only=True)
class RCAL(Trainer):
    """Cross-entropy on mixup and on sampled points + ``beta`` x mean |z - z0|^2 (Zhang et al., 2023, arXiv:2211.10955).

    The model that ``fit`` is given comes from training without labels; z (n, m) is what enters its linear layer named
    ``layer``, and z0 is z under the starting weights, in evaluation mode on the images as they are: the term keeps the
    representation where it was. ``gaussians`` are fitted on z0 and the given labels and drawn from until each class,
    its own samples counted, has as many as the largest (or ``points`` drawn of each class); with each batch as many of
    these points go through the layer alone. Real images are mixed with one another (lambda ~ Beta(``mixup_alpha``,
    ``mixup_alpha``), both labels; 0 mixes nothing). ``refresh`` > 0 takes Gaussians and points anew from the present
    representation every so many epochs. The steps follow the paper; beta's default and that of ``mixup_alpha`` are not
    confirmed. Raises InputError for other options, a model without such a layer, and a class without samples.
    """

    gaussians: RobustClassGaussians = field(default_factory=RobustClassGaussians)
    beta: float = 0.1
    mixup_alpha: float = 1.0
    points: int | None = None
    refresh: int = 0
    layer: str = "head"

    def __post_init__(self) -> None:
        for name in ("beta", "mixup_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"RCAL: {name}={getattr(self, name)}; expected a finite number >= 0")
        if self.refresh < 0 or (self.points is not None and self.points < 1):
            raise InputError(f"RCAL: points={self.points}, refresh={self.refresh}; expected points >= 1, refresh >= 0")

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        """The trained model, in evaluation mode."""
        check_inputs("RCAL", data.x, data.y, data.bounds)
        plan = self.plan()
        counts = torch.bincount(data.y, minlength=len(data.classes))
        if not counts.all():
            raise InputError(f"RCAL: class sizes {counts.tolist()}; expected a sample of every class")
        kept = representations(model, data.x, self.layer)
        data = replace(data, fields={**data.fields, KEPT: kept})
        pool = self.drawn(kept, data.y, seed)
        hooks = [partial(self._renew, seed), *options.pop("hooks", ())]
        return fit(model, data, partial(self.loss, pool=pool), plan, seed=seed, hooks=hooks, **options)

    def drawn(self, z: Float[Tensor, "n m"], y: Int[Tensor, " n"], seed: int) -> dict[str, Tensor]:
        """Points ``z`` (p, m) of the fitted Gaussians and their classes ``y`` (p,)."""
        fitted: FittedClassGaussians = self.gaussians.fit(z, y)
        counts = torch.bincount(y)
        missing = counts.max() - counts if self.points is None else torch.full_like(counts, self.points)
        if not missing.any():
            missing = torch.ones_like(counts)  # equal classes: one point of each, which changes no balance
        points, labels = fitted.sample(missing, seed=seed)
        return {"z": points.to(z), "y": labels}

    def loss(self, model: nn.Module, batch: Batch, state: State, *, pool: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The three terms on one batch (b, ...) and b points of the pool."""
        kept = batch.fields[KEPT]
        logits, z = read(model, batch.x, self.layer)
        points, labels = (state.memory.get(f"rcal/{name}", pool[name]).to(z.device) for name in ("z", "y"))
        chosen = state.draws("points", batch.index).integers(len(labels), 1)[:, 0]
        if self.mixup_alpha > 0:
            share = float(torch.distributions.Beta(self.mixup_alpha, self.mixup_alpha).sample())
            partner = torch.randperm(len(batch.y)).to(z.device)
            logits = model(share * batch.x + (1 - share) * batch.x[partner])
            real = share * F.cross_entropy(logits, batch.y) + (1 - share) * F.cross_entropy(logits, batch.y[partner])
        else:
            real = F.cross_entropy(logits, batch.y)
        sampled = F.cross_entropy(head(model, self.layer)(points[chosen]), labels[chosen])
        return real + sampled + self.beta * (z - kept).square().sum(1).mean()

    def _renew(self, seed: int, models: Mapping[str, nn.Module], state: State) -> None:
        """New Gaussians and points at the end of every ``refresh``-th epoch; in the state, so that a checkpoint holds
        them."""
        per_epoch = -(-len(state.data) // self.batch_size)
        if self.refresh and state.step % (self.refresh * per_epoch) == 0:
            now = representations(models["model"], state.data.x, self.layer)
            state.memory |= {f"rcal/{name}": value for name, value in self.drawn(now, state.data.y, seed).items()}


def head(model: nn.Module, layer: str) -> nn.Linear:
    """The linear layer of that name; InputError where the model has none."""
    found = dict(model.named_modules()).get(layer)
    if not isinstance(found, nn.Linear):
        raise InputError(f"RCAL: layer {layer!r} is {type(found).__name__}; expected the name of a linear layer")
    return found


def read(model: nn.Module, x: Float[Tensor, "n ..."], layer: str) -> tuple[Tensor, Float[Tensor, "n m"]]:
    """The model's logits on ``x``, and what enters the layer."""
    caught: list[Tensor] = []

    def keep(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        caught.append(given[0])

    handle = head(model, layer).register_forward_pre_hook(keep)
    try:
        logits = model(x)
    finally:
        handle.remove()
    return logits, caught[0]


def representations(model: nn.Module, x: Float[Tensor, "n ..."], layer: str) -> Float[Tensor, "n m"]:
    """What enters the layer for each input, in evaluation mode, on the CPU; the model is left as it is."""
    with evaluating(model):
        return batched(lambda part: read(model, part, layer)[1], x, device=device_of(model))
