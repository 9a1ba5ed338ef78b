"""Large steps: gradient descent on separable logistic regression becomes the batch perceptron, as its step grows.

Key: iterates over the step against the perceptron's, on drawn data; and on the worst-case data, steps over n of the
plain and of the normalised form, with the latter's bound. Support: speed and loss under larger steps on pairs of
digits, and the normalised form where one class is rare.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from assay.data import Data, load_data
from assay.dynamics import (
    BatchPerceptron,
    ConvergenceWarning,
    LinearFit,
    LogisticGD,
    Perceptron,
    separability_report,
)
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.random import numpy_rng

HUGE = 1e10
FOLLOWED = 50
STEPS = (0.1, 1.0, 10.0, 100.0)
PAIRS = ((0, 1), (4, 9))
Points = tuple[np.ndarray, np.ndarray]

PAPER = Paper(
    slug="large-step-perceptron",
    title="From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes",
    authors="Alexander Tyurin",
    year=2024,
    arxiv="2412.08424",
    room="dynamics",
    also=("losses",),
    kind="theory + method",
    implements=(
        "dynamics.LogisticGD",
        "dynamics.BatchPerceptron",
        "dynamics.Perceptron",
        "dynamics.separability_report",
    ),
    claim="Logistic regression by gradient descent becomes the batch perceptron as its step grows, a worst-case factor "
    "n slower than its normalised form.",
    headline="Worst-case data: 2 / 2 / 16 / 157 iterations normalised (step 100 / 10 / 1 / 0.1), 308 plain (step 100).",
    peers=("sklearn.linear_model.Perceptron", "sklearn.svm.SVC"),
    shams={
        "full-first-step": "the batch perceptron starts with the mean of the z_i instead of half of it",
        "frozen-beta": "the normalised form keeps beta = 2, its value at th = 0, instead of 1 / mean(q) at each step",
    },
    scales=(
        Scale("smoke", 1, {"data": "normal", "points": 120, "cap": 2000, "sizes": (50, 100, 200)}),
        Scale("claim", 6, {"data": "mnist", "points": 1500, "cap": 2000, "sizes": (50, 100, 200, 400, 800)}),
        Scale("gpu", 10, {"data": "cifar10", "points": 5000, "cap": 20_000, "sizes": (50, 100, 200, 400, 800)}),
    ),
)


@cache
def _images(source: str) -> Data:
    return load_data(source, "train")


def _draw(scale: Scale, seed: int, pair: tuple[int, int], keep: float = 1.0) -> Points:
    """Points (n, d) of two classes, half each, with labels (n,) in {0, 1}; of class 1, the fraction ``keep``."""
    rng = numpy_rng(seed, "points", *pair)
    half = scale["points"] // 2
    if scale["data"] == "normal":
        direction = rng.normal(size=20)
        direction /= np.linalg.norm(direction)
        pool = rng.normal(size=(40 * half, 20))
        along = pool @ direction
        chosen = [pool[along < -0.2][:half], pool[along > 0.2][: round(keep * half)]]
    else:
        data = _images(scale["data"])
        chosen = []
        for digit, count in zip(pair, (half, round(keep * half)), strict=True):
            rows = rng.choice(np.flatnonzero(data.y.numpy() == digit), count, replace=False)
            chosen.append(data.x.numpy()[rows].reshape(count, -1).astype(float))
    return np.concatenate(chosen), np.repeat([0, 1], [len(c) for c in chosen])


def worst_case(n: int) -> Points:
    """One point (0.5, -1) of class 1 and n - 1 copies of (-0.5, -1) of class 0."""
    return np.array([[0.5, -1.0]] + [[-0.5, -1.0]] * (n - 1)), np.array([1] + [0] * (n - 1))


def _fit(method: LogisticGD | BatchPerceptron | Perceptron, points: Points) -> LinearFit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a capped run is measured as one that took the cap
        return method.fit(*points)


def _normalised(step: float, sham: str | None) -> LogisticGD:
    if sham == "frozen-beta":
        return LogisticGD(step=2 * step, max_iter=20_000)
    return LogisticGD(step=step, normalized=True)


def _limit(points: Points, sham: str | None) -> dict[str, Any]:
    """Largest |th_t / step - p_t| / |p_t| over t <= 50, and the difference of the steps that reach accuracy 1."""
    paths: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    descent = LogisticGD(step=HUGE, callback=lambda t, th: paths[0].append(th / HUGE))
    perceptron = BatchPerceptron(first_half_step=sham != "full-first-step", callback=lambda t, p: paths[1].append(p))
    ends = [_fit(method, points).n_iter_ for method in (descent, perceptron)]
    pairs = list(zip(*paths, strict=False))[1 : FOLLOWED + 1]
    gaps = [float(np.linalg.norm(th - p) / np.linalg.norm(p)) for th, p in pairs]
    return {"gap": max(gaps), "end_difference": abs(ends[0] - ends[1]), "iterations": ends[1]}


def _example() -> float:
    """Largest error of the limits on (1, -1) of class 1 and (-1, -4) of class -1: loss over step at th_1 (1/8), its
    gradient's norm (sqrt(2)/2), th_2 / step (1, 1/4) and the loss there (0)."""
    run = LogisticGD(step=HUGE).fit(np.array([[1.0, -1.0], [-1.0, -4.0]]), np.array([1, -1]))
    first, second = run.history_[1], run.history_[2]
    errors = (first.loss / HUGE - 1 / 8, first.gradient - 0.5**0.5, *(run.coef_ / HUGE - (1, 0.25)), second.loss)
    return float(np.abs(errors).max())


