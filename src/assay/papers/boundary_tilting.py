"""Boundary tilting: a linear classifier's adversarial strength is its angle to the classifier between the class means.

Key: distances of the class means follow the cosine of the angle exactly; along an SVM's regularisation path the angle
grows, and with it the strength, when error no longer falls; and tilted by 80 degrees along the flattest direction of
the data a classifier keeps its errors and loses the distance. Support: limits, mirror images, tilt without a gain in
accuracy, and images of more pixels. The angle of a network's gradient is an extension that no claim here rests on.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestCentroid
from sklearn.svm import LinearSVC

from assay.data import Data, load_data
from assay.dynamics import (
    adversarial_strength,
    centroid_classifier,
    midpoint_intercept,
    mirror,
    principal_directions,
    regularisation_path,
    tilt,
    type2_excess,
)
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.random import derive, numpy_rng

THETA = 80.0  # degrees
MODERATE, LITTLE = 1e-2, 1.0  # C: where error is low already, and where tilt has gone on growing
Points = tuple[np.ndarray, np.ndarray]

PAPER = Paper(
    slug="boundary-tilting",
    title="A Boundary Tilting Perspective on the Phenomenon of Adversarial Examples",
    authors="Thomas Tanay, Lewis Griffin",
    year=2016,
    arxiv="1608.07690",
    room="dynamics",
    also=("represent",),
    kind="theory + measure",
    implements=(
        "dynamics.deviation_angle",
        "dynamics.adversarial_strength",
        "dynamics.mirror",
        "dynamics.tilt",
        "dynamics.flat_directions",
        "dynamics.regularisation_path",
        "dynamics.type2_excess",
        "dynamics.deviation_angle_net",
    ),
    claim="A linear boundary's adversarial strength is its angle to the one between class means, not its accuracy.",
    headline="MNIST 3 against 7, linear SVM: as accurate with little regularisation, but far stronger examples.",
    peers=("sklearn.neighbors.NearestCentroid", "sklearn.svm.LinearSVC"),
    baselines=("centroid",),
    shams={
        "top-direction": "the boundary is tilted along the direction of most variance instead of least",
        "squared-cosine": "the distance between the means across the boundary follows the squared cosine of the angle",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {"data": "digits", "pair": (3, 8), "train": 60, "validation": 30, "Cs": (1e-2, 3e-2, 1e-1, 1.0)},
        ),
        Scale(
            "claim",
            12,
            {"data": "mnist", "pair": (3, 7), "train": 3000, "validation": 1000}
            | {"Cs": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
        ),
    ),
)


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _points(data: Data, rows: list[np.ndarray]) -> Points:
    """The images at ``rows``, those of each class of the pair, as points (n, d) float64, with labels 0 and 1."""
    x = data.x.numpy()[np.concatenate(rows)]
    return x.reshape(len(x), -1).astype(float), np.repeat([0, 1], [len(r) for r in rows])


def _split(scale: Scale, seed: int) -> tuple[Points, Points, Points]:
    """Balanced training and validation points, drawn from the training images, and all other images of the pair."""
    data, test = _images(scale["data"])
    pair, m, used = scale["pair"], scale["train"], scale["train"] + scale["validation"]
    drawn = [numpy_rng(seed, "rows", k).permutation(np.flatnonzero(data.y.numpy() == k)) for k in pair]
    unused = _points(data, [r[used:] for r in drawn])
    tests = _points(test, [np.flatnonzero(test.y.numpy() == k) for k in pair])
    held = np.concatenate([unused[0], tests[0]]), np.concatenate([unused[1], tests[1]])
    return _points(data, [r[:m] for r in drawn]), _points(data, [r[m:used] for r in drawn]), held


def _svm(C: float, seed: int, scaling: float = 10.0) -> LinearSVC:
    return LinearSVC(loss="hinge", C=C, intercept_scaling=scaling, max_iter=20_000, random_state=seed % 2**31)


def _error(w: np.ndarray, b: float, points: Points) -> float:
    return float(np.mean((points[0] @ w + b > 0) != points[1]))


def _distance(w: np.ndarray, b: float, points: Points) -> float:
    """Mean distance of points to the boundary of a unit normal, counted from their own side."""
    return float(np.mean((2 * points[1] - 1) * (points[0] @ w + b)))


def _path(scale: Scale, seed: int, train: Points, validation: Points, held: Points) -> list[dict[str, Any]]:
    """The SVMs over C: tilt, errors, and the distance between the class means' scores over the norm of w."""
    made: list[LinearSVC] = []

    def factory(C: float) -> LinearSVC:
        made.append(_svm(C, derive(seed, "svm")))
        return made[-1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what it gives is measured as it is
        path = regularisation_path(factory, scale["Cs"], *train, *validation)
    excess = type2_excess(path, len(validation[1]))
    rows = []
    for point, svm, extra in zip(path, made, excess, strict=True):
        scores, norm = svm.decision_function(train[0]), np.linalg.norm(svm.coef_)
        apart = (scores[train[1] == 1].mean() - scores[train[1] == 0].mean()) / norm
        row = {"C": point.C, "angle": point.tilt.angle, "distance": point.tilt.mean_distance, "excess": extra}
        rows.append({"arm": f"C={point.C:g}", **row, "error": 1 - svm.score(*held), "apart": apart})
    return rows


def _centroid(train: Points, held: Points) -> dict[str, Any]:
    """The classifier between the means against scikit-learn's, its strength, and mirror images of tilted ones."""
    z, b = centroid_classifier(*train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pixels that never vary are no trouble here
        reference = NearestCentroid().fit(*train).predict(held[0])
    mean = train[0][train[1] == 1].mean(0)
    gap = np.linalg.norm(mean - train[0][train[1] == 0].mean(0))
    off = []
    for theta in (0.0, 30.0, THETA):
        w = tilt(z, np.linspace(-1, 1, len(z)), theta)
        b_w = midpoint_intercept(w, *train)
        moved = np.linalg.norm(mirror(mean, w, b_w) - mean)
        off.append(abs(gap / moved - adversarial_strength(w, *train).strength))
        off.append(np.abs(mirror(mirror(held[0], w, b_w), w, b_w) - held[0]).max())
        off.append(np.abs(mirror(held[0], w, b_w, 0.5) @ w + b_w).max())
    return {
        "arm": "centroid",
        "error": _error(z, b, held),
        "held_out": _distance(z, b, held),
        "disagree": int(((held[0] @ z + b > 0) != reference).sum()),
        "mirror": max(off),
    }


def _more_pixels(seed: int, train: Points, held: Points, r: int = 2) -> dict[str, Any]:
    """Median max-norm distance of held-out images to the boundary at r x r times the pixels, over that at the original.

    An SVM is trained anew on each, its C over r^2 as the pixels' energy is r^2 times larger.
    """
    side = round(train[0].shape[1] ** 0.5)
    rows = np.concatenate([np.flatnonzero(train[1] == k)[:300] for k in (0, 1)])
    some = held[0][:: max(len(held[0]) // 400, 1)]
    found = []
    for factor in (1, r):
        x, seen = (
            np.kron(points.reshape(-1, side, side), np.ones((1, factor, factor))).reshape(len(points), -1)
            for points in (train[0][rows], some)
        )
        svm = _svm(MODERATE / factor**2, derive(seed, "pixels"), 10.0 * factor).fit(x, train[1][rows])
        found.append(np.median(np.abs(svm.decision_function(seen))) / np.abs(svm.coef_).sum())
    return {"arm": "pixels", "ratio": found[1] / found[0]}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The points, their directions of least and most variance, the SVMs' path, and what no sham touches."""
    train, validation, held = _split(scale, seed)
    _, directions = principal_directions(*train)
    return {
        "train": train,
        "held": held,
        "least": directions[0],
        "most": directions[-1],
        "path": _path(scale, seed, train, validation, held),
        "fixed": [_centroid(train, held), _more_pixels(seed, train, held)],
    }


def _tilted(given: dict[str, Any], sham: str | None) -> dict[str, Any]:
    """The classifier between the means, tilted along the direction of least variance within classes."""
    train, held = given["train"], given["held"]
    z, _ = centroid_classifier(*train)
    w = tilt(z, given["most" if sham == "top-direction" else "least"], THETA)
    b = midpoint_intercept(w, *train)
    start, error, distance = given["fixed"][0], _error(w, b, held), _distance(w, b, held)
    return {
        "arm": "tilted",
        "error": error,
        "held_out": distance,
        "error_change": error - start["error"],
        "shrink": distance / start["held_out"] / np.cos(np.radians(THETA)),
    }


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The identity at every C, the path, and the tilted classifier."""
    x, y = given["train"]
    gap = np.linalg.norm(x[y == 1].mean(0) - x[y == 0].mean(0))
    power = 2 if sham == "squared-cosine" else 1
    rows: list[dict[str, Any]] = [*given["fixed"], *given["path"], _tilted(given, sham)]
    for row in given["path"]:
        off = abs(row["apart"] - gap * np.cos(np.radians(row["angle"])) ** power)
        rows.append({"arm": "identity", "C": row["C"], "off": off})
    return Table.of(rows)


def claims(table: Table) -> list[Claim]:
    """The identity, the path and the tilt along the flattest direction decide; limits and pixels support."""
    little, moderate = f"C={LITTLE:g}", f"C={MODERATE:g}"
    distance = [table.per_seed("distance", arm=arm) for arm in (moderate, little)]
    return [
        Claim(
            "distance between the class means' scores over |w|, less |i - j| cos(angle), every C: largest",
            table.per_seed("off", np.max),
            at_most=1e-6,
            rule="exact",
            refuted_by=("squared-cosine",),
        ),
        Claim(
            "the angle grows at every step of C up to 1: least growth, degrees",
            table.per_seed("angle", lambda angles: np.diff(angles).min()),
            at_least=1,
            rule="exact",
        ),
        Claim(
            "mean distance to the boundary at C = 0.01 over that at C = 1",
            distance[0] / distance[1],
            at_least=2.3,
        ),
        Claim(
            "held-out error at C = 1 less that at C = 0.01",
            table.gain(little, moderate, "error"),
            at_least=-0.006,
            at_most=0.006,
        ),
        Claim(
            "tilted by 80 degrees along the flattest direction: change of held-out error",
            table.per_seed("error_change"),
            at_least=-0.002,
            at_most=0.002,
            refuted_by=("top-direction",),
        ),
        Claim(
            "tilted by 80 degrees along the flattest direction: held-out distance over the untilted times cos 80",
            table.per_seed("shrink"),
            at_least=0.99,
            at_most=1.01,
        ),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    return [
        Claim(
            "the angle at the least C, degrees: the SVM is all but the classifier between the means",
            table.per_seed("angle", np.min),
            at_most=6,
            rule="exact",
            key=False,
        ),
        Claim(
            "decisions on which the classifier between the means and scikit-learn's NearestCentroid differ",
            table.per_seed("disagree"),
            at_most=0,
            rule="exact",
            key=False,
        ),
        Claim(
            "mirror images at 0, 30 and 80 degrees: |i - j| / |i - m(i)| is the strength, m is its own inverse, and "
            "half-way lies on the boundary: largest error",
            table.per_seed("mirror"),
            at_most=1e-9,
            rule="exact",
            key=False,
        ),
        Claim(
            "degrees of tilt at C = 1 beyond the most regularised SVM that is as accurate (validation, one error)",
            table.per_seed("excess", arm=f"C={LITTLE:g}"),
            at_least=10,
            key=False,
        ),
        Claim(
            "four times the pixels: max-norm distance to the boundary over that before",
            table.per_seed("ratio"),
            at_least=0.98,
            at_most=1.02,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Error and mean distance over the angle along the path, and what tilting costs."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    Cs = np.unique(table.values("C"))
    mean = {name: [table.values(name, arm=f"C={C:g}").mean() for C in Cs] for name in ("angle", "error", "distance")}
    left.semilogx(Cs, mean["angle"], "-o", label="angle (degrees)")
    left.semilogx(Cs, 1000 * np.array(mean["error"]), "-o", label="held-out error (per mille)")
    left.set(xlabel="C", title="Linear SVM")
    left.legend(frameon=False)
    right.plot(mean["angle"], mean["distance"], "o", label="SVMs")
    angles = np.linspace(0, 90, 91)
    middle = mean["distance"][0] / np.cos(np.radians(mean["angle"][0]))
    right.plot(angles, middle * np.cos(np.radians(angles)), color="0.6", label="|i - j| cos(angle) / 2")
    right.set(xlabel="angle (degrees)", ylabel="mean distance to the boundary", title="Distance follows the cosine")
    right.legend(frameon=False)
    return drawing
