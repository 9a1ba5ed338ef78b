"""Detectors against closed forms and other implementations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import pinvh
from scipy.spatial.distance import mahalanobis
from scipy.special import logsumexp, softmax
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.data.outsets import gaussian_noise, pixel_shuffled, uniform_noise
from assay.detect import KNN, LID, MSP, Energy, Mahalanobis
from assay.detect.base import Detector
from assay.detect.layers import chosen_layers, rectified_layers
from assay.detect.mahalanobis import TiedGaussian
from assay.nets import MLP, ResNet, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.inference import features, predict
from assay.runtime.random import seeded, torch_rng
from assay.training import Supervised


@pytest.fixture(scope="module")
def train() -> Data:
    return load_data("digits:train")


@pytest.fixture(scope="module")
def cnn(train: Data) -> nn.Module:
    with seeded(0, "init"):
        model = SmallCNN(widths=(8, 16), hidden=32)
    return Supervised(epochs=5).fit(model, train, seed=0)


def blobs(n: int = 400, d: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch_rng(0, "blobs")
    y = torch.arange(n) % classes
    mix = torch.randn(d, d, generator=rng, dtype=torch.float64)
    centres = 2 * torch.randn(classes, d, generator=rng, dtype=torch.float64)
    return centres[y] + torch.randn(n, d, generator=rng, dtype=torch.float64) @ mix, y


def test_msp_and_energy_are_their_formulas(cnn: nn.Module, train: Data) -> None:
    test = load_data("digits:test").x[:200]
    logits = predict(cnn, test).double().numpy()
    np.testing.assert_allclose(MSP().fit(cnn, train).score(test), 1 - softmax(logits, 1).max(1), atol=1e-12)
    for t in (0.5, 1.0, 10.0):
        expected = -t * logsumexp(logits / t, axis=1)
        np.testing.assert_allclose(Energy(temperature=t).fit(cnn, train).score(test), expected, rtol=1e-12)
    with pytest.raises(InputError, match="temperature"):
        Energy(temperature=0).fit(cnn, train)


def test_msp_orders_inputs_that_round_to_certainty() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
    data = Data(torch.tensor([[50.0], [60.0], [70.0]]), torch.tensor([0, 1, 1]), ("a", "b"), (0.0, 100.0))
    score = MSP().fit(model, data).score(data.x)
    np.testing.assert_allclose(score, np.exp([-50.0, -60.0, -70.0]), rtol=1e-6)


def test_one_layer_equals_scipy(cnn: nn.Module, train: Data) -> None:
    fitted = Mahalanobis(layers="body.3").fit(cnn, train)
    x = load_data("digits:test").x[:40]
    f = features(cnn, train.x, ["body.3"])["body.3"].double().numpy()
    y, means = train.y.numpy(), []
    for c in range(10):
        means.append(f[y == c].mean(0))
    centred = f - np.stack(means)[y]
    inverse = pinvh(centred.T @ centred / len(f), rtol=1e-12)
    probe = features(cnn, x, ["body.3"])["body.3"].double().numpy()
    expected = [min(mahalanobis(p, m, inverse) ** 2 for m in means) for p in probe]
    np.testing.assert_allclose(fitted.score(x), expected, rtol=1e-7)


def test_distances_equal_sklearn_and_the_posterior_is_lda() -> None:
    f, y = blobs()
    g = TiedGaussian.fit(f, y)
    d = g.distances(f).numpy()
    centred = f - g.mean_[y]
    cov = EmpiricalCovariance(assume_centered=True).fit(centred.numpy())
    for c in range(3):
        np.testing.assert_allclose(d[:, c], cov.mahalanobis((f - g.mean_[c]).numpy()), rtol=1e-8)
    prior = torch.bincount(y).double().numpy() / len(y)
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(f.numpy(), y.numpy())
    np.testing.assert_allclose(softmax(-d / 2 + np.log(prior), 1), lda.predict_proba(f.numpy()), atol=1e-8)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_distances_do_not_change_under_affine_maps(seed: int) -> None:
    f, y = blobs()
    rng = torch_rng(seed, "map")
    q = torch.linalg.qr(torch.randn(5, 5, generator=rng, dtype=torch.float64)).Q
    moved = (f @ q) * torch.linspace(0.1, 10, 5, dtype=torch.float64) + torch.randn(5, generator=rng)
    torch.testing.assert_close(
        TiedGaussian.fit(moved, y).distances(moved), TiedGaussian.fit(f, y).distances(f), rtol=1e-6, atol=1e-6
    )


def test_dead_and_repeated_features_change_nothing() -> None:
    f, y = blobs()
    wide = torch.cat((f, torch.zeros(len(f), 2, dtype=torch.float64), f[:, :1]), 1)
    g = TiedGaussian.fit(wide, y)
    assert g.whitener_.shape == (8, 5)
    torch.testing.assert_close(g.distances(wide), TiedGaussian.fit(f, y).distances(f), rtol=1e-8, atol=1e-8)


def test_shrinkage_is_the_stated_mixture() -> None:
    f, y = blobs()
    g = TiedGaussian.fit(f, y, shrinkage=0.3)
    centred = (f - g.mean_[y]).numpy()
    s = centred.T @ centred / len(f)
    mixed = 0.7 * s + 0.3 * np.trace(s) / 5 * np.eye(5)
    np.testing.assert_allclose((g.whitener_ @ g.whitener_.T).numpy(), np.linalg.inv(mixed), rtol=1e-8)
    torch.testing.assert_close(
        TiedGaussian.fit(f, y, shrinkage=1.0).distances(f) * np.trace(s) / 5, torch.cdist(f, g.mean_).square()
    )


def test_layers_after_a_relu_are_found_once() -> None:
    x = load_data("digits:test").x[:32]
    with seeded(0, "init"):
        assert rectified_layers(SmallCNN(), x) == ["body.1", "body.3", "body.6"]
        assert rectified_layers(MLP(hidden=(16, 8)), x) == ["body.2", "body.4"]
        assert rectified_layers(ResNet((1, 8, 8), width=4), x) == ["stem.2", "stages.0", "stages.1", "stages.2"]
        smooth = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 10))
        assert rectified_layers(smooth, x) == ["2"]
        assert rectified_layers(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), x) == ["1"]
        assert chosen_layers(SmallCNN(), "penultimate", x) == ["body.6"]
        assert chosen_layers(SmallCNN(), "body.1, body.3", x) == ["body.1", "body.3"]
        with pytest.raises(InputError, match="no layer 'nose'"):
            chosen_layers(SmallCNN(), "nose", x)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.25)])
@pytest.mark.parametrize("detector", [Mahalanobis(), KNN(k=5), LID(k=10)], ids=lambda d: type(d).__name__)
def test_models_of_another_precision_are_scored(
    cnn: nn.Module, train: Data, detector: Detector, kind: torch.dtype, tolerance: float
) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Dropout(), copy.deepcopy(cnn)).to(kind)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.to(kind)).float()

    other, x = Other().eval(), load_data("digits:test").x[:40]
    assert rectified_layers(other, train.x[:64]) == [f"inner.1.{n}" for n in rectified_layers(cnn, train.x[:64])]
    plain, found = (detector.fit(model, train).score(x) for model in (cnn, other))
    assert float((found - plain).abs().mean()) < tolerance * float(plain.std())


def test_layers_are_joined_as_stated(cnn: nn.Module, train: Data) -> None:
    fitted = Mahalanobis().fit(cnn, train)
    scores = fitted.layer_scores(train.x)  # type: ignore[attr-defined]
    expected = ((scores - scores.mean(0)) / scores.std(0, correction=0)).sum(1)
    torch.testing.assert_close(fitted.score(train.x), expected)
    last = Mahalanobis(aggregate="last").fit(cnn, train)
    torch.testing.assert_close(last.score(train.x), scores[:, -1])


def test_processing_brings_inputs_nearer_to_their_class(cnn: nn.Module, train: Data) -> None:
    x = load_data("digits:test").x[:60]
    plain = Mahalanobis(layers="penultimate").fit(cnn, train)
    moved = Mahalanobis(layers="penultimate", magnitude=1e-3).fit(cnn, train)
    a, b = plain.score(x), moved.score(x)
    assert ((b < a).double().mean()) > 0.95
    torch.testing.assert_close(moved.score(x[5:9]), b[5:9], rtol=1e-4, atol=1e-4)


def test_processing_of_a_linear_model_is_its_closed_form() -> None:
    rng = torch_rng(1, "linear")
    model = nn.Linear(4, 3)
    x, y = torch.rand(90, 4, generator=rng), torch.arange(90) % 3
    data = Data(x, y, ("a", "b", "c"))
    fitted = Mahalanobis(layers="", magnitude=0.01)
    weight = model.weight.detach().double()
    with torch.no_grad():
        f = model(x).double()
    g = TiedGaussian.fit(f, y)
    d = g.distances(f)
    gradient = (f - g.mean_[d.argmin(1)]) @ (g.whitener_ @ g.whitener_.T) @ weight
    expected = g.distances(f - 0.01 * gradient.sign() @ weight.T).amin(1)
    torch.testing.assert_close(fitted.fit(model, data).score(x), expected, rtol=1e-4, atol=1e-4)


def test_out_data_give_the_layer_weights(cnn: nn.Module, train: Data) -> None:
    test = load_data("digits:test")
    fitted = Mahalanobis().fit(cnn, train)
    weighted = fitted.with_out(test.x[:100], gaussian_noise(test, 100, seed=1))  # type: ignore[attr-defined]
    assert weighted.joined_ == "logistic regression on out-data"
    assert fitted.joined_ != weighted.joined_
    outside = torch.cat((uniform_noise(test, 200, seed=2), pixel_shuffled(test, 200, seed=2)))
    label = np.repeat([0, 1], [300, 400])
    scores = torch.cat((weighted.score(test.x[300:600]), weighted.score(outside)))
    assert roc_auc_score(label, scores) > 0.95
    with pytest.raises(InputError, match="at least 5"):
        fitted.with_out(test.x[:4], test.x[:9])  # type: ignore[attr-defined]


def test_mahalanobis_refuses_what_it_cannot_fit(cnn: nn.Module, train: Data) -> None:
    single = torch.cat((torch.where(train.y != 3)[0][:100], torch.where(train.y == 3)[0][:1]))
    assert len(Mahalanobis(shrinkage=0.1).fit(cnn, train[single]).gaussians_[0].mean_) == 10  # type: ignore[attr-defined]
    firsts = torch.stack([(train.y == k).nonzero()[0, 0] for k in range(10)])
    with pytest.raises(InputError, match="10 samples of 10 classes"):
        Mahalanobis().fit(cnn, train[firsts])
    without = Mahalanobis().fit(cnn, train[train.y != 3])
    assert len(without.gaussians_[0].mean_) == 9  # type: ignore[attr-defined]
    for wrong in (Mahalanobis(magnitude=-1), Mahalanobis(shrinkage=2.0), Mahalanobis(aggregate="mean")):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="expected magnitude"):
            wrong.fit(cnn, train)
    with pytest.warns(UserWarning, match="set shrinkage"):
        Mahalanobis(layers="body.4").fit(cnn, train[:200])