def _speed(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Iterations and largest loss at steps 1 and 100. The loss at th_0 = 0, log 2 at any step, is left out.

    On pair 0/1 the loss at step 1 only falls from there: the start would be all that its largest loss shows.
    """
    rows = []
    for pair in PAIRS:
        points = _draw(scale, seed, pair)
        runs = {step: _fit(LogisticGD(step=step, max_iter=scale["cap"]), points) for step in (1.0, 100.0)}
        small, large = (max(s.loss for s in runs[step].history_[1:]) for step in (1.0, 100.0))
        ratio = runs[1.0].n_iter_ / runs[100.0].n_iter_
        rows.append({"arm": f"pair {pair[0]}/{pair[1]}", "speedup": ratio, "loss_ratio": large / small})
    return rows


def _imbalanced(scale: Scale, seed: int) -> dict[str, Any]:
    """Iterations at step 100 on a drawn pair whose second class keeps 5 %, plain and normalised."""
    first, second = numpy_rng(seed, "pair").choice(10, 2, replace=False)
    points = _draw(scale, seed, (int(first), int(second)), keep=0.05)
    plain, normal = (
        _fit(LogisticGD(step=100, normalized=normalized, max_iter=scale["cap"]), points).n_iter_
        for normalized in (False, True)
    )
    return {"arm": "imbalanced", "plain": plain, "normalised": normal, "saved": plain - normal}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The drawn points, and what no sham touches: speed, imbalance and the example of two points."""
    return {
        "points": _draw(scale, seed, PAIRS[seed % 2]),
        "fixed": [*_speed(scale, seed), _imbalanced(scale, seed), {"arm": "example", "error": _example()}],
    }


@cache
def _on_worst_case(n: int, sham: str | None) -> list[dict[str, Any]]:
    """Iterations on the worst-case data, against their bounds. Nothing here is drawn."""
    points = worst_case(n)
    report = separability_report(*points)
    rows: list[dict[str, Any]] = [{"arm": "plain", "n": n, "iterations": _fit(LogisticGD(step=1e6), points).n_iter_}]
    for step in STEPS:
        took = _fit(_normalised(step, sham), points).n_iter_
        rows.append(
            {"arm": f"normalised {step:g}", "n": n, "iterations": took, "used": took / report.bound_logistic(step)}
        )
    batch, full = BatchPerceptron(), BatchPerceptron(normalize="misclassified")
    for method, bound in (
        (batch, report.bound_batch),
        (full, report.bound_normalized),
        (Perceptron(), report.bound_normalized),
    ):
        rows.append({"arm": "perceptrons", "n": n, "used_perceptron": _fit(method, points).n_iter_ / bound})
    return rows


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The gap to the batch perceptron, and iterations over n against their bounds."""
    rows: list[dict[str, Any]] = [{"arm": "limit", **_limit(given["points"], sham)}, *given["fixed"]]
    for n in scale["sizes"]:
        rows += _on_worst_case(n, sham)
    return Table.of(rows)


def _slope(table: Table, arm: str) -> np.ndarray:
    """Least-squares slope (seeds,) of log iterations in log n."""
    n = table.values("n", arm=arm, seed=table.rows[0]["seed"])
    return table.per_seed("iterations", lambda took: np.polyfit(np.log(n), np.log(took), 1)[0], arm=arm)


def _limit_claims(table: Table) -> list[Claim]:
    return [
        Claim(
            "th_t / step and the batch perceptron's p_t, step 1e10, t <= 50: largest relative distance",
            table.per_seed("gap"),
            at_most=1e-6,
            rule="exact",
            refuted_by=("full-first-step",),
        ),
        Claim(
            "the two reach accuracy 1 at the same step: difference in steps",
            table.per_seed("end_difference"),
            at_most=0,
            rule="exact",
        ),
        Claim(
            "the four limits on the example of two points: largest error",
            table.per_seed("error"),
            at_most=1e-9,
            rule="exact",
            key=False,
        ),
    ]


def _worst_case_claims(table: Table) -> list[Claim]:
    return [
        Claim(
            "worst-case data, plain form at step 1e6: slope of log iterations in log n",
            _slope(table, "plain"),
            at_least=0.9,
            at_most=1.1,
            rule="exact",
        ),
        Claim(
            "worst-case data, normalised form at step 100: slope of log iterations in log n",
            _slope(table, "normalised 100"),
            at_most=0.1,
            rule="exact",
            refuted_by=("frozen-beta",),
        ),
        Claim(
            "worst-case data, normalised form at steps 0.1 to 100: iterations over their bound, largest",
            table.per_seed("used", np.max),
            at_most=1,
            rule="exact",
            refuted_by=("frozen-beta",),
        ),
        Claim(
            "worst-case data, the three perceptrons: iterations over their bound, largest",
            table.per_seed("used_perceptron", np.max),
            at_most=1,
            rule="exact",
            key=False,
        ),
    ]


def _digit_claims(table: Table) -> list[Claim]:
    seeds = len(table.per_seed("gap"))
    majority = seeds // 2 + 1 if seeds < 5 else -(-4 * seeds // 5)
    return [
        Claim(
            "iterations at step 1 over those at step 100, the lesser of two pairs",
            table.per_seed("speedup", np.min),
            at_least=1.3,
            key=False,
        ),
        *(
            Claim(
                f"largest loss from the first step on, at step 100 over that at step 1, pair {a}/{b}",
                table.per_seed("loss_ratio", arm=f"pair {a}/{b}"),
                at_least=5,
                key=False,
            )
            for a, b in PAIRS
        ),
        Claim(
            "with 5 % of one class of a pair, the normalised form saves iterations at step 100",
            table.per_seed("saved"),
            at_least=1,
            rule="k-of-n",
            k=majority,
            key=False,
        ),
    ]


def claims(table: Table) -> list[Claim]:
    """The limit, the slopes in n and the bound decide; the example, speed, loss and imbalance support."""
    return [*_limit_claims(table), *_worst_case_claims(table), *_digit_claims(table)]


def figure(table: Table) -> Figure:
    """Iterations over n on the worst-case data, and over the form where one class is rare."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    own = Table(tuple(r for r in table.rows if r["seed"] == table.rows[0]["seed"]))
    for arm in ("plain", *(f"normalised {step:g}" for step in STEPS)):
        left.loglog(own.values("n", arm=arm), own.values("iterations", arm=arm), "-o", ms=3, label=arm)
    left.set(xlabel="n", ylabel="iterations to accuracy 1", title="Worst-case data (plain: step 1e6)")
    left.legend(frameon=False, fontsize="small")
    both = [table.per_seed(column) for column in ("plain", "normalised")]
    right.plot(["plain", "normalised"], both, "-o", ms=3, color="0.4")
    right.set(ylabel="iterations to accuracy 1", title="One class at 5 %, step 100 (one line a seed)")
    return drawing
