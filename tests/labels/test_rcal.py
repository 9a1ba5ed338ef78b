"""Exact checks of the robust class Gaussians and of the trainer that samples from them."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from assay.data import Batch, Data
from assay.labels import RCAL, RobustClassGaussians, mean_error_bound
from assay.labels.rcal import KEPT, read, representations
from assay.nets import MLP
from assay.papers import rcal as paper
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import State

SIZES = (40, 30, 8, 5)
PLAIN = RobustClassGaussians(q=2, gamma=0.0, alpha=0.0, lof_neighbors=None, shrinkage=None)


def _points(sizes: tuple[int, ...] = SIZES, m: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    centres = 6 * torch.randn(len(sizes), m, generator=g, dtype=torch.float64)
    return centres[y] + torch.randn(len(y), m, generator=g, dtype=torch.float64), y


def test_without_its_ingredients_it_is_the_sample_mean_and_covariance() -> None:
    z, y = _points()
    fitted = PLAIN.fit(z, y)
    for k in range(4):
        assert torch.allclose(fitted.means_[k], z[y == k].mean(0), atol=1e-12)
        assert torch.allclose(fitted.covs_[k], z[y == k].T.cov(), atol=1e-12)
    assert fitted.inlier_mask_.all()


@pytest.mark.parametrize("dispersion", ["identity", "ones"])
def test_transfer_written_out(dispersion: str) -> None:
    z, y = _points()
    method = RobustClassGaussians(q=1, gamma=0.4, alpha=0.1, dispersion=dispersion, lof_neighbors=None, shrinkage=None)  # type: ignore[arg-type]
    fitted, own = method.fit(z, y), PLAIN.fit(z, y)
    extra = torch.eye(4) if dispersion == "identity" else torch.ones(4, 4)
    for k in (2, 3):
        g = min((0, 1), key=lambda h: float((own.means_[h] - own.means_[k]).norm()))
        assert fitted.neighbors_[k].tolist() == [g]
        assert torch.allclose(fitted.means_[k], 0.4 * own.means_[g] + 0.6 * own.means_[k])
        assert torch.allclose(fitted.covs_[k], 0.16 * own.covs_[g] + 0.36 * own.covs_[k] + 0.1 * extra)
    assert torch.equal(fitted.means_[:2], own.means_[:2])
    assert fitted.neighbors_[:2].tolist() == [[-1], [-1]]


@given(st.integers(0, 50), st.integers(1, 2))
def test_weights_sum_to_one_and_favour_large_and_near_classes(seed: int, q: int) -> None:
    z, y = _points(seed=seed)
    fitted = RobustClassGaussians(q=q, lof_neighbors=None, shrinkage=None).fit(z, y)
    assert torch.allclose(fitted.weights_[2:].sum(1), torch.ones(2).double())
    own = PLAIN.fit(z, y).means_
    for k in (2, 3):
        raw = [SIZES[g] / float((own[g] - own[k]).norm()) ** 2 for g in fitted.neighbors_[k].tolist()]
        assert fitted.weights_[k].tolist() == pytest.approx([r / sum(raw) for r in raw])


@pytest.mark.parametrize("sizes", [SIZES, (5, 4, 3, 1)])
def test_one_dimension_has_variances(sizes: tuple[int, ...]) -> None:
    z, y = _points(sizes, m=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the class of one
        fitted = PLAIN.fit(z, y)
    assert torch.allclose(fitted.covs_[0], z[y == 0].var(0)[:, None])
    assert fitted.score_samples(z).shape == (len(z), 4)
    assert fitted.sample(2, seed=0)[0].shape == (8, 1)


def test_outliers_leave_their_class() -> None:
    z, y = _points()
    z[0] += 50
    fitted = RobustClassGaussians(q=1).fit(z, y)
    assert not fitted.inlier_mask_[0]
    assert fitted.inlier_mask_.double().mean() > 0.85
    assert (fitted.means_[0] - z[1:40].mean(0)).norm() < 0.5


def test_samples_have_the_moments_and_the_counts() -> None:
    z, y = _points()
    fitted = RobustClassGaussians(q=1, lof_neighbors=None).fit(z, y)
    drawn, labels = fitted.sample(20_000, seed=1)
    for k in range(4):
        assert (drawn[labels == k].mean(0) - fitted.means_[k]).norm() < 0.05
        assert (drawn[labels == k].T.cov() - fitted.covs_[k]).norm() < 0.1 * fitted.covs_[k].norm()
    few, labels = fitted.sample(torch.tensor([0, 2, 1, 3]), seed=1)
    assert labels.tolist() == [1, 1, 2, 3, 3, 3]
    assert torch.equal(few, fitted.sample(torch.tensor([0, 2, 1, 3]), seed=1)[0])
    assert not torch.equal(few, fitted.sample(torch.tensor([0, 2, 1, 3]), seed=2)[0])


def test_densities_are_those_of_the_normal_distribution() -> None:
    z, y = _points()
    fitted = PLAIN.fit(z, y)
    expected = [torch.distributions.MultivariateNormal(fitted.means_[k], fitted.covs_[k]).log_prob(z) for k in range(4)]
    assert torch.allclose(fitted.score_samples(z), torch.stack(expected, 1), atol=1e-6)


def test_a_single_sample_has_the_pooled_covariance() -> None:
    z, y = _points((20, 10, 1))
    method = RobustClassGaussians(q=1, gamma=0.0, alpha=0.0, lof_neighbors=None, shrinkage=None)
    with pytest.warns(RuntimeWarning, match="pooled"):
        fitted = method.fit(z, y)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        RobustClassGaussians(q=1, lof_neighbors=None).fit(z, y)
    assert len(told) == 1  # the estimator of a shrunk covariance stays silent
    with pytest.raises(InputError, match="two samples left"):
        method.fit(z[[0, 20, 30]], torch.arange(3))
    pooled = (19 * fitted.covs_[0] + 9 * fitted.covs_[1]) / 28
    assert torch.allclose(fitted.covs_[2], pooled)


def test_bad_input() -> None:
    z, y = _points()
    nan = z.clone()
    nan[0, 0] = math.nan
    for bad in ((nan, y), (z, y[:-1]), (z, y.double()), (z[y > 0], y[y > 0]), (z.long(), y), (z[:0], y[:0])):
        with pytest.raises(InputError):
            PLAIN.fit(*bad)
    with pytest.raises(InputError, match="q=3 with 2 head classes"):
        RobustClassGaussians().fit(z, y)
    wrong = (
        {"gamma": 1.1},
        {"q": 0},
        {"alpha": -1.0},
        {"lof_neighbors": 0},
        {"dispersion": "two"},
        {"shrinkage": "oas"},
        {"contamination": 0.9},
        {"contamination": 0.0},
        {"contamination": "some"},
    )
    for options in wrong:
        with pytest.raises(InputError):
            RobustClassGaussians(**options)
    with pytest.raises(InputError):
        mean_error_bound(0.5, -1, 0, 0)
    with pytest.raises(InputError):
        mean_error_bound(0.5, 0, math.nan, 0)
    for points in (z[:, :3], nan):
        with pytest.raises(InputError, match="score_samples"):
            PLAIN.fit(z, y).score_samples(points)
    with pytest.raises(InputError, match="expected 4"):
        PLAIN.fit(z, y).sample(torch.tensor([1, 2]), seed=0)


def _data() -> tuple[Data, MLP]:
    z, y = _points((12, 10, 4, 3), m=6)
    x = (z / 40 + 0.5).clamp(0, 1).float()
    with seeded(0, "test"):
        return Data(x, y, ("a", "b", "c", "d")), MLP((6,), 4, (5,))


def test_the_loss_is_its_three_terms() -> None:
    data, model = _data()
    batch = data.batch(torch.arange(8))
    kept = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    batch = Batch(batch.x, batch.y, batch.index, {KEPT: kept})
    pool = {"z": kept[:1], "y": torch.tensor([2])}  # a single point: whatever is drawn
    method = RCAL(beta=0.7, mixup_alpha=0.0, gaussians=PLAIN)
    loss = method.loss(model, batch, State(0, data, 1), pool=pool)
    z = model.body(batch.x)
    expected = F.cross_entropy(model.head(z), batch.y) + F.cross_entropy(model.head(kept[:1]), pool["y"])
    assert torch.allclose(loss, expected + 0.7 * (z - kept).square().sum() / 8)
    assert torch.equal(read(model, batch.x, "head")[1], z)
    assert not model.head._forward_pre_hooks


def test_points_fill_the_classes_up() -> None:
    data, model = _data()
    z = representations(model, data.x, "head")
    pool = RCAL(gaussians=PLAIN).drawn(z, data.y, 0)
    assert (torch.bincount(pool["y"], minlength=4) + torch.bincount(data.y)).tolist() == [12] * 4
    assert torch.bincount(RCAL(gaussians=PLAIN, points=3).drawn(z, data.y, 0)["y"]).tolist() == [3] * 4


def test_a_strong_pull_keeps_the_representation_and_a_refresh_changes_the_run() -> None:
    data, model = _data()
    start = representations(model, data.x, "head")

    def moved(**options: float) -> float:
        method = RCAL(gaussians=PLAIN, epochs=4, batch_size=8, lr=1e-2, **options)  # type: ignore[arg-type]
        return float((representations(method.fit(model, data, seed=0), data.x, "head") - start).norm())

    free = moved(beta=0.0)
    assert moved(beta=100.0) < 0.5 * free
    assert moved(beta=0.0, refresh=1) != free


def test_bad_options_of_the_trainer() -> None:
    data, model = _data()
    for options in ({"beta": -1.0}, {"mixup_alpha": math.inf}, {"refresh": -1}, {"points": 0}):
        with pytest.raises(InputError):
            RCAL(**options)
    with pytest.raises(InputError, match="layer 'last'"):
        RCAL(layer="last").fit(model, data, seed=0)
    with pytest.raises(InputError, match=r"class sizes \[12, 10, 4, 3, 0\]"):
        RCAL().fit(model, replace(data, classes=("a", "b", "c", "d", "e")), seed=0)


def test_shams_change_what_they_name() -> None:
    y = torch.arange(5).repeat(60)
    assert paper.protocol(None, y, 4, 60, 1)["off"] == 0
    assert paper.protocol("farthest-heads", y, 4, 60, 1)["off"] == 0
    assert paper.protocol("missing-normaliser", y, 4, 60, 1)["off"] > 0
    real, sham = (paper.simulated(s, 4.0, 4, 0) for s in (None, "farthest-heads"))
    assert real["ratio"] < sham["ratio"]
    assert max(real["excess"], sham["excess"]) <= 1e-9
