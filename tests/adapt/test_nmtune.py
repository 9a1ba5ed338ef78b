"""NMTune: its terms against the official formulas, the head, and what tuners on features have in common."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from assay.adapt import FeatureTuner, LinearTuning, MLPTuning, NMTune, NMTuneHead, nmtune_losses
from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.random import Draws

ZERO = {"mse": 0.0, "cov": 0.0, "svd": 0.0}


def task(n: int = 120, d: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return 3 * torch.eye(3, d)[y] + torch.randn(n, d, generator=g), y


def test_terms_are_the_official_formulas() -> None:
    g = torch.Generator().manual_seed(1)
    z, f = torch.randn(24, 7, generator=g, dtype=torch.float64), torch.randn(12, 7, generator=g, dtype=torch.float64)
    found = nmtune_losses(z, f)
    unit = [m / m.norm(dim=1, keepdim=True) for m in (z[12:], f)]
    c = torch.from_numpy(np.cov(z.numpy(), rowvar=False))
    s = np.linalg.svd(z.numpy(), compute_uv=False)
    assert float(found["mse"]) == pytest.approx(float(((unit[0] - unit[1]) ** 2).mean()), abs=1e-12)
    assert float(found["cov"]) == pytest.approx(float((c - c.diag().diag()).square().sum()) / 7, abs=1e-12)
    assert float(found["svd"]) == pytest.approx(-s[:5].mean() / s.sum(), abs=1e-12)
    paper = nmtune_losses(z, f, "paper")
    assert float(paper["mse"]) == pytest.approx(7 * float(found["mse"]), abs=1e-12)
    assert float(paper["svd"]) == pytest.approx(-s[0] / s.sum(), abs=1e-12)


def test_a_whitened_batch_has_no_covariance_and_equal_features_no_distance() -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    found = nmtune_losses(white, 3 * white)
    assert abs(float(found["cov"])) < 1e-12
    assert abs(float(found["mse"])) < 1e-12


def test_slope_of_the_singular_values() -> None:
    z = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    f = torch.randn(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name in ("svd", "cov", "mse"):
        assert torch.autograd.gradcheck(lambda a, name=name: nmtune_losses(a, f)[name], (z,))


def test_terms_in_half_precision_are_those_of_float32() -> None:
    z, f = (torch.randn(6, 4, generator=torch.Generator().manual_seed(s)).half() for s in (0, 1))
    assert nmtune_losses(z, f) == nmtune_losses(z.float(), f.float())


def test_features_carry_no_gradient() -> None:
    f = torch.randn(8, 4, requires_grad=True)
    z = torch.randn(8, 4, requires_grad=True)
    nmtune_losses(z, f)["mse"].backward()
    assert f.grad is None
    assert z.grad is not None


def test_the_head_is_residual_with_a_learned_scale() -> None:
    torch.manual_seed(0)
    head = NMTuneHead(6, 3).eval()
    x = torch.randn(5, 6)
    assert torch.allclose(head.transform(x), head.body(x) + x)
    with torch.no_grad():
        head.scale.zero_()
    assert torch.equal(head.transform(x), x)
    assert torch.equal(head(x), head.classifier(x))
    assert [m.out_features for m in head.body.modules() if isinstance(m, nn.Linear)] == [24, 6]
    assert torch.equal(NMTuneHead(6, 3, layers=0).transform(x), x)
    plain = NMTuneHead(6, 3, residual=False).eval()
    assert torch.equal(plain.transform(x), plain.body(x))


def test_weights_of_zero_are_the_head_without_terms() -> None:
    x, y = task()
    a, b = MLPTuning(epochs=3).fit(x, y, seed=4), NMTune(epochs=3, weights=ZERO).fit(x, y, seed=4)
    for p, q in zip(a.model_.parameters(), b.model_.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_covariance_term_decorrelates() -> None:
    g = torch.Generator().manual_seed(3)
    x, y = task(300)
    x = x @ torch.randn(10, 10, generator=g)
    found = []
    for cov in (0.0, 5.0):
        z = NMTune(epochs=15, normalize=True, weights={**ZERO, "cov": cov}).fit(x, y).transform(x)
        r = np.corrcoef(z, rowvar=False)
        found.append(np.square(r - np.eye(10)).mean())
    assert found[1] < 0.6 * found[0]


@pytest.mark.parametrize("cls", [LinearTuning, MLPTuning, NMTune])
class TestTuner:
    def test_learns_and_repeats_itself_and_changes_nothing(self, cls: type[FeatureTuner]) -> None:
        x, y = task()
        names, kept, state = np.array(["a", "b", "c"])[y], x.clone(), torch.random.get_rng_state()
        fitted, again = (cls(lr=1e-2, batch_size=16).fit(x, names, seed=2) for _ in range(2))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(x, kept)
        assert np.array_equal(fitted.decision_function(x), again.decision_function(x))
        test, truth = task(seed=9)
        assert fitted.score(test, np.array(["a", "b", "c"])[truth]) > 0.8
        assert np.allclose(fitted.predict_proba(test).sum(1), 1, atol=1e-5)
        assert np.allclose(fitted.decision_function(test)[:5], fitted.decision_function(test[:5]), atol=1e-5)
        assert fitted.transform(test).shape == test.shape

    def test_standardised_features_may_have_any_scale(self, cls: type[FeatureTuner]) -> None:
        x, y = task()
        a = cls(epochs=3, normalize=True).fit(x, y).predict_proba(x)
        b = cls(epochs=3, normalize=True).fit(100 * x + 7, y).predict_proba(100 * x + 7)
        assert np.allclose(a, b, atol=1e-2)

    def test_edges(self, cls: type[FeatureTuner]) -> None:
        x, y = task(65)
        assert cls(epochs=1).fit(x, y).predict(x).shape == (65,)  # a last batch of one sample is left out
        x[:, 2] = 1.0
        assert np.isfinite(cls(epochs=1, normalize=True).fit(x, y, x + 0.1).decision_function(x)).all()

    def test_features_with_a_graph_or_in_half_precision(self, cls: type[FeatureTuner]) -> None:
        x, y = task(20)
        x = x.bfloat16().float()
        plain = cls(epochs=1).fit(x, y).predict_proba(x)
        for other in (x.clone().requires_grad_(), x.bfloat16()):
            assert np.array_equal(cls(epochs=1).fit(other, y).predict_proba(other), plain)

    def test_from_an_encoder(self, cls: type[FeatureTuner]) -> None:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6)).train()
        x, y = task()
        data = Data(x, y, ("0", "1", "2"), (-20.0, 20.0))
        kept = {k: v.clone() for k, v in encoder.state_dict().items()}

        def jitter(x: torch.Tensor, draws: Draws) -> torch.Tensor:
            return x + 0.1 * draws.normal(*x.shape[1:])

        once = cls(epochs=3).from_encoder(encoder, data)
        twice = cls(epochs=3).from_encoder(encoder, data, augment=jitter)
        assert encoder.training
        assert all(torch.equal(v, kept[k]) for k, v in encoder.state_dict().items())
        whole = nn.Sequential(encoder, once.model_).eval()
        with torch.no_grad():
            assert np.allclose(whole(x), once.decision_function(whole[0](x)), atol=1e-5)
        assert not np.allclose(once.transform(task(d=6)[0]), twice.transform(task(d=6)[0])) or cls is LinearTuning

    def test_bad_input(self, cls: type[FeatureTuner]) -> None:
        x, y = task()
        bad, zero = x.clone(), x.clone()
        bad[1, 2], zero[4] = torch.nan, 0.0
        for features, labels, second in (
            (bad, y, None), (zero, y, None), (x, y[:5], None), (x, y * 0, None), (x[:1], y[:1], None),
            (x[:, 0], y, None), (x, y, x[:, :4]), (x[:0], y[:0], None),
        ):  # fmt: skip
            with pytest.raises(InputError, match="expected"):
                cls().fit(features, labels, second)
        with pytest.raises(InputError, match="as fitted"):
            cls(epochs=1).fit(x, y).predict(x[:, :4])
        for options in ({"batch_size": 1}, {"weight_decay": -1.0}, {"lr": math.inf}):
            with pytest.raises(InputError, match="expected"):
                cls(**options)


def test_bad_terms_and_heads() -> None:
    z = torch.randn(6, 3)
    lost = z.clone()
    lost[0, 0] = math.nan
    for a, b in (
        (z[:1], z[:1]), (z, z[:4]), (z, z[:, :2]), (z[:, 0], z), (lost, z), (z, lost), (0 * z, z),
        (z.long(), z.long()),
    ):  # fmt: skip
        with pytest.raises(InputError, match="expected"):
            nmtune_losses(a, b)
    for weights in ("other", {"mse": 1.0}, {**ZERO, "cov": -1.0}, (1.0, 2.0, 3.0)):
        with pytest.raises(InputError):
            NMTune(weights=weights)  # type: ignore[arg-type]
    for numbers in ((0, 3), (4, 1), (4, 3, 0), (4, 3, 4, -1)):
        with pytest.raises(InputError, match="expected"):
            NMTuneHead(*numbers)
