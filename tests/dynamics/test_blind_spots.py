"""Measures of how far confidence reaches: grids, quantiles, similarity, pairs of samples, and the report."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate
from torch import Tensor, nn

from assay import load_data
from assay.dynamics import (
    LevelSetTraversal,
    blind_spot_report,
    linear_path_confidence,
    other_class,
    path_width,
    structural_similarity,
    triangle_confidence,
)
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import Supervised


class Gap(nn.Module):
    """p of class 0 is sigmoid(weight . x)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        gap = x.flatten(1) @ self.weight
        return torch.stack((gap, torch.zeros_like(gap)), 1)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT = torch.tensor([3.0, -2.0, 1.0, 0.5], dtype=torch.float64)


def test_linear_path_is_that_of_the_closed_form() -> None:
    x, out, y = uniform(5, 4), uniform(5, 4, seed=1), torch.tensor([0, 1, 0, 1, 0])
    found = linear_path_confidence(Gap(WEIGHT), x, out, y, n=7)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    gap = (1 - t) * (x @ WEIGHT)[:, None] + t * (out @ WEIGHT)[:, None]
    torch.testing.assert_close(found, torch.where((y == 0)[:, None], gap, -gap).sigmoid(), rtol=0, atol=1e-12)
    torch.testing.assert_close(linear_path_confidence(Gap(WEIGHT), x, out, y, n=7, batch_size=1), found)


def test_triangle_of_the_closed_form() -> None:
    x, a, b = uniform(3, 4), uniform(3, 4, seed=1), uniform(3, 4, seed=2)
    y = torch.zeros(3, dtype=torch.int64)
    found = triangle_confidence(Gap(WEIGHT), x, a, b, y, drops=(0.0, 0.05))
    assert found.confs.shape == (3, 66)
    assert found.weights[0].tolist() == [0, 0]
    grid = [(i / 10, j / 10) for i in range(11) for j in range(11 - i)]
    points = torch.stack([(1 - s - t) * x + s * a + t * b for s, t in grid], 1)
    p = (points @ WEIGHT).sigmoid()
    torch.testing.assert_close(found.confs, p, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.mean, p.mean(1))
    torch.testing.assert_close(found.fraction[0.05], (p > p[:, :1] - 0.05).double().mean(1))
    edges = torch.cat([p[:, [k for k, g in enumerate(grid) if g[i] == 0]] for i in (0, 1)], 1)
    torch.testing.assert_close(found.path, edges.mean(1))
    torch.testing.assert_close(found.edge_drop, (edges - p[:, :1]).min(1).values)
    same = triangle_confidence(Gap(WEIGHT), x, x, x, y)
    assert same.fraction[0.1].tolist() == [1, 1, 1]
    assert same.edge_drop.abs().max() < 1e-12


@pytest.mark.parametrize("n", [1, 2, 10])
def test_triangle_grid_has_that_many_points(n: int) -> None:
    x = uniform(1, 4)
    weights = triangle_confidence(Gap(WEIGHT), x, x, x, torch.tensor([0]), n).weights
    assert len(weights) == (n + 1) * (n + 2) // 2
    assert len(weights.unique(dim=0)) == len(weights)
    assert weights.sum(1).max() <= 1 + 1e-12


def test_width_is_zero_along_a_level_set_and_grows_with_the_radius() -> None:
    x, y = 0.4 + 0.2 * uniform(3, 4), torch.zeros(3, dtype=torch.int64)
    conf = (x @ WEIGHT).sigmoid()
    across = WEIGHT.expand(3, 4)  # what is at right angles to the gradient stays on the level set
    found = path_width(Gap(WEIGHT), x, y, across, (0.1, 0.2), 64, seed=0)
    torch.testing.assert_close(found, conf[:, None, None].expand(3, 2, 2), rtol=0, atol=1e-9)
    free = path_width(Gap(WEIGHT), x, y, torch.zeros_like(x), (0.0, 0.1, 0.3), 64, seed=0)
    width = free[..., 1] - free[..., 0]
    torch.testing.assert_close(free[:, 0], conf[:, None].expand(3, 2))
    assert (width.diff(dim=1) > 0).all()
    small = path_width(Gap(WEIGHT), x[1:], y[1:], torch.zeros_like(x[1:]), (0.3,), 64, seed=0, index=torch.arange(1, 3))
    assert small[:, 0].equal(free[1:, 2])


def test_similarity_is_that_of_a_plain_filter() -> None:
    x, y = uniform(2, 3, 16, 14), uniform(2, 3, 16, 14, seed=1)
    y = 0.7 * x + 0.3 * y
    offset = np.arange(11) - 5
    weight = np.exp(-(offset**2) / 4.5)
    kernel = np.outer(weight, weight) / weight.sum() ** 2

    def local(z: np.ndarray) -> np.ndarray:
        return correlate(z, kernel)[5:-5, 5:-5]

    for k in range(2):
        found = []
        for u, v in zip(x[k].numpy(), y[k].numpy(), strict=True):
            mu, mv = local(u), local(v)
            su, sv, suv = local(u * u) - mu**2, local(v * v) - mv**2, local(u * v) - mu * mv
            top = (2 * mu * mv + 1e-4) * (2 * suv + 9e-4)
            found.append((top / ((mu**2 + mv**2 + 1e-4) * (su + sv + 9e-4))).mean())
        assert structural_similarity(x, y)[k].item() == pytest.approx(np.mean(found), abs=1e-12)
    torch.testing.assert_close(structural_similarity(x, x), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(structural_similarity(x, y), structural_similarity(y, x))
    torch.testing.assert_close(structural_similarity(x, y), structural_similarity(2 * x, 2 * y, data_range=2.0))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.integers(1, 3), st.integers(0, 5))
