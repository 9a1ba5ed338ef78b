"""Expected perturbation scores, MMD and the deep kernel against closed forms and loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.attacks import Linf, Untargeted
from assay.data import Data, load_data
from assay.detect import (
    EPSAD,
    DeepKernel,
    DeepKernelMMD,
    DetectorAwarePGD,
    Energy,
    Mahalanobis,
    ScoreNorm,
    expected_perturbation_score,
    mmd2,
    mmd_variance,
)
from assay.detect.deep_kernel import FeatureNet
from assay.detect.eps import FittedEPSAD
from assay.detect.mmd import median_bandwidth
from assay.generate import VPSDE, GaussianScore
from assay.nets import SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.training import Supervised


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train").limit(300)


@pytest.fixture(scope="module")
def model(data: Data) -> nn.Module:
    with seeded(0, "init"):
        start = SmallCNN(widths=(8, 16), hidden=32)
    return Supervised(epochs=4).fit(start, data, seed=0)


@given(st.integers(2, 7), st.integers(0, 50))
@settings(max_examples=20)
def test_estimators_are_their_double_loops(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    xx, yy, xy = (rng.random((n, n)) for _ in range(3))
    a, b, c = (torch.from_numpy(k) for k in (xx, yy, xy))
    pairs = [(i, j) for i in range(n) for j in range(n)]
    h = {(i, j): xx[i, j] + yy[i, j] - xy[i, j] - xy[j, i] for i, j in pairs}
    u = sum(h[p] for p in pairs if p[0] != p[1]) / (n * (n - 1))
    v = sum(h.values()) / n**2
    spread = sum((sum(h[i, j] for j in range(n)) / n) ** 2 for i in range(n)) / n
    assert float(mmd2(a, b, c)) == pytest.approx(u, abs=1e-12)
    assert float(mmd2(a, b, c, "v")) == pytest.approx(v, abs=1e-12)
    assert float(mmd_variance(a, b, c)) == pytest.approx(4 * (spread - v**2), abs=1e-12)


def test_mmd_takes_unequal_samples_only_where_biased() -> None:
    xx, yy, xy = torch.ones(3, 3), torch.ones(1, 1), torch.zeros(3, 1)
    assert float(mmd2(xx, yy, xy, "v")) == 2.0
    with pytest.raises(InputError, match="n >= 2"):
        mmd2(xx, yy, xy)
    with pytest.raises(InputError, match="estimator"):
        mmd2(xx, xx, xx, "w")  # type: ignore[arg-type]


def test_the_bandwidth_is_the_median() -> None:
    assert median_bandwidth(torch.tensor([[0.0], [1.0], [3.0], [7.0]])) == np.median([1, 9, 49, 4, 36, 16])


def kernel() -> DeepKernel:
    with seeded(0, "kernel"):
        return DeepKernel(FeatureNet((1, 8, 8)), (1, 8, 8), sigma_phi=0.5, spread=0.3, e0=0.2).eval()


def test_deep_kernel_is_its_formula_and_positive() -> None:
    k, s = kernel(), torch.randn(12, 1, 8, 8, generator=torch_rng(0, "s"))
    with torch.no_grad():
        found, phi = k(s, s), k.features(s).double()
        deep = torch.cdist(phi, phi).square()
        plain = torch.cdist(s.flatten(1).double(), s.flatten(1).double()).square()
        expected = (0.8 * (-deep / 0.5).exp() + 0.2) * (-plain / (2 * 64 * 0.3)).exp()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.diagonal(), torch.ones(12, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-6


def test_training_raises_the_power_of_the_test() -> None:
    g = torch_rng(0, "samples")
    normal, abnormal = torch.randn(80, 1, 8, 8, generator=g), 1.2 * torch.randn(80, 1, 8, 8, generator=g)
    method = DeepKernelMMD(epochs=15, batch_size=40, spread=1.0)
    trained = method.fit(normal[:60], abnormal[:60], seed=0)
    start = replace(method, epochs=0).fit(normal[:60], abnormal[:60], seed=0)
    with torch.no_grad():
        assert float(trained.power(normal, abnormal)) > float(start.power(normal, abnormal))
    with pytest.raises(InputError, match="the same"):
        method.fit(normal, abnormal[:3], seed=0)


def loop(score: nn.Module, x: Tensor, T: int, noise: Tensor) -> Tensor:
    """Level by level, as the official code goes."""
    sde, total = VPSDE(), torch.zeros_like(x)
    for i in range(T):
        t = torch.full((len(x),), (i + 1) / 1000, dtype=x.dtype)
        a, b = (f(t).to(x)[:, None, None, None] for f in (sde.alpha, sde.sigma))
        total += score(a * (2 * x - 1) + b * noise[:, 0, i], t)
    return total / T


def test_levels_in_one_batch_are_those_of_a_loop(data: Data) -> None:
    x = data.x[:30].double()
    score = GaussianScore.fit(2 * data.x - 1)
    noise = torch.randn(30, 1, 6, 1, 8, 8, generator=torch_rng(0, "z"), dtype=torch.float64)
    for size in (1, 50, 10_000):
        found = expected_perturbation_score(score, x, 6, noise=noise, batch_size=size)
        torch.testing.assert_close(found, loop(score, x, 6, noise), rtol=1e-9, atol=1e-9)


def test_mean_and_noise_of_gaussian_data() -> None:
    v, T, n, d = 0.04, 10, 2500, 4
    x = torch.rand(n, d, generator=torch_rng(0, "x"), dtype=torch.float64)
    mean = torch.tensor([0.1, -0.3, 0.0, 0.4], dtype=torch.float64)
    score = GaussianScore(mean, torch.full((d,), v))
    t = torch.arange(1, T + 1, dtype=torch.float64) / 1000
    a, b = VPSDE().alpha(t), VPSDE().sigma(t)
    c = a**2 * v + b**2
    rest = expected_perturbation_score(score, x, T) + (a / c).mean() * (2 * x - 1 - mean)
    assert float(rest.var() / ((b / c).square().sum() / T**2)) == pytest.approx(1, abs=0.06)
    assert float((rest.mean(0).abs() / rest.std() * n**0.5).max()) < 5
    four = expected_perturbation_score(score, x, T, n_noise=4) + (a / c).mean() * (2 * x - 1 - mean)
    assert float(rest.var() / four.var()) == pytest.approx(4, rel=0.1)
    still = expected_perturbation_score(score, x, T, perturb=False)
    expected = torch.stack([score(2 * x - 1, s.expand(n)) for s in t]).mean(0)
    torch.testing.assert_close(still, expected)


def test_bad_inputs_and_scores() -> None:
    score, x = GaussianScore(torch.zeros(3), torch.ones(3)), torch.rand(4, 3)
    for T in (0, 1001):
        with pytest.raises(InputError, match="n_steps"):
            expected_perturbation_score(score, x, T)
    expected_perturbation_score(score, x.clamp(0, 0) - 5e-4, 2)
    with pytest.raises(InputError, match="spans"):
        expected_perturbation_score(score, x + 1, 2)
    with pytest.raises(InputError, match="noise of shape"):
        expected_perturbation_score(score, x, 2, noise=torch.zeros(4, 1, 3, 3))
    with pytest.raises(InputError, match="not finite"):
        expected_perturbation_score(lambda z, t: z / 0, x, 2)


@pytest.mark.parametrize("kind", ["deep", "gaussian"])
def test_score_is_the_biased_mmd_to_the_reference(kind: str, model: nn.Module, data: Data) -> None:
    method = EPSAD(kernel=kind, ref_size=40, T=4, training=DeepKernelMMD(epochs=2, batch_size=60))  # type: ignore[arg-type]
    fitted = method.fit(model, data[:120])
    assert isinstance(fitted, FittedEPSAD)
    x = data.x[200:206]
    eps, found = fitted.eps(x).detach(), fitted.score(x)
    for k in range(6):
        with torch.no_grad():
            if fitted.kernel_ is not None:
                xx, xy = (fitted.kernel_(fitted.natural_, s) for s in (fitted.natural_, eps[k : k + 1]))
            else:
                flat = [s.flatten(1).double() for s in (fitted.natural_, eps[k : k + 1])]
                xx, xy = ((-torch.cdist(flat[0], s).square() / fitted.bandwidth_).exp() for s in flat)
        one = torch.ones(1, 1, dtype=torch.float64)
        assert float(found[k]) == pytest.approx(float(mmd2(xx, one, xy, "v")), rel=1e-6)
    assert fitted.detect(x, 0.05).dtype == torch.bool


def test_the_reference_and_the_options_of_epsad(model: nn.Module, data: Data) -> None:
    fitted = EPSAD(T=2).fit(model, data)
    assert isinstance(fitted, FittedEPSAD)
    assert fitted.natural_.shape == (150, 1, 8, 8)
    with pytest.raises(InputError, match="at least 2"):
        EPSAD(T=2).fit(model, data[:3])
    with pytest.raises(InputError, match="kernel of EPSAD"):
        EPSAD(kernel="linear").fit(model, data)  # type: ignore[arg-type]


def test_score_norm_is_the_length_of_one_score(model: nn.Module, data: Data) -> None:
    score = GaussianScore.fit(2 * data.x - 1)
    found = ScoreNorm(score_model=score).fit(model, data).score(data.x[:9])
    expected = score(2 * data.x[:9] - 1, torch.full((9,), 1e-3)).flatten(1).double().norm(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_an_attack_that_knows_the_detector_lowers_its_score(model: nn.Module, data: Data) -> None:
    fitted = Mahalanobis(layers="penultimate", shrinkage=0.1).fit(model, data)
    x, goal = data.x[:40], Untargeted(data.y[:40])
    blind = DetectorAwarePGD(ball=Linf(0.2), steps=10, detector=fitted, weight=0.0).run(model, x, goal, seed=0)
    aware = DetectorAwarePGD(ball=Linf(0.2), steps=10, detector=fitted, weight=0.1).run(model, x, goal, seed=0)
    assert float((aware.x_adv - x).abs().max()) <= 0.2 + 1e-6
    assert float(fitted.score(aware.x_adv).median()) < float(fitted.score(blind.x_adv).median())
    energy = DetectorAwarePGD(ball=Linf(0.2), steps=1, detector=Energy().fit(model, data))
    assert energy.run(model, x, goal, seed=0).success.any()
