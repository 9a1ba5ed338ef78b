"""Data attribution: what each training sample does to a trained model's outputs, as weights of a linear datamodel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating, predict
from assay.runtime.random import torch_rng

OUTPUTS = ("logit", "margin")
CHUNK = 32


def datamodel_weights(masks: Bool[Tensor, "t n"], reg: float = 0.0) -> Float[Tensor, "n t"]:
    """W with beta = W outputs: the ridge solution of ``linear_datamodel`` for whatever the subset models compute."""
    if masks.dim() != 2 or masks.dtype != torch.bool or len(masks) < 2 or not (math.isfinite(reg) and reg >= 0):
        raise InputError(
            f"datamodel: masks {masks.dtype} {tuple(masks.shape)}, reg={reg}; expected bool (t, n), t >= 2, reg >= 0"
        )
    z = masks.double()
    z = z - z.mean(0)
    if reg == 0:
        return torch.linalg.pinv(z)
    return torch.linalg.solve(z.T @ z + reg * torch.eye(z.shape[1], dtype=z.dtype), z.T)


def linear_datamodel(
    masks: Bool[Tensor, "t n"], outputs: Float[Tensor, "t q ..."], reg: float = 0.0
) -> tuple[Float[Tensor, "n q ..."], Float[Tensor, "q ..."]]:
    """beta and bias of outputs(S) = bias + sum over i in S of beta_i (Ilyas et al., 2022, arXiv:2202.00622, section 2).

    ``masks`` say which of n samples each of t models was trained on, ``outputs`` what the models give on q queries (any
    number of outputs each). Least squares with ``reg`` >= 0 times ||beta||^2 and a free bias, in float64; at 0 the
    solution of smallest norm. Fewer subsets than samples leave little but noise: take 4 n or more. Raises InputError
    for shapes that do not fit and outputs that are not finite.
    """
    if outputs.dim() < 2 or len(outputs) != len(masks) or not torch.isfinite(outputs).all():
        raise InputError(
            f"datamodel: outputs {tuple(outputs.shape)} for masks {tuple(masks.shape)}; expected finite (t, q, ...)"
        )
    flat = outputs.double().flatten(1)
    beta = datamodel_weights(masks, reg) @ flat
    bias = flat.mean(0) - masks.double().mean(0) @ beta
    return beta.view(-1, *outputs.shape[1:]), bias.view(outputs.shape[1:])


def datamodel_score(
    beta: Float[Tensor, "n q ..."], masks: Bool[Tensor, "t n"], outputs: Float[Tensor, "t q ..."]
) -> Float[Tensor, "q ..."]:
    """Spearman's correlation, over held-out subsets, of predicted and true outputs (Park et al., 2023,
    arXiv:2303.14186, definition 2.3, "LDS"); in [-1, 1], NaN where either is constant. Ties have their average rank.
    """
    if beta.shape[1:] != outputs.shape[1:] or masks.shape != (len(outputs), len(beta)) or len(masks) < 2:
        shapes = [tuple(t.shape) for t in (beta, masks, outputs)]
        raise InputError(f"datamodel score: {shapes}; expected (n, q, ...), (t, n), (t, q, ...) with t >= 2")
    predicted = masks.double() @ beta.double().flatten(1)
    a, b = (torch.from_numpy(rankdata(v.detach().numpy(), axis=0)) for v in (predicted, outputs.double().flatten(1)))
    a, b = a - a.mean(0), b - b.mean(0)
    return ((a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()).view(outputs.shape[1:])


def fitted_multiplier(predicted: Float[Tensor, "*s"], true: Float[Tensor, "*s"]) -> float:
    """The m that minimises ||true - m predicted||^2: the scale of attributions whose order alone is right."""
    if predicted.shape != true.shape or not predicted.any():
        raise InputError(
            f"multiplier: {tuple(predicted.shape)} and {tuple(true.shape)}; expected equal shapes, not all 0"
        )
    return float((predicted * true).sum() / predicted.square().sum())


def _margin(logits: Float[Tensor, " c"], y: Tensor) -> Float[Tensor, ""]:
    """log p_y - log(1 - p_y) of one sample."""
    own = torch.arange(len(logits), device=logits.device) == y
    return torch.where(own, logits, 0).sum() - torch.where(own, -torch.inf, logits).logsumexp(0)


class Projected:
    """TRAK of one network: per-sample gradients under a random projection of its weights.

    ``phi`` (n, k), float64, are the projected gradients of the training margins, ``lost`` (n,) is 1 - p_y. ``dim`` None
    keeps all p weights. Memory p x dim.
    """

    def __init__(self, model: nn.Module, train: Data, dim: int | None, *, seed: int) -> None:
        self.model, self.device = model, device_of(model)
        self.free = {k: p.detach() for k, p in model.named_parameters()}
        size = sum(p.numel() for p in self.free.values())
        if dim is not None and dim < 1:
            raise InputError(f"TRAK: proj_dim={dim}; expected at least 1, or None for no projection")
        k = size if dim is None else dim
        if k > len(train):
            raise InputError(f"TRAK: {k} dimensions for {len(train)} training samples; expected at most as many")
        signs = torch.randint(2, (size, k), generator=torch_rng(seed, "projection")) if dim is not None else None
        self.projection = None if signs is None else (2.0 * signs - 1).to(self.device) / k**0.5
        self.phi = self.features(train, "margin")
        p = predict(model, train.x).double().softmax(1)
        self.lost = 1 - p.gather(1, train.y[:, None])[:, 0]
        factor, info = torch.linalg.cholesky_ex(self.phi.T @ self.phi)
        if int(info) > 0 or factor.diagonal().min() <= 1e-6 * factor.diagonal().max():
            raise InputError(f"TRAK: the gradients span fewer than {k} dimensions; expected a smaller proj_dim")
        self.factor = factor

    def features(self, data: Data, output: str) -> Float[Tensor, "n ... k"]:
        """Projected gradients of each sample's margin, or of each of its logits."""

        def one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            logits = functional_call(self.model, weights, (x[None],))[0]
            return _margin(logits, y) if output == "margin" else logits

        slope = vmap((grad if output == "margin" else jacrev)(one), in_dims=(None, 0, 0))
        keep, parts = (1 if output == "margin" else 2), []
        with evaluating(self.model):
            for batch in data.batches(CHUNK):
                found = slope(self.free, batch.x.to(self.device), batch.y.to(self.device))
                flat = torch.cat([g.flatten(keep) for g in found.values()], -1)
                parts.append((flat if self.projection is None else flat @ self.projection.to(flat)).double().cpu())
        return torch.cat(parts)

    def scores(self, query: Data, output: str) -> Float[Tensor, "n q ..."]:
        """phi(x)^T (Phi^T Phi)^-1 phi_i, without the factor 1 - p_i."""
        solved = torch.cholesky_solve(self.phi.T, self.factor)
        return (self.features(query, output) @ solved).movedim(-1, 0)

    def step(self, weight: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """The change of the network's weights whose first-order effect on a logit is its weighted sum of scores."""
        inner = torch.cholesky_solve((self.phi.T @ weight)[:, None], self.factor)[:, 0].to(self.device)
        flat = inner if self.projection is None else self.projection.double() @ inner
        parts = flat.split([p.numel() for p in self.free.values()])
        return {k: v.view_as(p).to(p) for (k, p), v in zip(self.free.items(), parts, strict=True)}


def projected(models: Sequence[nn.Module], train: Data, proj_dim: int | None, *, seed: int) -> list[Projected]:
    """One ``Projected`` a network, each with its own projection."""
    check_inputs("TRAK", train.x, train.y, train.bounds)
    if not models:
        raise InputError("TRAK: no network; expected at least one")
    return [Projected(m, train, proj_dim, seed=seed + k) for k, m in enumerate(models)]


def trak_scores(
    models: Sequence[nn.Module],
    train: Data,
    query: Data,
    *,
    proj_dim: int | None = 512,
    output: Literal["logit", "margin"] = "logit",
    seed: int = 0,
) -> Float[Tensor, "n q ..."]:
    """Weights of a datamodel from M trained networks (Park et al., 2023, arXiv:2303.14186, equation 17, "TRAK").

    (1/M sum over m of phi_m(x)^T (Phi_m^T Phi_m)^-1 Phi_m^T) times (1/M sum of 1 - p_i): Phi are the gradients of the
    training margins f_y - log sum of exp f_c over c != y, projected by random signs to ``proj_dim`` dimensions (None:
    all weights), phi(x) those of the query's "margin" -> (n, q), or of each "logit" -> (n, q, c), at c times the cost.
    Positive: training on the sample raises the output. The scale is that of one Newton step with the curvature left
    out, not that of retraining: see ``fitted_multiplier``. Evaluation mode, float64. Raises InputError for more
    dimensions than training samples or than the gradients span.
    """
    if output not in OUTPUTS:
        raise unknown("output of TRAK", str(output), OUTPUTS)
    check_inputs("TRAK", query.x, query.y, query.bounds)
    found = projected(models, train, proj_dim, seed=seed)
    score = torch.stack([p.scores(query, output) for p in found]).mean(0)
    lost = torch.stack([p.lost for p in found]).mean(0)
    return score * lost.view(-1, *[1] * (score.dim() - 1))