def test_pairs_are_permutations_to_other_classes(labels: list[int], shifts: int, seed: int) -> None:
    y = torch.tensor(labels)
    most = int(torch.bincount(y).max())
    if len(y) < 2 * most + shifts - 1:
        with pytest.raises(InputError, match="in one class"):
            other_class(y, shifts, seed=seed)
        return
    pairs = other_class(y, shifts, seed=seed)
    for row in pairs:
        assert sorted(row.tolist()) == list(range(len(y)))
        assert (y[row] != y).all()
    assert all(len(set(column)) == shifts for column in pairs.T.tolist())
    assert pairs.equal(other_class(y, shifts, seed=seed))


def test_report_holds_what_its_parts_give() -> None:
    train, test = (load_data(f"digits:{part}") for part in ("train", "test"))
    with seeded(0, "init"):
        start = MLP(train.shape, 10, (32,))
    model = Supervised(epochs=10, lr=1e-2).fit(start, train, seed=0)
    walk, random = LevelSetTraversal(step=5e-2, steps=20), torch.get_rng_state()
    report = blind_spot_report(model, test.x, test.y, 16, seed=1, traversal=walk)
    assert torch.get_rng_state().equal(random)
    p = model(test.x[report.sources]).softmax(1)
    assert (p.max(1).values >= 0.6).all()
    assert p.argmax(1).equal(test.y[report.sources])
    for k, found in enumerate(report.results):
        target = test.x[report.targets[k]]
        assert (test.y[report.targets[k]] != test.y[report.sources]).all()
        left = found.x - target
        torch.testing.assert_close(report.distance[k], left.flatten(1).norm(dim=1))
        torch.testing.assert_close(report.rmse[k], left.square().flatten(1).mean(1).sqrt())
        torch.testing.assert_close(report.linf[k], left.abs().flatten(1).max(1).values)
        torch.testing.assert_close(report.ssim[k], structural_similarity(found.x, target, window=7))
        torch.testing.assert_close(report.linear[k][:, -1], found.conf, rtol=0, atol=1e-5)
    assert (report.line <= report.gap + 1e-6).all()
    summary = report.summary()
    assert summary["conf"] == pytest.approx(report.conf.mean().item())
    assert summary["linear_least"] <= summary["linear"]
    assert {"triangle@0", "triangle@0.2"} <= set(summary)
    again = blind_spot_report(model, test.x, test.y, 16, seed=1, traversal=walk, batch_size=5)
    torch.testing.assert_close(again.distance, report.distance, rtol=0, atol=1e-4)
    flat = blind_spot_report(model, test.x.flatten(1), test.y, 16, seed=1, traversal=walk)
    assert flat.ssim.isnan().all()
    torch.testing.assert_close(flat.distance, report.distance)


def test_bad_input() -> None:
    model, x, y = Gap(WEIGHT), uniform(3, 4), torch.zeros(3, dtype=torch.int64)
    images = uniform(2, 1, 12, 12)
    cases = [
        lambda: linear_path_confidence(model, x, x[:2], y),
        lambda: linear_path_confidence(model, x, x * torch.nan, y),
        lambda: linear_path_confidence(model, x, x, y, n=1),
        lambda: linear_path_confidence(model, x, x, y + 2),
        lambda: linear_path_confidence(model, x, x, y[:2]),
        lambda: triangle_confidence(model, x, x, x[:2], y),
        lambda: triangle_confidence(model, x, x, x, y, 0),
        lambda: path_width(model, x, y, x[:2], seed=0),
        lambda: path_width(model, x, y, x, (), seed=0),
        lambda: path_width(model, x, y + 2, x, seed=0),
        lambda: path_width(model, x, y, x, (-1.0,), seed=0),
        lambda: path_width(model, x, y, x, n_vec=0, seed=0),
        lambda: structural_similarity(images, images[:1]),
        lambda: structural_similarity(x, x),
        lambda: structural_similarity(images, images, window=13),
        lambda: structural_similarity(images, images, window=4),
        lambda: structural_similarity(images, images, data_range=0.0),
        lambda: other_class(torch.tensor([0, 0, 1]), 1, seed=0),
        lambda: other_class(torch.zeros(0, dtype=torch.int64), 1, seed=0),
        lambda: blind_spot_report(model, x, y, 4, seed=0),
        lambda: blind_spot_report(model, x + 1, y, 2, seed=0),
    ]
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)
