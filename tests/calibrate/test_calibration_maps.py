"""Vector to spline calibration: closed forms, peers, and what their optimum implies."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from torch import Tensor

from assay.calibrate import (
    BetaCalibration,
    DirichletCalibration,
    EnsembleTemperatureScaling,
    HistogramBinning,
    IsotonicCalibration,
    MatrixScaling,
    Outputs,
    SplineCalibration,
    TemperatureScaling,
    VectorScaling,
    nll,
)
from assay.calibrate.beta import BetaMap
from assay.calibrate.histogram import HistogramMap
from assay.calibrate.isotonic import IsotonicMap
from assay.calibrate.one_vs_rest import log_odds_parts
from assay.calibrate.spline import spline_slope
from assay.runtime.errors import InputError


def _sample(n: int = 200, c: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are too confident, and off by an intercept."""
    g = torch.Generator().manual_seed(seed)
    z = 1.5 * torch.randn(n, c, generator=g, dtype=torch.float64)
    y = z.softmax(1).multinomial(1, generator=g)[:, 0]
    return 2.5 * z + torch.arange(c), y


@pytest.mark.parametrize(
    "method", [VectorScaling(), MatrixScaling(strengths=(0.0,)), DirichletCalibration(strengths=(0.0,))]
)
def test_the_mean_probability_is_the_share_of_the_class(method: VectorScaling) -> None:
    # the derivative of the likelihood in the intercepts
    z, y = _sample()
    p = method.fit(Outputs(z), y).transform(Outputs(z)).softmax(1)
    assert torch.allclose(p.mean(0), torch.bincount(y, minlength=3).double() / 200, atol=1e-4)


def test_a_strong_penalty_leaves_the_diagonal() -> None:
    z, y = _sample()
    fitted = MatrixScaling(strengths=(1e6,)).fit(Outputs(z), y)
    assert fitted.bias_.abs().max() < 1e-4
    assert (fitted.weight_ - fitted.weight_.diag().diag()).abs().max() < 1e-4
    assert (fitted.weight_.diag() < 0.7).all()


def test_cross_validation_chooses_a_strength() -> None:
    z, y = _sample(60, 10)
    grid = (0.0, 0.1)
    chosen = MatrixScaling(strengths=grid).fit(Outputs(z), y).weight_
    assert torch.equal(chosen, MatrixScaling(strengths=(0.1,)).fit(Outputs(z), y).weight_)
    for bad in ({"strengths": ()}, {"strengths": (-1.0,)}, {"folds": 1}):
        with pytest.raises(InputError, match="MatrixScaling"):
            MatrixScaling(**bad)


def test_dirichlet_of_two_classes_is_beta_calibration() -> None:
    z, y = _sample(400, 2)
    outputs = Outputs(z)
    a = DirichletCalibration(strengths=(0.0,)).fit(outputs, y).transform(outputs).softmax(1)
    fitted = BetaCalibration().fit(outputs, y)
    assert isinstance(fitted, BetaMap)
    assert min(fitted.a_.min(), fitted.b_.min()) > 0  # else the constraint makes them differ
    assert torch.allclose(a, fitted.transform(outputs).softmax(1), atol=2e-3)


def test_beta_against_its_authors() -> None:
    # betacal 1.1.0, parameters "abm": coefficients, intercept and predictions at even scores
    g = torch.Generator().manual_seed(0)
    p = torch.rand(60, generator=g, dtype=torch.float64) * 0.98 + 0.01
    y = (torch.rand(60, generator=g, dtype=torch.float64) < p**2).long()
    fitted = BetaCalibration().fit(Outputs(torch.stack((torch.zeros(60).double(), torch.logit(p)), 1)), y)
    assert isinstance(fitted, BetaMap)
    assert np.allclose([fitted.a_[1], fitted.b_[1], fitted.m_[1]], [2.85036, 0.30725, 0.98527], atol=2e-3)
    at = torch.logit(torch.linspace(0.05, 0.95, 7, dtype=torch.float64))
    theirs = [0.000532, 0.028370, 0.132993, 0.314862, 0.519973, 0.699249, 0.853147]
    assert np.allclose(fitted.scores(torch.stack((torch.zeros(7).double(), at), 1))[:, 1], theirs, atol=2e-4)


def test_beta_class_scores_have_no_higher_log_loss_than_the_model() -> None:
    z, y = _sample()
    fitted = BetaCalibration().fit(Outputs(z), y)
    assert isinstance(fitted, BetaMap)
    target = torch.nn.functional.one_hot(y, 3).double()
    before, after = (
        torch.nn.functional.binary_cross_entropy(p, target, reduction="none").mean(0)
        for p in (z.softmax(1), fitted.scores(z))
    )
    assert (after < before).all()


def test_complements_are_exact_where_a_probability_rounds_to_one() -> None:
    log_p, log_rest = log_odds_parts(torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64))
    assert torch.allclose(log_rest[0, 0], torch.tensor(np.log(2.0) - 60.0))
    assert torch.allclose(log_p.exp() + log_rest.exp(), torch.ones(1, 3).double())


