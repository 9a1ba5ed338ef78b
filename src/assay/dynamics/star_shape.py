"""How far a model stays confident around a point: on lines and triangles to other points, and across a direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.balls import wide
from assay.attacks.nearest import scaled, unit
from assay.dynamics.level_sets import confidence
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, batched, device_of, evaluating
from assay.runtime.random import Draws

DROPS = (0.0, 0.1, 0.2, 0.3)


def _check(where: str, x: Tensor, y: Tensor, others: Mapping[str, Tensor], least: dict[str, tuple[int, int]]) -> None:
    """Finite inputs with labels, other points of the same shape, and numbers that are large enough."""
    check_inputs(where, x, y)
    for name, other in others.items():
        check_inputs(f"{where}: {name}", other)
        if other.shape != x.shape:
            raise InputError(f"{where}: {name} has shape {tuple(other.shape)}; expected {tuple(x.shape)}, as x")
    for name, (value, floor) in least.items():
        if value < floor:
            raise InputError(f"{where}: {name}={value}; expected at least {floor}")


def _confident(model: nn.Module, points: Tensor, labels: Tensor) -> Float[Tensor, " n"]:
    logits = model(points)
    check_labels("confidence", labels, len(labels), logits.shape[1])
    return confidence(logits, labels)


def _along(model: nn.Module, corners: Tensor, y: Tensor, weights: Tensor, batch_size: int) -> Float[Tensor, "n k"]:
    """p_y at the points that ``weights`` (k, m) make of each sample's ``corners`` (n, m, ...), on the CPU."""
    size = max(batch_size // len(weights), 1)

    def probe(some: Tensor, labels: Tensor) -> Tensor:
        points = torch.einsum("km,nm...->nk...", weights.to(some), some)
        return _confident(model, points.flatten(0, 1), labels.repeat_interleave(len(weights))).view(len(some), -1)

    with evaluating(model):
        return batched(probe, corners, y, batch_size=size, device=device_of(model))


def linear_path_confidence(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    out: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    n: int = 11,
    *,
    batch_size: int = BATCH,
) -> Float[Tensor, "n points"]:
    """p_y at ``n`` >= 2 equally spaced points from ``x`` to ``out``, ends included, on the CPU.

    (Balasubramanian et al., 2023, arXiv:2310.19889.) Raises InputError for unusable inputs and shapes.
    """
    _check("linear_path_confidence", x, y, {"out": out}, {"n": (n, 2)})
    t = torch.linspace(0, 1, n, dtype=x.dtype)
    return _along(model, torch.stack((x, out), 1), y, torch.stack((1 - t, t), 1), batch_size)


@dataclass(frozen=True)
class TriangleConfidence:
    """What a model makes of triangles. p_y, the confidence of the source's class, is measured on a triangular grid.

    confs (n, k) at the weights (k, 2) of the two other corners; mean (n,) over the grid; fraction: for each drop d the
    share (n,) of the grid with p_y above that of the source less d; path (n,), the mean over the two edges that meet
    in the source; edge_drop (n,), the least of p_y on these edges less that of the source, <= 0.
    """

    confs: Float[Tensor, "n k"]
    weights: Float[Tensor, "k 2"]
    mean: Float[Tensor, " n"]
    fraction: Mapping[float, Float[Tensor, " n"]]
    path: Float[Tensor, " n"]
    edge_drop: Float[Tensor, " n"]


def triangle_confidence(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    a: Float[Tensor, "n ..."],
    b: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    n: int = 10,
    *,
    drops: tuple[float, ...] = DROPS,
    batch_size: int = BATCH,
) -> TriangleConfidence:
    """p_y of (1 - t1 - t2) x + t1 a + t2 b for t1, t2 in {0, 1/n, ..., 1} with t1 + t2 <= 1: (n + 1)(n + 2) / 2 points.

    Balasubramanian et al. (2023, arXiv:2310.19889): the average triangle confidence and fraction. As in the
    authors' code a point counts where p_y > p_y(x) - d, so that at d = 0 the source does not, and the source counts on
    both edges of ``path``. Raises InputError for unusable inputs and shapes.
    """
    _check("triangle_confidence", x, y, {"a": a, "b": b}, {"n": (n, 1)})
    steps = torch.cartesian_prod(torch.arange(n + 1), torch.arange(n + 1))
    steps = steps[steps.sum(1) <= n]
    t = steps.to(x.dtype) / n
    confs = _along(model, torch.stack((x, a, b), 1), y, torch.cat((1 - t.sum(1, keepdim=True), t), 1), batch_size)
    edges = torch.cat([confs[:, steps[:, k] == 0] for k in (0, 1)], 1)
    source = confs[:, :1]
    fraction = {d: (confs > source - d).to(confs).mean(1) for d in drops}
    return TriangleConfidence(confs, t, confs.mean(1), fraction, edges.mean(1), (edges - source).amin(1))


def path_width(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    direction: Float[Tensor, "n ..."],
    radii: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0),
    n_vec: int = 256,
    *,
    seed: int,
    index: Int[Tensor, " n"] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Float[Tensor, "n r 2"]:
    """5% and 95% quantiles of p_y at clip(x + r u), u of ``n_vec`` random unit vectors across ``direction``.

    Balasubramanian et al. (2023, arXiv:2310.19889): how wide a path is at its points ``x`` when ``direction`` is where
    it goes; radii in the data's units (l2). The same u serve all radii. A direction of 0 leaves u as drawn. Raises
    InputError for unusable inputs, shapes and radii.
    """
    _check("path_width", x, y, {"direction": direction}, {"n_vec": (n_vec, 1)})
    if not radii or min(radii) < 0:
        raise InputError(f"path_width: radii are {radii}; expected at least one, all >= 0")
    index = torch.arange(len(x)) if index is None else index
    check_labels("path_width: index", index, len(x))
    lengths = torch.tensor(radii)

    def quantiles(some: Tensor, labels: Tensor, along: Tensor, names: Tensor) -> Tensor:
        u = Draws(seed, "path width", names).normal(n_vec, *some.shape[1:]).to(some).flatten(0, 1)
        forward = unit(along).repeat_interleave(n_vec, 0)
        u = unit(u - scaled(forward, (forward * u).flatten(1).sum(1))).view(len(some), 1, n_vec, *some.shape[1:])
        moved = some[:, None, None] + wide(lengths.to(some), u[0])[None] * u
        conf = _confident(model, moved.clamp(*bounds).flatten(0, 2), labels.repeat_interleave(len(lengths) * n_vec))
        grouped = conf.view(len(some), len(lengths), n_vec)
        return torch.quantile(grouped, torch.tensor((0.05, 0.95)).to(grouped), dim=2).permute(1, 2, 0)

    with evaluating(model):
        return batched(quantiles, x, y, direction, index, batch_size=1, device=device_of(model))
