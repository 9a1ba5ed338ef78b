"""What f does in a neighbourhood: noise, weights, and f's responses or gradients there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.explain.base import target_gradients
from assay.explain.lfa.features import Features
from assay.explain.lfa.neighbourhood import Neighbourhood
from assay.runtime.random import Draws


class Probability(nn.Module):
    """The probabilities of a model that gives logits: softmax, or sigmoid where it has one output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        logits = self.model(x)
        return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


@dataclass(frozen=True)
class LocalSample:
    """Points around n inputs, float64: noise ``xi``, ``weight`` (sums to 1 for each input), and f there.

    ``observed`` is f's response (n, k) or, with ``gradient``, its gradient by xi (n, k, d); ``at_x`` and ``at_zero``
    are f at x0 and at xi = 0.
    """

    xi: Float[Tensor, "n k d"]
    weight: Float[Tensor, "n k"]
    observed: Float[Tensor, "n k ..."]
    gradient: bool
    at_x: Float[Tensor, " n"]
    at_zero: Float[Tensor, " n"]


def target_values(model: nn.Module, x: Tensor, target: Tensor, batch_size: int) -> Float[Tensor, " m"]:
    """The target outputs, float64, at the points ``x`` (m, ...)."""
    chunks = zip(x.split(batch_size), target.split(batch_size), strict=True)
    with torch.no_grad():
        return torch.cat([model(c).gather(1, t[:, None])[:, 0].double() for c, t in chunks])


def local_sample(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    target: Tensor,
    neighbourhood: Neighbourhood,
    features: Features,
    draws: Draws,
    *,
    n_samples: int,
    gradient: bool,
    batch_size: int,
) -> LocalSample:
    """Draw each input's points and ask f for its responses or, with ``gradient``, its gradients by the noise."""
    k = neighbourhood.size(n_samples, features.d)
    xi = neighbourhood.noise(draws, k, features.d).to(x)
    moved = neighbourhood.move(x, features.spread(xi))
    labels = target.repeat_interleave(k)
    log_weights = neighbourhood.log_weights(xi, (moved - x[:, None]).flatten(2).norm(dim=2)).double()
    zero = neighbourhood.move(x, torch.zeros_like(x)[:, None])[:, 0]
    at_x, at_zero = (target_values(model, p, target, batch_size) for p in (x, zero))
    if gradient:
        by_x = target_gradients(model, moved.flatten(0, 1), labels, batch_size).unflatten(0, (len(x), k))
        observed = features.total(neighbourhood.slope(x)[:, None] * by_x).double()
    else:
        values = target_values(model, moved.flatten(0, 1), labels, batch_size).reshape(-1, k)
        observed = neighbourhood.respond(values, at_x[:, None])
    return LocalSample(xi.double(), log_weights.softmax(1), observed, gradient, at_x, at_zero)
