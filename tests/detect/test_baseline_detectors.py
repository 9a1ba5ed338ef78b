"""ODIN, nearest neighbours, feature squeezing, LID and the inspectors against their formulas and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, silhouette_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch import nn

from assay.attacks import DDN
from assay.data import Data, load_data
from assay.detect import (
    BEYOND,
    KNN,
    LID,
    MSP,
    ODIN,
    STRIP,
    ActivationClustering,
    ConformalDetector,
    Energy,
    FeatureSqueezing,
    SpectralSignatures,
    exclusionary_reclassification,
    exclusionary_score,
)
from assay.detect.base import Detector
from assay.detect.layers import latents
from assay.detect.lid import local_dimension
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


def test_odin_is_its_formula_on_a_linear_model() -> None:
    rng = numpy_rng(0, "odin")
    model = nn.Linear(6, 4).double()
    x = torch.from_numpy(rng.uniform(size=(80, 6)))
    data = Data(x, torch.arange(80) % 4, ("a", "b", "c", "d"))
    w, b = (p.detach().numpy() for p in (model.weight, model.bias))
    for t, eps in ((1000.0, 0.01), (1.0, 0.05), (10.0, 0.0)):
        p = softmax((x.numpy() @ w.T + b) / t, 1)
        slope = (w[p.argmax(1)] - p @ w) / t  # of log p of the predicted class
        moved = x.numpy() + eps * np.sign(slope)
        expected = 1 - softmax((moved @ w.T + b) / t, 1).max(1)
        found = ODIN(temperature=t, magnitude=eps).fit(model, data).score(x)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(InputError, match="temperature"):
        ODIN(temperature=0).fit(model, data)
    with pytest.raises(InputError, match="magnitude"):
        ODIN(magnitude=-1).fit(model, data)


def test_odin_without_temperature_and_step_is_msp_and_its_step_raises_confidence(cnn: nn.Module) -> None:
    plain = ODIN(temperature=1.0, magnitude=0.0).fit(cnn, TRAIN).score(TEST.x)
    torch.testing.assert_close(plain, MSP().fit(cnn, TRAIN).score(TEST.x))
    moved = ODIN(temperature=1.0, magnitude=0.002).fit(cnn, TRAIN).score(TEST.x)
    assert float((moved < plain).double().mean()) > 0.99


@pytest.mark.parametrize("k", [1, 10, 50])
def test_knn_equals_sklearn(cnn: nn.Module, k: int) -> None:
    f, probe = (normalize(features(cnn, z, ["body.6"])["body.6"].double().numpy()) for z in (TRAIN.x, TEST.x[:100]))
    distance, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(f).kneighbors(probe)
    np.testing.assert_allclose(KNN(k=k).fit(cnn, TRAIN).score(TEST.x[:100]), distance[:, -1], atol=1e-7)
    with pytest.raises(InputError, match="k=2000"):
        KNN(k=2000).fit(cnn, TRAIN)


def test_feature_squeezing_is_the_larger_l1_distance(cnn: nn.Module) -> None:
    x = TEST.x[:60].numpy()
    coarse = np.round(x * 3) / 3
    smooth = np.stack([median_filter(z, (1, 3, 3), mode="nearest") for z in x])
    p, *others = (softmax(predict(cnn, torch.from_numpy(z)).double().numpy(), 1) for z in (x, coarse, smooth))
    expected = np.max([np.abs(p - q).sum(1) for q in others], 0)
    fitted = FeatureSqueezing(bits=2, window=3).fit(cnn, TRAIN)
    np.testing.assert_allclose(fitted.score(TEST.x[:60]), expected, atol=1e-6)
    assert float(fitted.score(TEST.x).max()) <= 2
    flat = Data(TRAIN.x.flatten(1), TRAIN.y, TRAIN.classes)
    for wrong, data in (
        (FeatureSqueezing(bits=0), TRAIN),
        (FeatureSqueezing(window=0), TRAIN),
        (FeatureSqueezing(), flat),
    ):
        with pytest.raises(InputError, match="FeatureSqueezing"):
            wrong.fit(cnn, data)


def test_local_dimension_is_the_estimator_and_finds_the_dimension() -> None:
    rng = numpy_rng(0, "lid")
    f, r = rng.normal(size=(15, 5)), rng.normal(size=(60, 5))
    near = np.sort(cdist(f, r), 1)[:, :20]
    expected = -1 / np.log(near / near[:, -1:]).mean(1)
    np.testing.assert_allclose(local_dimension(*map(torch.from_numpy, (f, r)), 20), expected, rtol=1e-10)
    itself = local_dimension(*map(torch.from_numpy, (f, np.r_[r, f])), 20)
    others = [np.sort(cdist(f[i : i + 1], np.r_[r, np.delete(f, i, 0)])[0])[:20] for i in range(15)]
    np.testing.assert_allclose(itself, [-1 / np.log(o / o[-1]).mean() for o in others], rtol=1e-10)
    for d in (1, 2, 5):
        cube = rng.uniform(size=(4000, d)) @ rng.normal(size=(d, 9))
        centre = cube.mean(0, keepdims=True) + 0 * cube[:1]
        found = float(local_dimension(*map(torch.from_numpy, (centre, cube)), 200)[0])
        assert found == pytest.approx(d, rel=0.25)
    constant = torch.zeros(3, 4, dtype=torch.float64)
    assert local_dimension(constant, constant, 2).tolist() == [0, 0, 0]


def test_lid_joins_layers_as_stated_and_learns_from_attacks(cnn: nn.Module) -> None:
    fitted = LID().fit(cnn, TRAIN)
    columns = fitted.layer_scores(TRAIN.x)
    expected = ((columns - columns.mean(0)) / columns.std(0, correction=0)).sum(1)
    torch.testing.assert_close(fitted.score(TRAIN.x), expected)
    found = DDN()(cnn, TEST.x[:300], TEST.y[:300], seed=0)
    learned = fitted.with_out(TEST.x[:150], found[:150])
    assert learned.threshold_from_ == "the inside samples of with_out"
    assert fitted.joined_ != learned.joined_
    label = np.repeat([0, 1], 150)
    plain, weighted = (
        roc_auc_score(label, torch.cat((d.score(TEST.x[150:300]), d.score(found[150:])))) for d in (fitted, learned)
    )
    assert weighted > max(0.6, plain - 0.05)
    with pytest.raises(InputError, match="at least 5"):
        fitted.with_out(TEST.x[:4], found[:9])
    for wrong in (LID(k=1), LID(k=100), LID(references=20)):
        with pytest.raises(InputError, match="k="):
            wrong.fit(cnn, TRAIN)


def test_spectral_scores_are_the_squared_first_principal_component(cnn: nn.Module) -> None:
    found = SpectralSignatures(eps=0.1).inspect(cnn, TRAIN, seed=0)
    f, y = latents(cnn, TRAIN.x, "body.6")[0].numpy(), TRAIN.y.numpy()
    for c in range(10):
        fitted = PCA(1, svd_solver="full").fit(f[y == c])
        np.testing.assert_allclose(found.score[y == c], fitted.transform(f[y == c])[:, 0] ** 2, rtol=1e-6, atol=1e-9)
        assert found.evidence[c] == pytest.approx(fitted.explained_variance_ratio_[0])
        assert found.flagged[y == c].sum() == -(-15 * (y == c).sum() // 100)
    for wrong in (0.0, 0.7):
        with pytest.raises(InputError, match="eps"):
            SpectralSignatures(eps=wrong)


def _two_groups(rng: np.random.Generator, share: float) -> np.ndarray:
    few = round(200 * share)
    return np.r_[rng.normal(size=(few, 8)) + 6, rng.normal(size=(200 - few, 8))]


@pytest.mark.parametrize("reduction", ["ica", "pca"])
def test_clusters_of_planted_features_are_found(reduction) -> None:
    f = _two_groups(numpy_rng(0, "groups"), 0.2)
    for analysis in ("smaller", "relative-size", "silhouette"):
        method = ActivationClustering(dimensions=4, reduction=reduction, analysis=analysis)
        score, flagged, silhouette = method.examine(f, seed=0)
        assert flagged.tolist() == [True] * 40 + [False] * 160
        np.testing.assert_array_equal(score > 0, flagged)
        assert silhouette > 0.15
    if reduction == "pca":
        z = PCA(4).fit_transform(f)
        expected = silhouette_score(z, KMeans(2, n_init=5, random_state=0).fit_predict(z))
        assert silhouette == pytest.approx(expected)


def test_analyses_differ_where_the_paper_says() -> None:
    rng = numpy_rng(1, "groups")
    even, one = _two_groups(rng, 0.45), rng.normal(size=(200, 8))
    verdicts = {
        analysis: [
            ActivationClustering(analysis=analysis, reduction="pca").examine(f, seed=0)[1].any() for f in (even, one)
        ]
        for analysis in ("smaller", "relative-size", "silhouette")
    }
    assert verdicts["smaller"] == [True, True]
    assert not verdicts["relative-size"][0]
    assert not verdicts["silhouette"][0]
    strict = ActivationClustering(analysis="silhouette", reduction="pca", size=1.0, separation=0.3)
    assert strict.examine(even, seed=0)[1].any()
    assert not strict.examine(one, seed=0)[1].any()


def test_a_first_feature_that_never_changes_is_no_trouble() -> None:
    f = _two_groups(numpy_rng(0, "groups"), 0.2)
    score, flagged, _ = ActivationClustering().examine(np.c_[np.zeros(200), f], seed=0)
    assert np.isfinite(score).all()
    assert flagged[:40].all()


@pytest.mark.parametrize("wrong", [{"analysis": "big"}, {"reduction": "tsne"}, {"dimensions": 0}, {"size": 0.0}])
def test_clustering_refuses_bad_options(wrong) -> None:
    with pytest.raises(InputError, match=r"analysis|reduction|dimensions"):
        ActivationClustering(**wrong)


def test_reclassification_without_the_suspects(cnn: nn.Module) -> None:
    y = TRAIN.y.clone()
    planted = torch.where(TRAIN.y == 7)[0][:20]
    y[planted] = 1
    suspects = np.zeros(len(TRAIN), bool)
    suspects[planted] = True
    data = TRAIN.with_y(y)
    predicted = exclusionary_reclassification(Supervised(epochs=15), cnn, data, suspects, seed=0)
    assert (predicted == 7).mean() > 0.8
    assert exclusionary_score(1, predicted) < 0.2
    clean = exclusionary_reclassification(Supervised(epochs=15), cnn, TRAIN, suspects, seed=0)
    assert exclusionary_score(7, clean) > 4
    assert exclusionary_score(1, np.array([1, 1, 1, 2, 2, 0])) == 1.5
    assert exclusionary_score(1, np.array([1, 1])) == math.inf
    assert exclusionary_score(4, np.array([0])) == 0
    for bad in (np.zeros(len(TRAIN), bool), np.ones(len(TRAIN), bool), suspects[:5]):
        with pytest.raises(InputError, match="suspects"):
            exclusionary_reclassification(Supervised(), cnn, TRAIN, bad, seed=0)
    with pytest.raises(InputError, match="no samples"):
        exclusionary_score(1, np.array([], int))


@pytest.mark.parametrize(
    "method",
    [MSP(), ODIN(), KNN(k=3), LID(k=3), ConformalDetector(detectors=(MSP(), KNN(k=3)), alpha=0.5)],
    ids=lambda m: type(m).__name__,
)
def test_inputs_of_another_type_are_read_in_that_of_the_fit_data(method: Detector, cnn: nn.Module) -> None:
    fitted = method.fit(cnn, TRAIN[:60], TRAIN[60:300])
    assert torch.equal(fitted.score(TEST.x[:5].double()), fitted.score(TEST.x[:5]))


class Pair(nn.Module):
    """Logits and something else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model(x), x


@pytest.mark.parametrize(
    "method", [MSP(), Energy(), ODIN(), KNN(k=3), FeatureSqueezing(), STRIP(), BEYOND()], ids=lambda m: type(m).__name__
)
def test_a_model_that_gives_no_logits_is_refused(method: Detector, cnn: nn.Module) -> None:
    with pytest.raises(InputError, match="Pair gives tuple; expected a tensor of logits"):
        method.fit(Pair(cnn), TRAIN[:60])