class _Softmax(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its logits."""

    def __init__(self, classes: int = 3) -> None:
        self.classes = classes
        self.classes_ = np.arange(classes)

    def fit(self, x: np.ndarray, y: np.ndarray) -> "_Softmax":
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x.argmax(1)

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return softmax(x, axis=1)


def test_isotonic_is_scikit_learns() -> None:
    z, y = _sample()
    new, _ = _sample(100, seed=1)
    theirs = CalibratedClassifierCV(FrozenEstimator(_Softmax()), method="isotonic", cv=2).fit(z.numpy(), y.numpy())
    expected = theirs.predict_proba(new.numpy())
    found = IsotonicCalibration().fit(Outputs(z), y).transform(Outputs(new)).softmax(1)
    assert np.allclose(found, expected, atol=1e-6)


def test_isotonic_class_scores_rise_and_have_the_least_squared_error() -> None:
    z, y = _sample()
    fitted = IsotonicCalibration().fit(Outputs(z), y)
    assert isinstance(fitted, IsotonicMap)
    scores, p, target = fitted.scores(z), z.softmax(1), torch.nn.functional.one_hot(y, 3)
    assert ((scores - target).square().mean(0) < (p - target).square().mean(0)).all()
    assert (fitted.values_.diff(dim=1) >= 0).all()
    assert torch.allclose(scores.mean(0), target.double().mean(0))  # blocks keep their mean


def test_histogram_by_hand() -> None:
    p = torch.tensor([0.1, 0.15, 0.3, 0.55, 0.7, 0.9], dtype=torch.float64)
    z, y = torch.stack((torch.logit(p), torch.zeros(6).double()), 1), torch.tensor([1, 0, 1, 0, 0, 1])
    fitted = HistogramBinning(bins=2).fit(Outputs(z), y)
    assert isinstance(fitted, HistogramMap)
    assert torch.allclose(fitted.edges_, torch.tensor([[0.425], [0.575]]).double())
    assert torch.allclose(fitted.scores(z)[:, 0], torch.tensor([1, 1, 1, 2, 2, 2]).double() / 3)
    wide = HistogramBinning(bins=5, spacing="width").fit(Outputs(z), y)
    assert isinstance(wide, HistogramMap)
    assert torch.allclose(wide.values_[0], torch.tensor([0.5, 0.0, 1.0, 1.0, 0.0]).double())
    with pytest.raises(InputError, match="bins=1"):
        HistogramBinning(bins=1)


def test_histogram_scores_keep_the_share_of_the_class() -> None:
    z, y = _sample()
    for spacing in ("mass", "width"):
        fitted = HistogramBinning(spacing=spacing).fit(Outputs(z), y)
        assert isinstance(fitted, HistogramMap)
        assert torch.allclose(fitted.scores(z).mean(0), torch.bincount(y, minlength=3).double() / 200)


def test_spline_slope_is_exact_on_splines() -> None:
    knots = np.linspace(0, 1, 6)
    curve = CubicSpline(knots, np.sin(9 * knots), bc_type="natural")
    t = np.linspace(0, 1, 50)
    assert np.allclose(spline_slope(curve(t), 6), curve(t, 1), atol=1e-10)


def test_spline_moves_the_top_class_and_keeps_the_proportions_of_the_others() -> None:
    z, y = _sample()
    fitted = SplineCalibration().fit(Outputs(z), y)
    before, after = z.softmax(1), fitted.transform(Outputs(z)).softmax(1)
    assert torch.allclose(after.sum(1), torch.ones(200).double())
    which = before.argmax(1, keepdim=True)
    top = after.gather(1, which)
    others = [p.scatter(1, which, 0.0) / (1 - p.gather(1, which)) for p in (before, after)]
    assert torch.allclose(*others, atol=1e-8)
    right = (which[:, 0] == y).double()
    order = before.max(1).values.argsort()
    gap_before, gap_after = (
        (right - p.gather(1, which)[:, 0])[order].cumsum(0).abs().max() / 200 for p in (before, after)
    )
    assert top.min() >= 0
    assert gap_after < 0.5 * gap_before


def test_ensemble_is_no_worse_than_temperature_and_keeps_predictions() -> None:
    z, y = _sample()
    z = torch.where(torch.arange(200)[:, None] % 3 == 0, 10 * z, z)  # no one temperature suits both
    p = EnsembleTemperatureScaling().fit(Outputs(z), y).transform(Outputs(z)).softmax(1)
    assert nll(p, y) < nll(TemperatureScaling().fit(Outputs(z), y).transform(Outputs(z)).softmax(1), y) - 1e-3
    assert torch.equal(p.argmax(1), z.argmax(1))


def test_another_number_of_classes_is_refused() -> None:
    z, y = _sample()
    with pytest.raises(InputError, match="2 logits; expected 3"):
        VectorScaling().fit(Outputs(z), y).transform(Outputs(z[:, :2]))


def test_spline_takes_equal_scores_by_their_mean_in_any_order() -> None:
    sure, half = torch.tensor([[60.0, 0, 0]]).repeat(200, 1), torch.arange(200) < 100
    for y in (half.long(), (~half).long()):
        p = SplineCalibration().fit(Outputs(sure), y).transform(Outputs(sure)).softmax(1)
        assert torch.allclose(p, torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64), atol=3e-3)
    z, y = _sample()
    z[::2, 0] += 60
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    one, other = (SplineCalibration().fit(Outputs(z[r]), y[r]) for r in (torch.arange(len(z)), order))
    assert torch.allclose(one.transform(Outputs(z)).softmax(1), other.transform(Outputs(z)).softmax(1), atol=1e-9)
