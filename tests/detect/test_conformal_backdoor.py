"""Conformal thresholds, the shrunk Mahalanobis score, STRIP and the Gaussian powers against other ways to get them."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.covariance import OAS, LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import nn

from assay.data import Data, load_data
from assay.detect import (
    MSP,
    STRIP,
    ConformalDetector,
    Energy,
    ShrunkMahalanobis,
    conformal_pvalues,
    conformal_rank,
    conformal_threshold,
    dkw_level,
    lr_power,
    mahalanobis_power,
    optimal_lr_score,
)
from assay.nets import SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.inference import features, predict
from assay.runtime.random import numpy_rng, seeded
from assay.training import Supervised

TRAIN, TEST = load_data("digits:train"), load_data("digits:test")


@pytest.fixture(scope="module")
def cnn() -> nn.Module:
    with seeded(0, "init"):
        model = SmallCNN(widths=(8, 16), hidden=32)
    return Supervised(epochs=5).fit(model, TRAIN, seed=0)


def test_the_dkw_level_of_the_dossier() -> None:
    assert dkw_level(1000, 0.1, 0.05) == pytest.approx(0.9429, abs=5e-5)
    assert conformal_rank(1000, 0.1) == 943
    assert conformal_rank(738, 0.05) == 738  # the least n for alpha = delta = .05
    assert conformal_rank(737, 0.05) == 738
    assert dkw_level(1000, 0.1, 0.05, one_sided=True) < dkw_level(1000, 0.1, 0.05)


@settings(max_examples=60)
@given(st.integers(1, 3000), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_ranks_are_the_least_that_keep_their_promise(n: int, alpha: float, delta: float) -> None:
    """The share of clean inputs above the k-th of n scores is Beta(n + 1 - k, k)."""
    k = {m: conformal_rank(n, alpha, delta=delta, method=m) for m in ("pac", "beta", "marginal")}
    assert k["beta"] <= k["pac"]
    if k["marginal"] <= n:
        assert 1 - k["marginal"] / (n + 1) <= alpha + 1e-9
        assert k["marginal"] == 1 or 1 - (k["marginal"] - 1) / (n + 1) > alpha - 1e-9
    for method in ("pac", "beta"):
        if k[method] <= n:
            assert stats.beta.cdf(alpha, n + 1 - k[method], k[method]) >= 1 - delta - 1e-9
    if 1 < k["beta"] <= n:
        assert stats.beta.cdf(alpha, n + 2 - k["beta"], k["beta"] - 1) < 1 - delta
    if k["pac"] <= n:
        assert k["pac"] / n >= dkw_level(n, alpha, delta) - 1e-9


def test_thresholds_are_order_statistics_or_infinite() -> None:
    values = numpy_rng(0, "values").normal(size=400)
    for method in ("pac", "beta", "marginal"):
        rank = conformal_rank(400, 0.1, method=method)
        assert conformal_threshold(values, 0.1, method=method) == np.sort(values)[rank - 1]
    level = dkw_level(400, 0.1)
    assert conformal_threshold(values, 0.1) == np.quantile(values, level, method="inverted_cdf")
    with pytest.warns(UserWarning, match="too few"):
        assert conformal_threshold(values, 0.05) == math.inf
    with pytest.warns(UserWarning, match="too few"):
        assert conformal_threshold(values[:8], 0.1, method="marginal") == math.inf


def test_pvalues_count_ties_and_are_uniform_on_clean_scores() -> None:
    clean = np.array([3.0, 1.0, 2.0, 2.0])
    np.testing.assert_allclose(conformal_pvalues(clean, np.array([0.0, 2.0, 2.5, 3.0, 9.0])), [1, 0.8, 0.4, 0.4, 0.2])
    values = numpy_rng(0, "p").normal(size=(4000, 20))
    p = np.array([conformal_pvalues(v[:19], v[19:])[0] for v in values])
    counts = np.bincount(np.round(p * 20).astype(int), minlength=21)[1:]
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [{"n": 0}, {"alpha": 0.0}, {"alpha": 1.0}, {"delta": 0.0}, {"delta": 0.6, "one_sided": True}, {"method": "sure"}],
)
def test_ranks_refuse_bad_input(wrong) -> None:
    with pytest.raises(InputError, match=r"conformal|guarantee"):
        conformal_rank(**{"n": 10, "alpha": 0.1, **wrong})


def test_thresholds_refuse_nan() -> None:
    with pytest.raises(InputError, match="1 of 2 scores are NaN"):
        conformal_threshold(np.array([1.0, math.nan]), 0.1)


@pytest.mark.parametrize(("shrinkage", "estimator"), [("oas", OAS), ("ledoit-wolf", LedoitWolf)])
def test_score_is_sklearns_distance_to_the_predicted_class(cnn: nn.Module, shrinkage, estimator) -> None:
    val, x = TEST[:200], TEST.x[200:260]
    fitted = ShrunkMahalanobis(shrinkage=shrinkage).fit(cnn, val)
    f, probe = (features(cnn, z, ["body.6"])["body.6"].double().numpy() for z in (val.x, x))
    mine, theirs = (predict(cnn, z).argmax(1).numpy() for z in (val.x, x))
    means = np.stack([f[mine == c].mean(0) for c in range(10)])
    reference = estimator(assume_centered=True).fit(f - means[mine])
    np.testing.assert_allclose(fitted.score(x), reference.mahalanobis(probe - means[theirs]), rtol=1e-6)
    assert fitted.shrinkage_ == pytest.approx(reference.shrinkage_)


def test_pooled_and_unshrunk_variants(cnn: nn.Module) -> None:
    val, x = TEST[:200], TEST.x[200:260]
    f, probe = (features(cnn, z, ["body.6"])["body.6"].double().numpy() for z in (val.x, x))
    centred = f - f.mean(0)
    s = centred.T @ centred / len(f)
    for b in (0.0, 0.3, 1.0):
        inverse = np.linalg.pinv((1 - b) * s + b * np.trace(s) / 32 * np.eye(32), rcond=1e-12, hermitian=True)
        z = probe - f.mean(0)
        fitted = ShrunkMahalanobis(shrinkage=b, per_class=False).fit(cnn, val)
        np.testing.assert_allclose(fitted.score(x), np.einsum("ni,ij,nj->n", z, inverse, z), rtol=1e-6)


def test_classes_with_one_sample_take_the_mean_of_all(cnn: nn.Module) -> None:
    predicted = predict(cnn, TEST.x).argmax(1)
    few = torch.cat([torch.where(predicted == c)[0][:20] for c in (1, 2, 3)] + [torch.where(predicted == 7)[0][:1]])
    fitted = ShrunkMahalanobis().fit(cnn, TEST[few])
    mean = features(cnn, TEST.x[few], ["body.6"])["body.6"].double().mean(0)
    torch.testing.assert_close(fitted.gaussian_.mean_[[0, 7]], mean.expand(2, -1))
    assert not torch.allclose(fitted.gaussian_.mean_[1], mean)
    assert torch.isfinite(fitted.score(TEST.x)).all()


class _Mapped(nn.Module):
    """The latent ``z`` under an affine map, with logits that do not change."""

    def __init__(self, mapped: bool) -> None:
        super().__init__()
        rng = numpy_rng(3, "map")
        turn = np.linalg.qr(rng.normal(size=(5, 5)))[0] * np.linspace(0.2, 5, 5)
        self.latent = nn.Linear(5, 5).double()
        self.logits = nn.Linear(5, 3, bias=False).double()
        with torch.no_grad():
            self.latent.weight.copy_(torch.from_numpy(turn) if mapped else torch.eye(5))
            self.latent.bias.fill_(0.7 if mapped else 0.0)
            self.logits.weight.copy_(torch.from_numpy(rng.normal(size=(3, 5))))

    def forward(self, x):
        self.latent(x)
        return self.logits(x)


def test_unshrunk_scores_do_not_change_under_affine_maps_of_the_latent() -> None:
    x = torch.from_numpy(numpy_rng(3, "x").normal(size=(200, 5)))
    data = Data(x, torch.arange(200) % 3, ("a", "b", "c"), (-9.0, 9.0))
    for per_class in (True, False):
        plain, other, shrunk = (
            ShrunkMahalanobis(layer="latent", shrinkage=b, per_class=per_class).fit(_Mapped(mapped), data).score(x)
            for b, mapped in ((0.0, False), (0.0, True), (0.5, True))
        )
        torch.testing.assert_close(plain, other, rtol=1e-8, atol=1e-8)
        assert not torch.allclose(plain, shrunk, rtol=0.05)


def test_shrunk_mahalanobis_refuses_bad_shrinkage(cnn: nn.Module) -> None:
    for wrong in (-0.1, 1.1, "much"):
        with pytest.raises(InputError, match="shrinkage"):
            ShrunkMahalanobis(shrinkage=wrong).fit(cnn, TEST[:50])
    with torch.no_grad():
        broken = SmallCNN(widths=(8, 16), hidden=32)
        broken.body[5].weight.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        ShrunkMahalanobis(layer="body.6").fit(broken, TEST[:50])


def test_conformal_detector_flags_above_its_threshold(cnn: nn.Module) -> None:
    val, rest = TEST[:300], TEST.x[300:]
    fitted = ConformalDetector(alpha=0.1, method="marginal").fit(cnn, val)
    first, second = val.split(0.5, seed=0)
    base = ShrunkMahalanobis().fit(cnn, first)
    clean = base.score(second.x).numpy()
    assert fitted.threshold_ == np.sort(clean)[math.ceil(151 * 0.9) - 1]
    torch.testing.assert_close(fitted.score(rest), base.score(rest))
    np.testing.assert_array_equal(fitted.predict(rest), base.score(rest).numpy() > fitted.threshold_)
    np.testing.assert_allclose(fitted.pvalue(rest), conformal_pvalues(clean, base.score(rest).numpy()))
    np.testing.assert_array_equal(fitted.predict(rest), fitted.pvalue(rest) <= 0.1)
    whole = ConformalDetector(alpha=0.1, method="marginal").fit(cnn, first, second)
    assert (whole.threshold_, whole.threshold_from_) == (fitted.threshold_, "holdout")
    with pytest.warns(UserWarning, match="too few"):
        assert not ConformalDetector().fit(cnn, val).predict(rest).any()


def test_reused_validation_breaks_the_promise_and_halves_keep_it(cnn: nn.Module) -> None:
    pool, split, reused = load_data("digits:test"), [], []
    for seed in range(40):
        val, rest = pool.split(80 / len(pool), seed=seed)
        fitted = ConformalDetector(alpha=0.1, method="marginal", seed=seed)
        split.append(fitted.fit(cnn, val).predict(rest.x).mean())
        reused.append(fitted.fit(cnn, val, val).predict(rest.x).mean())
    assert 0.075 < np.mean(split) < 0.12
    assert np.mean(reused) > 0.2


def test_several_detectors_share_alpha_or_agree(cnn: nn.Module) -> None:
    first, second, rest = TEST[:300], TEST[300:500], TEST.x[500:]
    detectors = (ShrunkMahalanobis(), Energy(), MSP())
    alone = [d.fit(cnn, first, second) for d in detectors]
    union, all_ = (
        ConformalDetector(detectors=detectors, alpha=0.15, method="marginal", combine=c).fit(cnn, first, second)
        for c in ("any", "all")
    )
    flags = np.stack(
        [a.score(rest).numpy() > conformal_threshold(a.reference_, 0.05, method="marginal") for a in alone]
    )
    np.testing.assert_array_equal(union.predict(rest), flags.any(0))
    np.testing.assert_array_equal(union.predict(rest), union.pvalue(rest) <= 0.15 + 1e-12)
    flags = np.stack(
        [a.score(rest).numpy() > conformal_threshold(a.reference_, 0.15, method="marginal") for a in alone]
    )
    np.testing.assert_array_equal(all_.predict(rest), flags.all(0))
    np.testing.assert_array_equal(all_.predict(rest), all_.pvalue(rest) <= 0.15 + 1e-12)
    np.testing.assert_allclose(union.score(rest), -np.log(union.pvalue(rest)))
    with pytest.raises(InputError, match="3 detectors"):
        union.threshold_  # noqa: B018
    with pytest.raises(InputError, match="no gradient"):
        union.graph(rest)
    for wrong in ({"detectors": ()}, {"combine": "most"}):
        with pytest.raises(InputError, match="detectors"):
            ConformalDetector(**wrong).fit(cnn, first)


def test_strip_is_the_mean_entropy_over_superpositions(cnn: nn.Module) -> None:
    fitted = STRIP(overlays=7, seed=3).fit(cnn, TRAIN)
    over = TRAIN.limit(7, seed=3).x
    x = TEST.x[:9]
    for k in range(9):
        p = predict(cnn, (x[k] + over).clamp(0, 1)).double().softmax(1).numpy()
        assert fitted.score(x)[k] == pytest.approx(-stats.entropy(p, base=2, axis=1).mean(), rel=1e-5)
    with pytest.raises(InputError, match="overlays"):
        STRIP(overlays=0).fit(cnn, TRAIN)


def test_gaussian_scores_and_powers_are_their_closed_forms() -> None:
    rng = numpy_rng(0, "gauss")
    d, n = 20, 40_000
    root = rng.normal(size=(d, d)) / 4 + np.eye(d)
    cov, mean, delta = root @ root.T, rng.normal(size=d), rng.normal(size=d)
    delta *= 3 / math.sqrt(delta @ np.linalg.solve(cov, delta))
    clean = mean + rng.normal(size=(n, d)) @ root.T
    moved = clean[::-1] + delta
    given = [torch.from_numpy(a) for a in (mean, cov, delta)]
    a, b = (optimal_lr_score(torch.from_numpy(z.copy()), *given).numpy() for z in (clean, moved))
    ratio = stats.multivariate_normal(mean + delta, cov).logpdf(clean) - stats.multivariate_normal(mean, cov).logpdf(
        clean
    )
    np.testing.assert_allclose(a - a[0], ratio - ratio[0], atol=1e-8)
    label = np.repeat([0, 1], n)
    assert roc_auc_score(label, np.r_[a, b]) == pytest.approx(stats.norm.cdf(3 / math.sqrt(2)), abs=0.005)
    assert (b > np.quantile(a, 0.9)).mean() == pytest.approx(lr_power(3, 0.1), abs=0.01)
    distance = [np.einsum("ni,in->n", z - mean, np.linalg.solve(cov, (z - mean).T)) for z in (clean, moved)]
    share = (distance[1] > np.quantile(distance[0], 0.9)).mean()
    assert share == pytest.approx(mahalanobis_power(3, d, 0.1), abs=0.01)
    assert mahalanobis_power(3, 1, 0.1) == pytest.approx(
        stats.norm.sf(stats.norm.isf(0.05) + 3) + lr_power(3, 0.05), rel=1e-9
    )
    assert mahalanobis_power(0, d, 0.1) == pytest.approx(0.1)
    assert lr_power(0, 0.1) == pytest.approx(0.1)


def test_gaussian_functions_refuse_bad_input() -> None:
    eye = torch.eye(3)
    with pytest.raises(InputError, match="singular"):
        optimal_lr_score(eye, eye[0], torch.zeros(3, 3), eye[0])
    for call in (lambda: lr_power(-1, 0.1), lambda: lr_power(1, 0), lambda: mahalanobis_power(1, 2, 1.0)):
        with pytest.raises(InputError, match="expected delta_maha"):
            call()
    with pytest.raises(InputError, match="d=0"):
        mahalanobis_power(1, 0, 0.1)


def test_a_large_sample_gives_no_warning(cnn: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isfinite(ConformalDetector(alpha=0.1).fit(cnn, TRAIN).threshold_)
