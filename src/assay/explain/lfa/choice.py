"""Which explanation to choose: the one that is nearest to f where faithfulness is wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.explain.base import prepared
from assay.explain.lfa.approximation import LocalFunctionApproximation
from assay.explain.lfa.features import Features
from assay.explain.lfa.neighbourhood import Multiplicative, Neighbourhood
from assay.explain.lfa.sample import local_sample, target_values
from assay.explain.lfa.solvers import Surrogate
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH


def in_units_of(weight: Float[Tensor, "n ..."], x: Tensor, source: Neighbourhood, to: Neighbourhood) -> Tensor:
    """Weights of a g fitted on ``source`` in the units that ``to`` has: outputs per unit of x, or outputs.

    The factor is x0 - baseline, so that weights in outputs change with the baseline too. Where that of ``source`` is
    zero, a weight in outputs says nothing of a slope: it becomes zero.
    """
    if source.additive == to.additive and _baseline(source) == _baseline(to):
        return weight
    if not source.additive:
        factor = source.slope(x)
        weight = torch.where(factor == 0, torch.zeros_like(weight), weight / factor)
    return weight if to.additive else weight * to.slope(x)


def _baseline(space: Neighbourhood) -> float | None:
    return space.baseline if isinstance(space, Multiplicative) else None


def faithfulness(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    target: Int[Tensor, " n"],
    weight: Float[Tensor, "n ..."],
    bias: Float[Tensor, " n"] | None,
    neighbourhood: Neighbourhood,
    *,
    seed: int,
    loss: Literal["squared", "gradient"] = "squared",
    n_samples: int = 1000,
    index: Int[Tensor, " n"] | None = None,
    feature_mask: Int[Tensor, "n ..."] | None = None,
    batch_size: int = BATCH,
) -> Float[Tensor, " n"]:
    """The mean loss of g(xi) = weight . xi + bias on fresh points of ``neighbourhood``, float64; lower is better.

    ``weight`` in the neighbourhood's units (see ``in_units_of``). ``bias`` None: the best intercept for these points.
    Raises InputError for unusable input.
    """
    if loss not in ("squared", "gradient"):
        raise unknown("loss of faithfulness", str(loss), ("squared", "gradient"))
    check_inputs("faithfulness, weight", weight)
    if weight.shape != x.shape or (bias is not None and bias.shape != x.shape[:1]):
        shapes = (tuple(weight.shape), None if bias is None else tuple(bias.shape))
        raise InputError(f"faithfulness: weight and bias {shapes}; expected {tuple(x.shape)} and ({len(x)},)")
    if n_samples < 1 or batch_size < 1:
        raise InputError(f"faithfulness: n_samples={n_samples}, batch_size={batch_size}; expected both at least 1")
    parts = []
    with prepared("faithfulness", model, x, target, seed=seed, index=index) as (inputs, labels, draws):
        features = Features.of("faithfulness", inputs, feature_mask)
        w = features.mean(weight.to(inputs.device).double())
        group = max(1, batch_size // neighbourhood.size(n_samples, features.d))
        for rows in torch.arange(len(x), device=inputs.device).split(group):
            sample = local_sample(
                model,
                inputs[rows],
                labels[rows],
                neighbourhood,
                features.rows(rows),
                draws.select(rows),
                n_samples=n_samples,
                gradient=loss == "gradient",
                batch_size=batch_size,
            )
            b = torch.zeros_like(sample.at_x) if bias is None else bias.to(inputs.device)[rows].double()
            if bias is None and loss == "squared" and neighbourhood.intercept:
                residual = sample.observed - Surrogate(False).values(sample.xi, w[rows], b)
                b = (sample.weight * residual).sum(1)
            parts.append((sample.weight * Surrogate(False).errors(sample, w[rows], b)).sum(1))
    return torch.cat(parts).to(x.device)


def choose_explanation(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    target: Int[Tensor, " n"],
    neighbourhood: Neighbourhood,
    candidates: Mapping[str, LocalFunctionApproximation],
    *,
    seed: int,
    loss: Literal["squared", "gradient"] = "squared",
    n_samples: int = 1000,
    index: Int[Tensor, " n"] | None = None,
) -> dict[str, float]:
    """Each candidate's mean loss on ``neighbourhood`` over the inputs, lowest first: the paper's guiding principle.

    A candidate's weights are put into the neighbourhood's units and get the best intercept. Raises InputError where
    there is no candidate, or one whose g is logistic.
    """
    if not candidates or any(c.g != "linear" or c.output != "logit" for c in candidates.values()):
        raise InputError("choose_explanation: expected at least one candidate, each a linear g of the logit")
    found = {}
    for name, candidate in candidates.items():
        weight = candidate.attribute(model, x, target, seed=seed, index=index)
        weight = in_units_of(weight, x, candidate.neighbourhood, neighbourhood)
        losses = faithfulness(
            model, x, target, weight, None, neighbourhood, seed=seed, loss=loss, n_samples=n_samples, index=index
        )
        found[name] = float(losses.mean())
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def perturbation_test(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    target: Int[Tensor, " n"],
    attribution: Float[Tensor, "n ..."],
    *,
    k: int,
    seed: int,
    noise: Literal["binary", "continuous"] = "binary",
    which: Literal["bottom", "top"] = "bottom",
    sigma: float = 0.1,
    baseline: float = 0.0,
    n_samples: int = 100,
    index: Int[Tensor, " n"] | None = None,
    batch_size: int = BATCH,
) -> Float[Tensor, " n"]:
    """Mean |change of f| when only the k elements with the least (or most) |attribution| are moved (section 5.3).

    "binary": they are set to ``baseline``; "continuous": N(0, sigma^2) is added, ``n_samples`` times. Low is good for
    the bottom, high for the top. (n,) float64 in the target's logits. Raises InputError for unusable input.
    """
    check_inputs("perturbation_test, attribution", attribution)
    elements = x[0].numel() if len(x) else 0
    if attribution.shape != x.shape or not 1 <= k <= elements or n_samples < 1 or batch_size < 1:
        raise InputError(
            f"perturbation_test: attribution {tuple(attribution.shape)}, k={k}, n_samples={n_samples}, "
            f"batch_size={batch_size}; expected {tuple(x.shape)}, 1 <= k <= {elements}, the others at least 1"
        )
    if not 0 <= sigma < math.inf or not math.isfinite(baseline):
        raise InputError(f"perturbation_test: sigma={sigma}, baseline={baseline}; expected finite, sigma >= 0")
    for name, value, allowed in (
        ("noise", noise, ("binary", "continuous")),
        ("which", which, ("bottom", "top")),
    ):
        if value not in allowed:
            raise unknown(f"{name} of perturbation_test", value, allowed)
    draws_each = 1 if noise == "binary" else n_samples
    rank = attribution.abs().flatten(1).argsort(dim=1, descending=which == "top", stable=True).argsort(1)
    chosen = (rank < k).reshape(x.shape)
    parts = []
    with prepared("perturbation_test", model, x, target, seed=seed, index=index) as (inputs, labels, draws):
        for rows in torch.arange(len(x), device=inputs.device).split(max(1, batch_size // draws_each)):
            some, mask = inputs[rows], chosen.to(inputs.device)[rows][:, None]
            moved = some[:, None].expand(-1, draws_each, *some.shape[1:])
            if noise == "binary":
                moved = torch.where(mask, torch.full_like(moved, baseline), moved)
            else:
                moved = moved + sigma * mask * draws.select(rows).normal(draws_each, *some.shape[1:]).to(some)
            many = labels[rows].repeat_interleave(draws_each)
            values = target_values(model, moved.flatten(0, 1), many, batch_size).reshape(-1, draws_each)
            before = target_values(model, some, labels[rows], batch_size)
            parts.append((values - before[:, None]).abs().mean(1))
    return torch.cat(parts).to(x.device)
