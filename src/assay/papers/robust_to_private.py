"""From robustness to privacy and back: the inverse-sensitivity mechanism makes a robust estimator private at no loss.

Exact, on all samples of five values of a small universe: path lengths against a search through all samples, and the
largest log ratio of the output's densities over all neighbours, which eps bounds and which is not idle. Utility: the
private median of normal draws against Laplace noise on the clipped mean as the range R grows, under the bound that
robustness predicts, with a tenth of the points corrupted, and on real columns with public ranges. And back: corrupting
k points multiplies the chance of failing by e^(eps k) at most, from exact densities. At small R the Laplace mean is the
better one: that is not claimed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm
from sklearn.datasets import load_breast_cancer, load_diabetes

from assay.papers.model import Claim, Paper, Scale, Table
from assay.privacy import (
    InverseSensitivity,
    OrderStatistic,
    Quantile,
    dp_audit_exact,
    laplace_mean,
    predicted_error,
)
from assay.privacy.differential.inverse_sensitivity import WIDTH
from assay.runtime.random import derive, numpy_rng

EPS, BETA = 1.0, 0.05
UNIVERSE, POINTS = tuple(map(float, range(5))), 5
WIDTHS = (0.0, 0.5)  # rho of the audit
RADII, SIZES = (10, 100, 1000), (100, 300, 1000)
# Ranges that anyone would state for the unit at hand, without these data.
RANGES: Mapping[str, tuple[float, float]] = {
    "mean radius": (0, 100),
    "mean texture": (0, 100),
    "mean perimeter": (0, 1000),
    "mean area": (0, 10_000),
    "mean smoothness": (0, 1),
    "progression": (0, 1000),
}

PAPER = Paper(
    slug="robust-to-private",
    title="From Robustness to Privacy and Back",
    authors="Hilal Asi, Jonathan Ullman, Lydia Zakynthinou",
    year=2023,
    arxiv="2302.01855",
    room="privacy",
    kind="theory + method",
    implements=(
        "privacy.InverseSensitivity",
        "privacy.RobustToPrivate",
        "privacy.TruncatedSensitivity",
        "privacy.TukeyMechanism",
        "privacy.private_median",
        "privacy.predicted_error",
        "privacy.robustness_from_privacy",
        "privacy.dp_audit_exact",
    ),
    claim="Any estimator becomes eps-DP by its path lengths, with the error it has when about log(R / error) / eps "
    "points are corrupted; and a private estimator is robust.",
    headline="Optimal private rates for Gaussian means, sparse linear regression and PCA from robust estimators.",
    peers=("diffprivlib", "opendp"),
    baselines=("laplace",),
    shams={
        "missing-half": "the density is exp(-eps len): the half that pays for the normaliser is lost",
        "distance-for-length": "the density is exp(-eps |t - A(S)| / 2): the distance in place of the path length",
    },
    scales=(
        Scale("smoke", 1, {"draws": 10, "samples": 3}),
        Scale("claim", 8, {"draws": 200, "samples": 10}),
    ),
)


class _NoHalf(InverseSensitivity):
    def log_weight(self, length: np.ndarray) -> np.ndarray:
        return -self.eps * length


class _Distance(Quantile):
    """The distance from the median, on even pieces of the range."""

    pieces = 400

    def path_length(self, x: np.ndarray, bounds: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        edges = np.linspace(*bounds, self.pieces + 1)
        return edges, np.abs((edges[1:] + edges[:-1]) / 2 - self.value(x))

    def length(self, x: np.ndarray, t: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
        return np.abs(np.asarray(t) - self.value(x))


def _mechanism(sham: str | None, bounds: tuple[float, float], rho: float | None = None) -> InverseSensitivity:
    estimator: OrderStatistic = _Distance() if sham == "distance-for-length" else Quantile()
    width = WIDTH * (bounds[1] - bounds[0]) if rho is None else rho
    kind = _NoHalf if sham == "missing-half" else InverseSensitivity
    return kind(estimator=estimator, eps=EPS, bounds=bounds, rho=width)


@cache
def _samples() -> tuple[np.ndarray, np.ndarray]:
    """All samples of the universe, one a row, and their medians."""
    every = np.array(list(product(UNIVERSE, repeat=POINTS)))
    return every, np.sort(every, 1)[:, (POINTS - 1) // 2]


def searched(x: np.ndarray) -> np.ndarray:
    """Path lengths of the median to each value of the universe, by a search through all samples of it."""
    every, medians = _samples()
    replaced = (every != x).sum(1)
    return np.array([replaced[medians == t].min() for t in UNIVERSE])


def _audit(scale: Scale, seed: int, sham: str | None) -> dict[str, Any]:
    """Worst log ratios over neighbours at each rho, and the largest error of path lengths on drawn samples."""
    bounds = (UNIVERSE[0], UNIVERSE[-1])
    worst = [dp_audit_exact(_mechanism(sham, bounds, rho).density, UNIVERSE, POINTS) for rho in WIDTHS]
    drawn = numpy_rng(seed, "samples").choice(UNIVERSE, (scale["samples"], POINTS))
    estimator = _mechanism(sham, bounds).estimator
    off = [np.abs(estimator.length(x, np.array(UNIVERSE), bounds) - searched(x)).max() for x in drawn]
    return {"arm": "median", "most": max(worst), "least": min(worst), "length_error": max(off)}


def _errors(scale: Scale, seed: int, n: int, radius: int, sham: str | None, corrupted: float = 0.0) -> dict[str, Any]:
    """Median error over draws of the private median and the Laplace mean of n standard normal points."""
    bounds, median, laplace = (-float(radius), float(radius)), [], []
    mechanism = _mechanism(sham, bounds)
    for k in range(scale["draws"]):
        x = numpy_rng(seed, "normal", n, k).normal(size=n)
        x[: round(corrupted * n)] = radius
        drawn = derive(seed, "output", n, radius, k)
        median.append(abs(mechanism.sample(x, seed=drawn)[0]))
        laplace.append(abs(laplace_mean(x, EPS, bounds, seed=drawn)))
    return {"median": float(np.median(median)), "laplace": float(np.median(laplace))}


def robust_error(tau: float, n: int) -> float:
    """With probability 1 - BETA, what a fraction tau of corrupted points can move the median of n normal points to."""
    share = 0.5 + tau + math.sqrt(math.log(2 / BETA) / (2 * n))
    return float(norm.ppf(share)) if share < 1 else math.inf


def _bounded(scale: Scale, seed: int, sham: str | None, n: int = 300, radius: float = 100.0) -> dict[str, Any]:
    """How often the private median, rho half the predicted error, errs by at most the predicted error."""
    bound = predicted_error(lambda tau: robust_error(tau, n), n, 1, EPS, radius, BETA)
    mechanism = _mechanism(sham, (-radius, radius), bound / 2)
    drawn = [
        mechanism.sample(numpy_rng(seed, "bound", k).normal(size=n), seed=derive(seed, "bounded", k))[0]
        for k in range(scale["draws"])
    ]
    return {"arm": "median", "predicted": bound, "within": float(np.mean(np.abs(drawn) <= bound))}


def _back(seed: int, sham: str | None, n: int = 60, accuracy: float = 2.0) -> dict[str, Any]:
    """The largest log(failure_k / failure_0) / (eps k) over k corrupted points, failing being an error above 2."""
    x, bounds = np.sort(numpy_rng(seed, "back").normal(size=n)), (-20.0, 20.0)
    mechanism, failure = _mechanism(sham, bounds, 0.1), []
    for k in range(n // 2):
        density = mechanism.density(np.concatenate((np.full(k, bounds[1]), x[k:])))
        failure.append(float(density.cdf(-accuracy) + 1 - density.cdf(accuracy)))
    growth = np.log(np.array(failure[1:]) / failure[0]) / (EPS * np.arange(1, len(failure)))
    return {"arm": "median", "growth": growth.max()}


@cache
def _columns() -> dict[str, np.ndarray]:
    cancer, diabetes = load_breast_cancer(), load_diabetes()
    named = dict(zip(cancer.feature_names, cancer.data.T, strict=True))
    return {name: named.get(name, diabetes.target) for name in RANGES}


def _real(scale: Scale, seed: int, sham: str | None) -> dict[str, Any]:
    """The largest over columns of the median relative error over draws."""
    worst = 0.0
    for name, x in _columns().items():
        exact = np.sort(x)[(len(x) - 1) // 2]
        # Each draw stands for one release at eps.
        drawn = _mechanism(sham, RANGES[name]).sample(x, seed=derive(seed, name), size=scale["draws"])
        worst = max(worst, float(np.median(np.abs(drawn - exact)) / exact))
    return {"arm": "median", "relative": worst}


def setup(scale: Scale, seed: int) -> None:
    """Nothing is shared: every arm draws from the seed."""


def experiment(scale: Scale, seed: int, given: None, sham: str | None) -> Table:
    """The audit, errors over n and R, with corruption, against the prediction, on real columns, and the converse."""
    rows: list[dict[str, Any]] = [_audit(scale, seed, sham)]
    for n, radius in product(SIZES, RADII):
        found = _errors(scale, seed, n, radius, sham)
        rows += [{"arm": arm, "n": n, "radius": radius, "error": error} for arm, error in found.items()]
    dirty = _errors(scale, seed, 300, 100, sham, corrupted=0.1)
    rows += [{"arm": arm, "dirty": error} for arm, error in dirty.items()]
    return Table.of([*rows, _bounded(scale, seed, sham), _real(scale, seed, sham), _back(seed, sham)])


def claims(table: Table) -> list[Claim]:
    """The audit decides, and the errors at n = 300, R = 100."""
    both = ("missing-half", "distance-for-length")
    far = ("distance-for-length",)

    def error(arm: str, n: int, radius: int) -> np.ndarray:
        return table.per_seed("error", arm=arm, n=n, radius=radius)

    def growth(arm: str, n: int) -> np.ndarray:
        return error(arm, n, RADII[-1]) / error(arm, n, RADII[0])

    return [
        Claim(
            "all neighbouring samples of 5 points in {0, .., 4}, rho = 0 and 0.5: largest |log ratio| over eps",
            table.per_seed("most") / EPS,
            at_most=1 + 1e-9,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "and it is no idle bound: largest |log ratio| over eps, at the lesser rho",
            table.per_seed("least") / EPS,
            at_least=0.5,
            rule="exact",
        ),
        Claim(
            "path lengths of the median against a search through all samples: largest difference",
            table.per_seed("length_error"),
            at_most=0.0,
            rule="exact",
            refuted_by=far,
        ),
        Claim(
            "n = 300, R = 100, eps = 1: median error of the private median",
            error("median", 300, 100),
            at_most=0.12,
            refuted_by=far,
        ),
        Claim("there the median error of the Laplace mean", error("laplace", 300, 100), at_least=0.3),
        Claim(
            "corrupting k points: largest log(failure_k / failure_0) / (eps k)",
            table.per_seed("growth"),
            at_most=1 + 1e-9,
            rule="exact",
            key=False,
        ),
        *(
            Claim(f"n = {n}: median error of the private median, R = 1000 over R = 10", growth("median", n),
                  at_most=1.6, key=False)
            for n in SIZES[1:]
        ),
        Claim("n = 300: that of the Laplace mean", growth("laplace", 300), at_least=40, key=False),
        Claim(
            "n = 300, R = 100: share of draws within the error that robustness predicts",
            table.per_seed("within"),
            at_least=1 - 2 * BETA - 0.02,
            key=False,
            refuted_by=far,
        ),
        Claim(
            "a tenth of the points at R = 100: median error of the private median",
            table.per_seed("dirty", arm="median"),
            at_most=0.4,
            key=False,
            refuted_by=far,
        ),
        Claim(
            "there that of the Laplace mean",
            table.per_seed("dirty", arm="laplace"),
            at_least=5.0,
            key=False,
        ),
        Claim(
            "real columns with public ranges: largest median relative error",
            table.per_seed("relative"),
            at_most=0.05,
            key=False,
        ),
    ]  # fmt: skip


def figure(table: Table) -> Figure:
    """Median error over the range R, private median and Laplace mean, for each n."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for n, shade in zip(SIZES, ("0.7", "0.4", "0.1"), strict=True):
        for arm, style in (("median", "-o"), ("laplace", "--s")):
            values = [table.per_seed("error", arm=arm, n=n, radius=r).mean() for r in RADII]
            left.plot(RADII, values, style, ms=4, color=shade, label=f"{arm}, n = {n}")
    left.set(xscale="log", yscale="log", xlabel="R", ylabel="median error", title="eps = 1, normal points")
    left.legend(frameon=False, fontsize=7)
    x = np.array([0.0, 1.0, 1.0, 3.0, 4.0])
    t = np.linspace(0, 4, 801)
    for rho in WIDTHS:
        right.plot(t, _mechanism(None, (0.0, 4.0), rho).density(x).pdf(t), label=f"rho = {rho:g}")
    right.set(xlabel="output t", ylabel="density", title="On the sample 0, 1, 1, 3, 4")
    right.legend(frameon=False)
    return drawing
