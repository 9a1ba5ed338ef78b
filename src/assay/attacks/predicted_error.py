"""Adversarial error by linear response: from the gap between two logits and its slope, without moving an input."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.base import Untargeted
from assay.attacks.fgsm import signs
from assay.attacks.logit_gaps import logit_gaps
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, batched, device_of, evaluating


def flip_distance(
    model: nn.Module, x: Float[Tensor, "n ..."], *, along: Literal["loss", "gap"] = "loss", batch_size: int = BATCH
) -> Float[Tensor, " n"]:
    """The l-infinity size (n,) of a step at which the gap between the two largest logits closes, to first order.

    The gap over -s . (its gradient in x), as a step of eps s changes it by eps s . gradient (Cubuk et al., 2017,
    arXiv:1711.02846, mean-field argument). s are the signs that ``along`` names: those of the gradient of the "loss" of
    what is predicted, which FGSM follows, or of the "gap" itself, which make it the gap over the l1 norm of its
    gradient, the least that any s gives. Infinite where the step does not close the gap. Exact for a linear model of
    two classes. Raises InputError for unusable input or outputs.
    """
    check_inputs("flip_distance", x)
    if along not in ("loss", "gap"):
        raise unknown("direction of flip_distance", along, ("loss", "gap"))
    x = x.detach()

    def distance(z: Tensor, *steps: Tensor) -> Tensor:
        slope = torch.func.grad(lambda at: _gap(model(at)).sum())(z)
        closing = -((steps[0] if steps else -slope.sign()) * slope).flatten(1).sum(1)
        if not torch.isfinite(closing).all():
            raise InputError("flip_distance: a gradient is not finite; expected finite ones")
        return torch.where(closing > 0, logit_gaps(model(z)) / closing, torch.inf)

    with evaluating(model):
        device = device_of(model)
        predicted = batched(lambda z: model(z).argmax(1), x, batch_size=batch_size, device=device)
        steps = (signs(model, x, Untargeted(predicted), batch_size=batch_size),) if along == "loss" else ()
        return batched(distance, x, *steps, batch_size=batch_size, device=device)


def _gap(logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    first, second = logits.topk(2, 1).values.unbind(1)
    return first - second


def predicted_error(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    eps: Float[Tensor, " e"],
    *,
    along: Literal["loss", "gap"] = "loss",
    batch_size: int = BATCH,
) -> Float[Tensor, " e"]:
    """The share of predictions (e,) float64 that steps of l-infinity size ``eps`` (e,) flip, to first order, unclipped.

    The error of FGSM on the predicted labels by the mean-field argument of Cubuk et al. (2017, arXiv:1711.02846): as
    gaps have a constant density next to 0, it grows like eps. Options and errors: see ``flip_distance``.
    """
    distance = flip_distance(model, x, along=along, batch_size=batch_size)
    return (distance < eps.to(distance)[:, None]).double().mean(1)
