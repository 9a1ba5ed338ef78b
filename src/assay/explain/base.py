"""The contract of explainers, and the engine that averages gradients over points around or on the way to an input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import Draws


@dataclass(frozen=True, kw_only=True)
class Explainer:
    """``attribute(model, x, target, *, seed)`` gives one number an input element, in the shape of ``x``.

    ``batch_size`` bounds the inputs in one pass through the model; results do not depend on it.
    """

    kind: ClassVar[str] = "explainer"
    contract: ClassVar[bool] = True

    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"{type(self).__name__}: batch_size={self.batch_size}; expected at least 1")

    def attribute(
        self,
        model: nn.Module,
        x: Float[Tensor, "n ..."],
        target: Int[Tensor, " n"],
        *,
        seed: int,
        index: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n ..."]:
        """Attributions of the ``target`` logits to the elements of ``x``, on the device and in the dtype of ``x``.

        x (n, ...) in the model's own units; target (n,) int64 classes. ``index`` names the samples for what is random
        (default: their positions). Raises InputError for unusable input and where attributions are not finite.
        """
        where = type(self).__name__
        with prepared(where, model, x, target, seed=seed, index=index) as (inputs, labels, draws):
            out = self._attribute(model, inputs, labels, draws)
        check_finite(where, out)
        return out.to(x.device, x.dtype)

    def _attribute(self, model: nn.Module, x: Tensor, target: Tensor, draws: Draws) -> Tensor:
        """The method on checked inputs; the model is in evaluation mode with its parameters frozen."""
        raise TypeError(f"{type(self).__name__} states no attribution")


@contextmanager
def prepared(
    where: str, model: nn.Module, x: Tensor, target: Tensor, *, seed: int, index: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Draws]]:
    """Checked inputs and targets on the model's device, and the samples' draws; inside, the model is evaluating."""
    device = device_of(model)
    check_inputs(where, x, target)
    index = torch.arange(len(x)) if index is None else index
    check_index(where, index, len(x))
    with evaluating(model):
        with torch.no_grad():
            scores = model(x[:1].to(device))
        if not isinstance(scores, Tensor) or scores.dim() != 2:
            given = f"has shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"is {type(scores).__name__}"
            raise InputError(f"{where}: the model's output {given}; expected a tensor (n, classes)")
        check_labels(where, target, len(x), scores.shape[1])
        yield x.detach().to(device), target.to(device), Draws(seed, f"explain.{where}", index.to(device))


def check_finite(where: str, out: Tensor) -> None:
    """InputError where an attribution (n, ...) is not finite."""
    if not torch.isfinite(out).all():
        bad = int((~torch.isfinite(out.flatten(1))).any(1).sum())
        raise InputError(f"{where}: attributions are not finite on {bad} of {len(out)} samples; expected finite ones")


def check_index(where: str, index: Tensor, n: int) -> None:
    """One int64 name a sample."""
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.shape != (n,):
        kind = f"{index.dtype} of shape {tuple(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise InputError(f"{where}: index is {kind}; expected int64 of shape ({n},)")


@dataclass(frozen=True, kw_only=True)
class GradientExplainer(Explainer):
    """A weighted sum of gradients of the target logit at k points a sample, then ``combine`` with the input.

    A subclass states the points and their weights. Points of several samples share one pass; the memory is that of
    max(batch_size, k) inputs and of one backward pass over batch_size of them.
    """

    contract: ClassVar[bool] = True

    def weights(self) -> Tensor:
        """The weight of each point, (k,) float64."""
        return torch.ones(1, dtype=torch.float64)

    def points(self, x: Tensor, draws: Draws) -> Float[Tensor, "n k ..."]:
        """The points of each sample."""
        return x[:, None]

    def combine(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The attribution from the averaged gradient."""
        return gradient

    def _attribute(self, model: nn.Module, x: Tensor, target: Tensor, draws: Draws) -> Tensor:
        weights = self.weights().to(x)
        group = max(1, self.batch_size // len(weights))
        parts = []
        for start in range(0, len(x), group):
            rows = torch.arange(start, min(start + group, len(x)), device=x.device)
            points = self.points(x[rows], draws.select(rows))
            labels = target[rows].repeat_interleave(len(weights))
            gradients = target_gradients(model, points.flatten(0, 1), labels, self.batch_size).unflatten(
                0, points.shape[:2]
            )
            parts.append(torch.einsum("k,nk...->n...", weights, gradients))
        return self.combine(x, torch.cat(parts))


def target_gradients(model: nn.Module, x: Tensor, target: Tensor, batch_size: int) -> Tensor:
    """Gradients (m, ...) of the target logits at the points ``x`` (m, ...)."""
    parts = []
    for chunk, labels in zip(x.split(batch_size), target.split(batch_size), strict=True):
        with torch.enable_grad():
            leaf = chunk.detach().clone().requires_grad_()
            picked = model(leaf).gather(1, labels[:, None]).sum()
            if not picked.requires_grad:
                raise InputError("attribution: the logits do not depend differentiably on x; expected a gradient")
            parts.append(torch.autograd.grad(picked, leaf)[0])
    return torch.cat(parts)
