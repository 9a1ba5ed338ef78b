"""Whether one temperature is enough for a given model and data."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.calibrate.base import Outputs
from assay.calibrate.temperature import TemperatureScaling
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import Draws


def overlap_gap(logits: Float[Tensor, "n c"], y: Int[Tensor, " n"], *, bins: int = 1, strength: float = 1.0) -> float:
    """Negative log-likelihood, in nats, that temperature scaling leaves to a recalibration by predicted class.

    The other prediction is the label's distribution among samples of the same predicted class and confidence bin (of
    ``bins``, equally full), where ``strength`` > 0 samples count as the temperature-scaled prediction says. Both are
    fitted on every other sample and judged on the rest, in turn. About 0 where a temperature is enough; large where
    confident predictions err towards particular classes, as on overlapping supports (Chidambaram & Ge, 2024,
    arXiv:2306.00740, from which comes the question; this form of the measure is ours). Below 0 where samples are too
    few for the table. Raises InputError for fewer than two samples and other options.
    """
    outputs = Outputs(logits)
    check_labels("overlap_gap", y, len(logits), outputs.classes)
    if len(y) < 2 or bins < 1 or not 0 < strength < float("inf"):
        given = f"{len(y)} samples, bins={bins}, strength={strength}"
        raise InputError(f"overlap_gap: {given}; expected two samples, bins >= 1 and a finite strength > 0")
    half, gains = torch.arange(len(y)) % 2 == 0, []
    for fit, judge in ((half, ~half), (~half, half)):
        fitted = TemperatureScaling().fit(Outputs(logits[fit]), y[fit])
        scaled = [fitted.transform(Outputs(logits[rows])).softmax(1) for rows in (fit, judge)]
        edges = torch.quantile(scaled[0].max(1).values, torch.arange(1, bins).double() / bins)
        cells = [
            p.argmax(1) * bins + torch.bucketize(p.max(1).values, edges) for p in scaled
        ]  # by predicted class and confidence
        counts = torch.zeros(outputs.classes * bins, outputs.classes, dtype=torch.float64)
        counts.index_put_((cells[0], y[fit]), torch.ones((), dtype=torch.float64), accumulate=True)
        table = counts[cells[1]] + strength * scaled[1]
        rows = torch.arange(int(judge.sum()))
        both = torch.stack((table / table.sum(1, keepdim=True), scaled[1]))[:, rows, y[judge]]
        better, plain = both.clamp_min(torch.finfo(torch.float64).tiny).log()
        gains.append(better - plain)
    return float(torch.cat(gains).mean())


def logit_gap_profile(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    radii: tuple[float, ...] = tuple(range(11)),
    points: int = 500,
    seed: int,
    batch_size: int = 64,
) -> Float[Tensor, "n r"]:
    """Mean of z_y - max over j != y of z_j on ``points`` random points of spheres of each radius around each x
    (analysis of Chidambaram & Ge, 2024, arXiv:2306.00740, with their radii and points).

    It stays high where the model is confident in a training label throughout the neighbourhood, which the theory of
    interpolators assumes. Inputs are not cut to a range. ``batch_size`` samples are looked at together. Raises
    InputError for radii that are negative or not finite, no points, other shapes and labels that the model has no logit
    for.
    """
    check_inputs("logit_gap_profile", x, y)
    if not radii or not all(0 <= radius < math.inf for radius in radii) or min(points, batch_size) < 1:
        given = f"radii={radii}, points={points}, batch_size={batch_size}"
        raise InputError(f"logit_gap_profile: {given}; expected finite radii >= 0, points and batch_size >= 1")
    parts = []
    for rows in torch.arange(len(x)).split(batch_size):
        draws = Draws(seed, "spheres", rows).normal(points, x[0].numel())
        unit = torch.nn.functional.normalize(draws, dim=2).reshape(len(rows), points, *x.shape[1:])
        gaps = []
        for radius in radii:
            near = (x[rows, None] + radius * unit).flatten(0, 1)
            logits = predict(model, near).unflatten(0, (len(rows), points))
            check_labels("logit_gap_profile", y[rows], len(rows), logits.shape[2])
            label = y[rows, None, None].expand(-1, points, 1)
            others = logits.scatter(2, label, -torch.inf).max(2).values
            gaps.append((logits.gather(2, label)[..., 0] - others).mean(1))
        parts.append(torch.stack(gaps, 1))
    return torch.cat(parts)
