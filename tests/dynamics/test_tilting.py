"""Boundary tilting: the distance identity, mirror images, tilts, directions, limits of SVMs, and networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestCentroid
from sklearn.svm import LinearSVC
from torch import nn

from assay.data import load_data
from assay.dynamics import (
    PathPoint,
    TiltingReport,
    adversarial_strength,
    centroid_classifier,
    deviation_angle,
    deviation_angle_net,
    flat_directions,
    midpoint_intercept,
    mirror,
    principal_directions,
    regularisation_path,
    tilt,
    type2_excess,
)
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng, seeded


def blobs(seed: int, n: int = 60, d: int = 6, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_rng(seed, "blobs")
    y = np.arange(n) % classes
    return rng.normal(size=(classes, d))[y] + rng.normal(size=(n, d)) * np.linspace(0.1, 2, d), y


@given(seed=st.integers(0, 100), scale=st.floats(1e-3, 1e3), b=st.floats(-5, 5))
@settings(max_examples=40)
def test_distances_follow_the_cosine_whatever_the_intercept(seed: int, scale: float, b: float) -> None:
    x, y = blobs(seed)
    w = scale * numpy_rng(seed, "w").normal(size=6)
    score = (x @ w + b) / np.linalg.norm(w)
    apart = score[y == 1].mean() - score[y == 0].mean()
    report = adversarial_strength(w, x, y)
    gap = np.linalg.norm(x[y == 1].mean(0) - x[y == 0].mean(0))
    assert apart == pytest.approx(gap * report.cos, abs=1e-9)
    assert report.mean_distance == pytest.approx(apart / 2, abs=1e-9)
    assert report.angle == pytest.approx(np.degrees(np.arccos(report.cos)), abs=1e-5)
    assert report.angle == deviation_angle(w, x, y)


@given(seed=st.integers(0, 100), b=st.floats(-5, 5))
@settings(max_examples=25)
def test_mirror_is_its_own_inverse_and_half_of_it_projects(seed: int, b: float) -> None:
    x, _ = blobs(seed)
    w = numpy_rng(seed, "w").normal(size=6)
    m = mirror(x, w, b)
    assert np.allclose(mirror(m, w, b), x, atol=1e-9)
    assert np.allclose(m @ w + b, -(x @ w + b), atol=1e-9)
    assert np.allclose(mirror(x, w, b, 0.5) @ w + b, 0, atol=1e-9)
    shortest = np.abs(x @ w + b) / np.linalg.norm(w)
    assert np.allclose(np.linalg.norm(mirror(x, w, b, 0.5) - x, axis=1), shortest, atol=1e-9)
    assert np.allclose(mirror(x[0], w, b), m[0])


@pytest.mark.parametrize("theta", [0.0, 1e-6, 30.0, 80.0, 89.9])
def test_strength_is_the_mirror_distance_of_a_tilted_classifier(theta: float) -> None:
    """At 1e-6 degrees the arccos of the cosine would be 0."""
    x, y = blobs(1)
    z, b = centroid_classifier(x, y)
    w = tilt(3 * z, numpy_rng(0, "e").normal(size=6), theta)
    assert np.linalg.norm(w) == pytest.approx(1)
    report = adversarial_strength(w, x, y)
    assert report.angle == pytest.approx(theta, rel=1e-6, abs=1e-12)
    i, j = x[y == 1].mean(0), x[y == 0].mean(0)
    moved = np.linalg.norm(mirror(i, w, midpoint_intercept(w, x, y)) - i)
    assert report.strength == pytest.approx(np.linalg.norm(i - j) / moved, rel=1e-9)
    assert w @ (i + j) / 2 + midpoint_intercept(w, x, y) == pytest.approx(0, abs=1e-12)
    assert b == midpoint_intercept(z, x, y)


def test_the_centroid_classifier_is_scikit_learns() -> None:
    x, y = blobs(2, n=200)
    z, b = centroid_classifier(x, y)
    assert np.array_equal(x @ z + b > 0, NearestCentroid().fit(x, y).predict(x) == 1)
    assert adversarial_strength(z, x, y).strength == pytest.approx(1)
    assert deviation_angle(-z, x, y) == pytest.approx(180)
    assert adversarial_strength(-z, x, y).strength == np.inf
    labels = np.where(y == 1, 9, 4)
    assert deviation_angle(z, x, labels) == pytest.approx(0, abs=1e-9)


def test_angles_of_several_classes() -> None:
    x, y = blobs(3, classes=4, n=80)
    means = np.stack([x[y == k].mean(0) for k in range(4)])
    assert np.abs(deviation_angle(5 * means + 1, x, y)).max() < 1e-9
    w = numpy_rng(0, "w").normal(size=(4, 6))
    angles = deviation_angle(w, x, y)
    assert isinstance(angles, np.ndarray)
    two = np.isin(y, (1, 3))
    assert angles[1, 3] == angles[3, 1] == pytest.approx(deviation_angle(w[3] - w[1], x[two], y[two]))


def test_directions_are_those_of_the_pooled_covariance() -> None:
    x, y = blobs(4, n=400)
    x = np.concatenate([x[:, :3], np.zeros((400, 2)), x[:, 3:], x[:, :1]], 1)  # two dead, one repeated
    variances, directions = principal_directions(x, y)
    assert directions.shape == (6, 9)
    assert np.all(np.diff(variances) > 0)
    assert np.allclose(directions @ directions.T, np.eye(6))
    within = x - np.stack([x[y == k].mean(0) for k in (0, 1)])[y]
    assert np.allclose((within @ directions.T).var(0), variances)
    assert np.allclose(flat_directions(x, y, 2), directions[:2])
    assert np.array_equal(flat_directions(x, y, 2, dead=True), np.eye(9)[3:5])
    for k, dead in ((0, False), (7, False), (3, True)):
        with pytest.raises(InputError, match="such directions"):
            flat_directions(x, y, k, dead=dead)


def test_a_flat_direction_tilts_for_free_and_a_wide_one_does_not() -> None:
    rng = numpy_rng(0, "flat")
    y = np.arange(400) % 2
    x = np.stack([2 * y + 0.5 * rng.normal(size=400), 1e-3 * rng.normal(size=400), 3 * rng.normal(size=400)], 1)
    z, b = centroid_classifier(x, y)
    before = ((x @ z + b > 0) != y).mean()
    found = []
    for e in principal_directions(x, y)[1][[0, -1]]:
        w = tilt(z, e, 80)
        found.append(((x @ w + midpoint_intercept(w, x, y) > 0) != y).mean() - before)
    assert abs(found[0]) < 0.01
    assert found[1] > 0.2


def pair(n: int) -> tuple[np.ndarray, np.ndarray]:
    """n images of each of the digits 3 and 8."""
    data = load_data("digits:train")
    rows = np.concatenate([np.flatnonzero(data.y.numpy() == k)[:n] for k in (3, 8)])
    return data.x.numpy()[rows].reshape(2 * n, -1).astype(float), np.repeat([0, 1], n)


def svm(C: float) -> LinearSVC:
    return LinearSVC(loss="hinge", C=C, intercept_scaling=10, random_state=0, max_iter=20_000)


def test_an_svm_starts_between_the_means_and_tilts_as_c_grows() -> None:
    x, y = pair(60)
    path = regularisation_path(svm, (1e-6, 3e-2, 1e-1, 1.0), x, y, x, y)
    assert np.radians(path[0].tilt.angle) < 1e-3
    assert np.all(np.diff([p.tilt.angle for p in path]) > 1)
    assert np.all(np.diff([p.tilt.mean_distance for p in path]) < 0)
    fitted = svm(1.0).fit(x, y)
    assert path[-1].error == pytest.approx(1 - fitted.score(x, y))
    assert path[-1].tilt == adversarial_strength(fitted.coef_[0], x, y)
    assert regularisation_path(svm, (1.0,), x, np.where(y == 1, 8, 3), x, np.where(y == 1, 8, 3))[0].error == (
        path[-1].error
    )


def test_excess_is_counted_from_the_most_regularised_that_is_good_enough() -> None:
    def at(C: float, error: float, angle: float) -> PathPoint:
        return PathPoint(C, error, TiltingReport(angle, 1.0, 1.0, 1.0))

    path = (at(1e-3, 0.2, 5), at(1e-2, 0.11, 20), at(1e-1, 0.1, 40), at(1, 0.1, 70))
    assert type2_excess(path, 100).tolist() == [-15, 0, 20, 50]
    assert type2_excess(path, 10_000).tolist() == [-35, -20, 0, 30]
    with pytest.raises(InputError, match="at least one"):
        type2_excess((), 10)


def test_a_linear_network_has_one_angle_and_others_have_many() -> None:
    x, y = blobs(5, classes=3)
    with seeded(0, "net"):
        linear, deep = nn.Linear(6, 3).double(), MLP((6,), 3, (16,)).double()
    two = np.isin(y, (0, 2))
    w = linear.weight.detach().numpy()
    xt, yt = torch.from_numpy(x), torch.from_numpy(y)
    angles = deviation_angle_net(linear, xt, yt, (2, 0))
    assert angles.shape == (int(two.sum()),)
    assert np.allclose(angles, deviation_angle(w[2] - w[0], x[two], y[two]))
    before = [p.clone() for p in deep.parameters()]
    some = deviation_angle_net(deep, xt, yt, (2, 0))
    with torch.no_grad():
        assert torch.equal(some, deviation_angle_net(deep, xt, yt, (2, 0)))
    assert float(some.std()) > 0.1
    assert torch.allclose(some, deviation_angle_net(deep, xt, yt, (2, 0), batch_size=7))
    assert all(torch.equal(a, b) and b.requires_grad for a, b in zip(before, deep.parameters(), strict=True))
    assert not xt.requires_grad
    with pytest.raises(InputError, match="two classes"):
        deviation_angle_net(deep, xt, yt, (2, 2))
    with pytest.raises(InputError, match="same mean"):
        deviation_angle_net(deep, torch.ones_like(xt), yt, (2, 0))
    with torch.no_grad():
        linear.weight.zero_()
    with pytest.raises(InputError, match="gradient is 0"):
        deviation_angle_net(linear, xt, yt, (2, 0))


def test_bad_input() -> None:
    x, y = blobs(0)
    w = np.ones(6)
    cases = (
        ("only class", w, x[y == 0], y[y == 0]),
        ("same mean", w, np.ones_like(x), y),
        ("NaN", w, np.where(x > 1, np.nan, x), y),
        ("non-zero", 0 * w, x, y),
        ("non-zero", w[:5], x, y),
        ("expected", w, x, y[:5]),
        ("two", w, *blobs(0, classes=3)),
    )
    for text, normal, points, labels in cases:
        for function in (deviation_angle, adversarial_strength):
            with pytest.raises(InputError, match=text):
                function(normal, points, labels)
    with pytest.raises(InputError, match="for 2 classes"):
        deviation_angle(np.ones((3, 6)), x, y)
    with pytest.raises(InputError, match="parallel"):
        tilt(w, 2 * w, 10)
    with pytest.raises(InputError, match="NaN"):
        mirror(x, w, float("nan"))
    with pytest.raises(InputError, match="varies"):
        principal_directions(np.array([[0.0], [1.0]]), np.array([0, 1]))
