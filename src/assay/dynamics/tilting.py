"""Boundary tilting: how far a classifier's boundary leans away from the one between the class means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, device_of, evaluating

Array = np.ndarray


class LinearEstimator(Protocol):
    """What a path fits: a linear classifier of two classes with scikit-learn's attributes."""

    coef_: Array
    intercept_: Array

    def fit(self, X: Array, y: Array) -> object: ...


@dataclass(frozen=True)
class TiltingReport:
    """How tilted one classifier is. With c its unit normal, and i and j the class means:

    ``angle`` in degrees, between c and i - j; ``cos`` of it; ``strength`` 1 / cos (1 for the classifier between the
    means, infinite at 90 degrees and beyond); ``mean_distance`` |i - j| cos / 2, the signed distance of a class mean
    to the boundary, averaged over both: the same for every intercept.
    """

    angle: float
    cos: float
    strength: float
    mean_distance: float


@dataclass(frozen=True)
class PathPoint:
    """One classifier of a regularisation path: its ``C``, validation ``error`` in [0, 1], and its tilt."""

    C: float
    error: float
    tilt: TiltingReport


def _means(where: str, X: Array, y: Array) -> Array:
    """The class means (K, d) in float64, by ascending label."""
    X, y = np.asarray(X), np.asarray(y)
    if X.ndim != 2 or y.shape != (len(X),) or not len(X):
        raise InputError(f"{where}: X {X.shape} and y {y.shape}; expected (n, d) and (n,) with n >= 1")
    if not np.isfinite(X).all():
        raise InputError(f"{where}: X holds NaN or infinity; expected finite numbers")
    labels = np.unique(y)
    if len(labels) < 2:
        raise InputError(f"{where}: only class {labels[0]} is present; expected at least two classes")
    means = np.stack([X[y == label].mean(0, dtype=float) for label in labels])
    for k, mean in enumerate(means[1:], 1):
        if (mean == means[:k]).all(1).any():
            raise InputError(f"{where}: two classes have the same mean; expected different ones")
    return means


def _two_means(where: str, X: Array, y: Array) -> tuple[Array, Array]:
    """The means of the class with the larger label, which a positive score decides for, and of the other."""
    means = _means(where, X, y)
    if len(means) != 2:
        raise InputError(f"{where}: {len(means)} classes; expected two")
    return means[1], means[0]


def _unit(where: str, w: Array, d: int) -> tuple[Array, float]:
    """w over its norm, and its norm."""
    w = np.asarray(w, float)
    norm = float(np.linalg.norm(w))
    if w.shape != (d,) or not np.isfinite(norm) or norm == 0:
        raise InputError(f"{where}: w has shape {w.shape} and norm {norm:.4g}; expected a finite non-zero ({d},)")
    return w / norm, norm


def _degrees(c: Array, z: Array) -> float:
    """The angle of unit vectors. By atan2, since arccos loses half of the digits near 0."""
    along = float(c @ z)
    return float(np.degrees(np.arctan2(np.linalg.norm(c - along * z), along)))


def deviation_angle(w: Array, X: Array, y: Array) -> float | Array:
    """Degrees in [0, 180] between a boundary's normal and the difference of class means (Tanay & Griffin, 2016,
    arXiv:1608.07690): 0 for the classifier of the nearest class mean, 90 where the boundary holds both means' line.

    w (d,) scores the larger of two labels; X (n, d), y (n,). With w (K, d) for K classes: a symmetric matrix (K, K)
    that compares w_a - w_b with mean_a - mean_b, 0 on the diagonal. Intercepts play no part. Raises InputError when
    shapes disagree, values are not finite, w or a difference of rows is 0, one class is present or means coincide.
    """
    where, w = "deviation_angle", np.asarray(w, float)
    means = _means(where, X, y)
    k, d = means.shape
    if w.ndim == 1:
        i, j = _two_means(where, X, y)
        return _degrees(_unit(where, w, d)[0], _unit(where, i - j, d)[0])
    if w.shape != (k, d):
        raise InputError(f"{where}: w has shape {w.shape} for {k} classes; expected ({d},) or ({k}, {d})")
    angles = np.zeros((k, k))
    for a in range(k):
        for b in range(a):
            c, z = _unit(where, w[a] - w[b], d)[0], _unit(where, means[a] - means[b], d)[0]
            angles[a, b] = angles[b, a] = _degrees(c, z)
    return angles


