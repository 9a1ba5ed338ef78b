"""Blind spots: inputs that look like another class and keep a source's confidence, and how far they reach."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.dynamics.level_sets import LevelSetTraversal, LSTResult, confidence
from assay.dynamics.similarity import structural_similarity
from assay.dynamics.star_shape import TriangleConfidence, linear_path_confidence, triangle_confidence
from assay.dynamics.straight_line import straight_line
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, predict
from assay.runtime.random import torch_rng


def other_class(y: Int[Tensor, " n"], shifts: int, *, seed: int) -> Int[Tensor, "shifts n"]:
    """``shifts`` random permutations of samples, different at every place, that give each one of another class.

    Samples lie in random order by class, and each takes the one some places on: as many as the largest class has
    samples, or more. InputError where a class has too many samples for that.
    """
    check_labels("other_class", y, len(y))
    largest = int(torch.bincount(y).max()) if len(y) else 0
    room = len(y) - 2 * largest + 1 if len(y) else 0
    if not 1 <= shifts <= room:
        given = f"{len(y)} samples, {largest} of them in one class, for {shifts} permutations"
        raise InputError(f"other_class: {given}; expected at least 2 x {largest} + {max(shifts, 1) - 1} samples")
    g = torch_rng(seed, "other class")
    order = torch.randperm(len(y), generator=g)
    classes = torch.randperm(int(y.max()) + 1, generator=g)
    order = order[classes[y[order]].argsort(stable=True)]
    by = largest + torch.randperm(room, generator=g)[:shifts]
    pairs = torch.empty(shifts, len(y), dtype=torch.int64)
    for k, shift in enumerate(by.tolist()):
        pairs[k, order] = order.roll(-shift)
    return pairs


@dataclass(frozen=True)
class BlindSpotReport:
    """What traversals from n sources to two targets each found. Pairs are (2, n): one row a target.

    sources (n,) and targets (2, n) are rows of the data; results the two traversals. Of outputs against targets: rmse,
    linf and ssim (NaN where inputs are no images); ``gap`` is the l2 distance of sources to targets, ``distance`` of
    outputs to targets, ``line`` that of the straight line's last confident point. conf, conf0 (n,) and conf_target are
    confidences in the source's and in the target's class; linear (2, n, 11) is p_y on straight lines from sources to
    outputs, and triangle (n,) its measures between both.
    """

    sources: Int[Tensor, " n"]
    targets: Int[Tensor, "2 n"]
    results: tuple[LSTResult, LSTResult]
    conf0: Float[Tensor, " n"]
    conf: Float[Tensor, "2 n"]
    conf_target: Float[Tensor, "2 n"]
    gap: Float[Tensor, "2 n"]
    distance: Float[Tensor, "2 n"]
    line: Float[Tensor, "2 n"]
    rmse: Float[Tensor, "2 n"]
    linf: Float[Tensor, "2 n"]
    ssim: Float[Tensor, "2 n"]
    linear: Float[Tensor, "2 n 11"]
    triangle: TriangleConfidence

    def summary(self) -> dict[str, float]:
        """Means over all pairs; ``linear_least`` is the least over the line of its mean over pairs."""
        names = ("conf0", "conf", "conf_target", "gap", "distance", "line", "rmse", "linf", "ssim", "linear")
        found = {name: float(getattr(self, name).mean()) for name in names}
        found["linear_least"] = float(self.linear.flatten(0, 1).mean(0).min())
        found["triangle"] = float(self.triangle.mean.mean())
        return found | {f"triangle@{d:g}": float(share.mean()) for d, share in self.triangle.fraction.items()}


def blind_spot_report(
    model: nn.Module,
    X: Float[Tensor, "m ..."],
    y: Int[Tensor, " m"],
    n: int = 100,
    *,
    seed: int,
    traversal: LevelSetTraversal | None = None,
    least: float = 0.6,
    batch_size: int = BATCH,
) -> BlindSpotReport:
    """Level set traversals from ``n`` samples to two others each, of other classes, and the measures of the paper.

    Balasubramanian et al. (2023, arXiv:2310.19889): sources and targets are those that the model
    classifies correctly with a confidence of ``least`` or more, targets drawn as permutations of the sources (see
    ``other_class``). LPIPS, the paper's further distance, needs a network's weights and is left out. ``traversal`` is
    LevelSetTraversal() by default. Raises InputError for unusable inputs and where fewer than ``n`` samples are fit.
    """
    traversal = LevelSetTraversal() if traversal is None else traversal
    check_inputs("blind_spot_report", X, y, traversal.bounds)
    logits = predict(model, X, batch_size=batch_size)
    check_labels("blind_spot_report", y, len(X), logits.shape[1])
    fit = ((logits.argmax(1) == y.cpu()) & (confidence(logits, y.cpu()) >= least)).nonzero()[:, 0]
    if not 2 <= n <= len(fit):
        raise InputError(
            f"blind_spot_report: n={n} of {len(fit)} samples classified with confidence; expected 2 to that"
        )
    rows = fit[torch.randperm(len(fit), generator=torch_rng(seed, "sources"))[:n]].sort().values
    x, labels = X[rows], y[rows]
    pairs = other_class(labels.cpu(), 2, seed=seed)
    results, measures = [], []
    for number, others in enumerate(pairs):
        t = x[others]
        found = traversal(model, x, labels, t, seed=seed, index=rows + number * len(X), batch_size=batch_size)
        line = straight_line(model, x, labels, t, conf_drop=traversal.conf_drop, batch_size=batch_size)
        results.append(found)
        measures.append(_measures(x, t, found, line.x, traversal.bounds))
    linear = [linear_path_confidence(model, x, found.x, labels, batch_size=batch_size) for found in results]
    triangle = triangle_confidence(model, x, results[0].x, results[1].x, labels, batch_size=batch_size)
    stacked = {name: torch.stack([m[name] for m in measures]) for name in measures[0]}
    return BlindSpotReport(
        rows, rows[pairs], (results[0], results[1]), results[0].conf0, linear=torch.stack(linear), triangle=triangle,
        **stacked,
    )  # fmt: skip


def _measures(
    x: Tensor, target: Tensor, found: LSTResult, line: Tensor, bounds: tuple[float, float]
) -> dict[str, Tensor]:
    """Distances (n,) to the targets, and confidences."""
    left = (found.x - target).flatten(1)
    ssim = torch.full_like(found.conf, float("nan"))
    if x.dim() == 4:
        side = min(11, *x.shape[2:])
        ssim = structural_similarity(
            found.x, target, window=side - (side % 2 == 0), data_range=float(bounds[1] - bounds[0])
        )
    return {
        "conf": found.conf,
        "conf_target": found.conf_target,
        "gap": (x - target).flatten(1).norm(dim=1),
        "distance": left.norm(dim=1),
        "line": (line - target).flatten(1).norm(dim=1),
        "rmse": left.norm(dim=1) / left.shape[1] ** 0.5,
        "linf": left.abs().amax(1),
        "ssim": ssim,
    }
