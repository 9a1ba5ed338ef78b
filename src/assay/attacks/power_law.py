"""A power law through the rates of rare events."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.statistics import LEVEL, resamples


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """rate = ``prefactor`` eps^``exponent``; ``mask`` (e,) tells which eps it was fitted to.

    ``exponent_ci`` is the 95% percentile interval over resampled samples. All are NaN where nothing could be fitted.
    """

    exponent: float
    exponent_ci: tuple[float, float]
    prefactor: float
    mask: Bool[Tensor, " e"]


def fit_power_law(
    eps: Float[Tensor, " e"],
    events: Bool[Tensor, "e n"],
    *,
    low: float = 0.0015,
    high: float = 0.1,
    least: int = 5,
    weighted: bool = True,
    bootstrap: int = 200,
    seed: int = 0,
) -> PowerLaw:
    """Regress log rate on log ``eps`` where the rate is in [max(low, least / n), high].

    For adversarial error at small perturbations (Cubuk et al., 2017, arXiv:1711.02846): below the window counts are
    noise, above it the error saturates. ``eps`` (e,) > 0; ``events`` (e, n) tells for each eps which of n samples
    flipped. Where ``weighted``, each point weighs as many flips as it counts, as the variance of the log of a count is
    one over it; otherwise all weigh the same. ``bootstrap`` resamplings of the samples give the interval. With fewer
    than two eps in the window the exponent is NaN, with a RuntimeWarning. Raises InputError for other input.
    """
    if events.dtype != torch.bool or events.dim() != 2 or eps.shape != events.shape[:1] or not events.numel():
        shapes = f"eps {tuple(eps.shape)}, events {events.dtype} {tuple(events.shape)}"
        raise InputError(f"fit_power_law: {shapes}; expected (e,) and bool (e, n)")
    if not (torch.isfinite(eps).all() and (eps > 0).all()):
        raise InputError("fit_power_law: an eps is not above 0; expected positive finite sizes")
    if not 0 < low < high <= 1 or least < 1 or bootstrap < 1:
        where = f"low={low}, high={high}, least={least}, bootstrap={bootstrap}"
        raise InputError(f"fit_power_law: {where}; expected 0 < low < high <= 1 and both counts >= 1")
    flips, n = events.cpu().numpy().astype(float), events.shape[1]
    rate = flips.mean(1)
    mask = (rate >= max(low, least / n)) & (rate <= high)
    kept = torch.from_numpy(mask)
    if mask.sum() < 2:
        warnings.warn(f"fit_power_law: {mask.sum()} eps in the window; the exponent is NaN", RuntimeWarning, 2)
        return PowerLaw(np.nan, (np.nan, np.nan), np.nan, kept)
    t = np.log(eps.double().cpu().numpy()[mask])
    slope, level = _line(t, rate[None, mask], weighted)
    draws = _line(t, resamples(n, seed, bootstrap) @ flips[mask].T / n, weighted)[0]
    ends = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return PowerLaw(float(slope[0]), (float(ends[0]), float(ends[1])), float(np.exp(level[0])), kept)


def _line(
    t: Float[np.ndarray, " m"], rates: Float[np.ndarray, "b m"], weighted: bool
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
    """Slopes and intercepts (b,) of log rates over t by least squares, each over the rates that are above 0."""
    weight = rates if weighted else (rates > 0).astype(float)
    logs = np.log(np.where(rates > 0, rates, 1.0))
    total = weight.sum(1)
    middle, mean = weight @ t / total, (weight * logs).sum(1) / total
    apart = t - middle[:, None]
    spread = (weight * apart**2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resampling that left one point has no slope: NaN
        slope = (weight * apart * logs).sum(1) / spread
    return slope, mean - slope * middle