def adversarial_strength(w: Array, X: Array, y: Array) -> TiltingReport:
    """The tilt of the classifier w (d,) of two classes; arguments and errors as ``deviation_angle``.

    The strength is |i - j| / |i - m(i)|, m the mirror image across the boundary moved to the midpoint of i and j. The
    paper's strength is a growing function of the angle too; this one is 1 / cos.
    """
    i, j = _two_means("adversarial_strength", X, y)
    c, _ = _unit("adversarial_strength", w, len(i))
    gap = float(np.linalg.norm(i - j))
    cos = float(c @ (i - j)) / gap
    angle = _degrees(c, (i - j) / gap)
    return TiltingReport(angle, cos, 1 / cos if angle < 90 else np.inf, gap * cos / 2)


def centroid_classifier(X: Array, y: Array) -> tuple[Array, float]:
    """The unit normal z (d,) and intercept of the boundary halfway between two class means."""
    i, j = _two_means("centroid_classifier", X, y)
    z, _ = _unit("centroid_classifier", i - j, len(i))
    return z, midpoint_intercept(z, X, y)


def midpoint_intercept(w: Array, X: Array, y: Array) -> float:
    """The intercept for which the boundary of w goes through the midpoint of the two class means."""
    i, j = _two_means("midpoint_intercept", X, y)
    return -float(np.asarray(w, float) @ (i + j)) / 2


def mirror(x: Array, w: Array, b: float, scale: float = 1.0) -> Array:
    """x (n, d) or (d,) moved against the boundary w x + b = 0: to its mirror image, or half as far onto it at 0.5."""
    x = np.asarray(x, float)
    c, norm = _unit("mirror", w, x.shape[-1])
    if not np.isfinite(x).all() or not np.isfinite(b):
        raise InputError("mirror: x or b holds NaN or infinity; expected finite numbers")
    return x - 2 * scale * (x @ c + b / norm)[..., None] * c


def tilt(w: Array, e: Array, theta: float) -> Array:
    """The unit normal at ``theta`` degrees from w (d,) towards e (d,): cos(theta) w + sin(theta) e, e made orthogonal
    to w. InputError where e is parallel to w."""
    w = np.asarray(w, float)
    c, _ = _unit("tilt", w, w.size)
    e, _ = _unit("tilt, e", e, w.size)
    across = e - (e @ c) * c
    if np.linalg.norm(across) < 1e-9:
        raise InputError("tilt: e is parallel to w; expected another direction")
    across -= (across @ c) * c
    angle = np.radians(theta)
    return np.cos(angle) * c + np.sin(angle) * across / np.linalg.norm(across)


def principal_directions(X: Array, y: Array) -> tuple[Array, Array]:
    """Variances (m,), ascending, and directions (m, d) of the pooled covariance within classes, over the dimensions
    that vary within a class at all; directions of no variance (below 1e-12 of the largest) are left out."""
    means = _means("principal_directions", X, y)
    within = np.asarray(X, float) - means[np.unique(y, return_inverse=True)[1]]
    alive = np.flatnonzero(within.any(0))
    if not len(alive):
        raise InputError("principal_directions: nothing varies within a class; expected samples that differ")
    variances, vectors = np.linalg.eigh(within[:, alive].T @ within[:, alive] / len(within))
    keep = variances > 1e-12 * variances[-1]
    directions = np.zeros((int(keep.sum()), within.shape[1]))
    directions[:, alive] = vectors[:, keep].T
    return variances[keep], directions


def flat_directions(X: Array, y: Array, k: int, *, dead: bool = False) -> Array:
    """The k orthonormal directions (k, d) along which samples vary least within classes, least first.

    Dimensions that never vary, and combinations of no variance, are excluded: to tilt along them is free. ``dead``
    asks for those instead (unit vectors of the dimensions that never vary). InputError where there are fewer than k.
    """
    if dead:
        means = _means("flat_directions", X, y)
        still = ~(np.asarray(X) != np.asarray(X)[0]).any(0)
        found = np.eye(means.shape[1])[still]
    else:
        found = principal_directions(X, y)[1]
    if not 1 <= k <= len(found):
        raise InputError(f"flat_directions: k={k} of {len(found)} such directions; expected 1 to {len(found)}")
    return found[:k]


def regularisation_path(
    estimator_factory: Callable[[float], LinearEstimator], Cs: Sequence[float], X: Array, y: Array, X_val: Array,
    y_val: Array,
) -> tuple[PathPoint, ...]:  # fmt: skip
    """One classifier for each C, fitted on X (n, d) with two labels y (n,): its error on the validation data, and its
    tilt against the means of X. ``estimator_factory(C)`` gives an unfitted linear classifier as scikit-learn has them.
    """
    points = []
    labels = np.unique(y)
    for C in Cs:
        fitted = estimator_factory(C)
        fitted.fit(X, y)
        w, b = np.ravel(fitted.coef_).astype(float), float(np.ravel(fitted.intercept_)[0])
        report = adversarial_strength(w, X, y)
        decided = labels[(np.asarray(X_val, float) @ w + b > 0).astype(int)]
        points.append(PathPoint(float(C), float(np.mean(decided != np.asarray(y_val))), report))
    return tuple(points)


def type2_excess(path: Sequence[PathPoint], n_val: int) -> Array:
    """Degrees of tilt that buy no accuracy, (len(path),): each angle less that of the most regularised classifier
    whose error is within one standard error (of n_val validation samples) of the least."""
    if not path or n_val < 1:
        raise InputError(f"type2_excess: {len(path)} points, n_val={n_val}; expected at least one of each")
    best = min(p.error for p in path)
    slack = (best * (1 - best) / n_val) ** 0.5
    enough = min((p for p in path if p.error <= best + slack), key=lambda p: p.C)
    return np.array([p.tilt.angle - enough.tilt.angle for p in path])


def deviation_angle_net(
    model: nn.Module, X: Float[Tensor, "n ..."], y: Int[Tensor, " n"], pair: tuple[int, int], *, batch_size: int = BATCH
) -> Float[Tensor, " m"]:
    """An extension to networks: at each of the m samples of classes (a, b) = ``pair``, the degrees (m,) float64 between
    the gradient of logit_a - logit_b and mean_a - mean_b. For a linear model each is ``deviation_angle``.

    Raises InputError for unusable inputs, a class without samples, equal means, or a gradient that is 0.
    """
    check_inputs("deviation_angle_net", X)
    check_labels("deviation_angle_net", y, len(X))
    a, b = pair
    if not ((y == a).any() and (y == b).any()) or a == b:
        raise InputError(f"deviation_angle_net: pair {pair}; expected two classes that y has")
    z = X[y == a].double().mean(0).flatten() - X[y == b].double().mean(0).flatten()
    if not z.any():
        raise InputError(f"deviation_angle_net: the classes {pair} have the same mean; expected different ones")
    device, grads = device_of(model), []
    with evaluating(model), torch.enable_grad():
        for chunk in X[(y == a) | (y == b)].split(batch_size):
            points = chunk.detach().to(device).requires_grad_()
            logits = model(points)
            (grad,) = torch.autograd.grad((logits[:, a] - logits[:, b]).sum(), points)
            grads.append(grad.flatten(1).double().cpu())
    g = torch.cat(grads)
    norms = g.norm(dim=1, keepdim=True)
    if not (torch.isfinite(norms).all() and (norms > 0).all()):
        raise InputError("deviation_angle_net: a gradient is 0 or not finite; expected logits that depend on x")
    g, z = g / norms, z / z.norm()
    along = g @ z
    return torch.rad2deg(torch.atan2((g - along[:, None] * z).norm(dim=1), along))
