"""Logit gaps, power laws and predicted error against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from assay.attacks import (
    FGSM,
    PGD,
    Linf,
    LogitGapDistribution,
    Untargeted,
    adversarial_scaling,
    architecture_sensitivity,
    fit_power_law,
    flip_distance,
    logit_gaps,
    predicted_error,
)
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng


def uniform(n: int, c: int, seed: int) -> torch.Tensor:
    return torch.rand(n, c, generator=torch_rng(seed, "logits"), dtype=torch.float64)


def affine(classes: int, d: int = 12, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    with seeded(seed, "affine"):
        model = MLP((d,), classes, ()).double()
    return model, torch.randn(2000, d, generator=torch_rng(seed, "x"), dtype=torch.float64)


def by_hand(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    """The l-infinity distance to the boundary between the two likeliest classes of an affine model."""
    w, b = (p.detach().numpy() for p in model.parameters())
    scores = x.numpy() @ w.T + b
    order = np.argsort(-scores, 1)
    rows = np.arange(len(x))
    gap = scores[rows, order[:, 0]] - scores[rows, order[:, 1]]
    return gap / np.abs(w[order[:, 0]] - w[order[:, 1]]).sum(1)


class TestGaps:
    def test_by_hand(self) -> None:
        logits = torch.tensor([[1.0, 5.0, 2.0], [0.0, -1.0, 0.0]])
        assert logit_gaps(logits).tolist() == [3.0, 0.0]
        assert logit_gaps(logits, 3).tolist() == [4.0, 1.0]

    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 10_000), st.integers(2, 6))
    def test_a_shift_changes_nothing_and_a_scale_scales(self, seed: int, c: int) -> None:
        logits = uniform(20, c, seed)
        gaps = logit_gaps(logits, c)
        torch.testing.assert_close(logit_gaps(3 * logits + 7, c), 3 * gaps, rtol=0, atol=1e-13)
        assert (gaps >= logit_gaps(logits, 2)).all()

    @pytest.mark.parametrize("classes", [3, 10])
    @pytest.mark.parametrize("j", [2, 3])
    def test_uniform_logits_have_beta_gaps(self, classes: int, j: int) -> None:
        n = 200_000
        found = LogitGapDistribution.fit(uniform(n, classes, 1))
        law = stats.beta(j - 1, classes - j + 2)
        for q in (0.02, 0.1, 0.3):
            p = law.cdf(q)
            assert abs(found.cumulative(q, j) - p) <= 4 * math.sqrt(p * (1 - p) / n)
        if j == 2:
            assert law.cdf(0.1) == pytest.approx(1 - 0.9**classes)
            assert found.density0 == pytest.approx(classes, rel=0.1)

    @pytest.mark.parametrize("j", [2, 3, 4])
    def test_the_exponent_is_j_minus_1(self, j: int) -> None:
        found = LogitGapDistribution.fit(uniform(400_000, 10, 2))
        assert found.local_exponent(j, 0.02) == pytest.approx(j - 1, abs=0.3)

    def test_hill_by_hand(self) -> None:
        found = LogitGapDistribution.fit(torch.tensor([[1.0, 0.5], [1.0, 0.75], [9.0, 0.0]]))
        assert found.local_exponent(2, 1.0) == pytest.approx(2 / (math.log(2) + math.log(4)))
        assert math.isnan(found.local_exponent(2, 0.1))

    def test_bad_input(self) -> None:
        good = uniform(5, 3, 0)
        bad = [good[:, :1], good[0], good[:0], good * torch.nan, good.long(), None]
        for logits in bad:
            with pytest.raises(InputError):
                LogitGapDistribution.fit(logits)
        for j in (1, 4):
            with pytest.raises(InputError):
                logit_gaps(good, j)
            with pytest.raises(InputError):
                LogitGapDistribution.fit(good).cumulative(0.1, j)
        with pytest.raises(InputError):
            LogitGapDistribution.fit(good).local_exponent(2, 0.0)
        with pytest.raises(InputError, match="density0"):
            _ = LogitGapDistribution.fit(torch.ones(4, 3)).density0


class TestPowerLaw:
    @settings(deadline=None, max_examples=25)
    @given(st.floats(0.5, 2.0), st.floats(0.2, 3.0))
    def test_recovers_a_power_law(self, exponent: float, prefactor: float) -> None:
        rate = torch.logspace(-3, -0.5, 12, dtype=torch.float64)
        eps = (rate / prefactor) ** (1 / exponent)
        events = torch.arange(10_000)[None] < (10_000 * rate)[:, None].round()
        law = fit_power_law(eps, events, bootstrap=10)
        assert law.exponent == pytest.approx(exponent, rel=0.04)
        assert law.prefactor == pytest.approx(prefactor, rel=0.1)
        inside = (events.double().mean(1) >= 0.0015) & (events.double().mean(1) <= 0.1)
        assert law.mask.equal(inside)

    def test_the_interval_narrows_with_samples_and_holds_the_truth(self) -> None:
        eps, widths, covered = torch.logspace(-2, -1, 8, dtype=torch.float64), [], 0
        for k in range(40):
            n = 500 if k % 2 else 4000
            level = torch.rand(n, generator=torch_rng(k, "level"), dtype=torch.float64)
            low, high = fit_power_law(eps, level < eps[:, None]).exponent_ci
            covered += low <= 1 <= high
            widths.append(high - low)
        assert covered >= 33
        assert np.mean(widths[::2]) < np.mean(widths[1::2]) / 2

    def test_nothing_in_the_window(self) -> None:
        with pytest.warns(RuntimeWarning, match="window"):
            law = fit_power_law(torch.tensor([0.1, 0.2]), torch.ones(2, 50, dtype=torch.bool))
        assert math.isnan(law.exponent)
        assert not law.mask.any()

    def test_bad_input(self) -> None:
        eps, events = torch.tensor([0.1, 0.2]), torch.zeros(2, 50, dtype=torch.bool)
        cases = [(eps[:1], events), (eps, events.int()), (eps * 0, events), (eps, events[:, :0]), (eps, events[0])]
        for bad_eps, bad_events in cases:
            with pytest.raises(InputError):
                fit_power_law(bad_eps, bad_events)
        for more in ({"low": 0.2}, {"high": 2.0}, {"least": 0}, {"bootstrap": 0}):
            with pytest.raises(InputError):
                fit_power_law(eps, events, **more)


class TestPrediction:
    @pytest.mark.parametrize("classes", [2, 5])
    def test_distance_of_affine_models(self, classes: int) -> None:
        model, x = affine(classes)
        found = flip_distance(model, x, along="gap", batch_size=700)
        np.testing.assert_allclose(found.numpy(), by_hand(model, x), rtol=1e-9)
        eps = torch.tensor([1e-3, 1e-2, 0.1], dtype=torch.float64)
        expected = [(by_hand(model, x) < e).mean() for e in eps.tolist()]
        assert predicted_error(model, x, eps, along="gap").tolist() == pytest.approx(expected, abs=0)
        loss = flip_distance(model, x)
        assert (loss >= found - 1e-12).all()  # no signs close a gap sooner than its own
        assert loss.equal(found) == (classes == 2)

    def test_the_step_of_the_loss_by_hand(self) -> None:
        model, x = affine(4)
        w, b = (p.detach() for p in model.parameters())
        scores = x @ w.T + b
        p, (first, second) = scores.softmax(1), scores.topk(2, 1).indices.unbind(1)
        steps = (p @ w - w[first]).sign()  # of the gradient of cross-entropy under the predicted label
        closing = -(steps * (w[first] - w[second])).sum(1)
        gap = (scores.gather(1, first[:, None]) - scores.gather(1, second[:, None]))[:, 0]
        expected = torch.where(closing > 0, gap / closing, torch.inf)
        torch.testing.assert_close(flip_distance(model, x), expected)

    def test_a_constant_model_is_never_flipped(self) -> None:
        model, x = affine(3)
        with torch.no_grad():
            model.head.weight.zero_()
        assert (flip_distance(model, x) == torch.inf).all()

    def test_bad_input(self) -> None:
        model, x = affine(3)
        for bad in (x[:0], x * torch.nan, x.long()):
            with pytest.raises(InputError):
                predicted_error(model, bad, torch.tensor([0.1]))
        with pytest.raises(InputError, match="direction"):
            flip_distance(model, x, along="logit")


class TestScaling:
    eps = torch.logspace(-3, -0.5, 9, dtype=torch.float64)

    def test_an_affine_model_of_two_classes_is_exact(self) -> None:
        model, x = affine(2)
        expected = [(by_hand(model, x) < e).mean() for e in self.eps.tolist()]
        for attack in ("fgsm", "pgd", "step_ll"):
            result = adversarial_scaling(model, x, eps=self.eps, attack=attack, reference="prediction", bounds=None)
            assert result.error.tolist() == pytest.approx(expected, abs=1e-12)
            assert result.exponent == pytest.approx(1, abs=0.2)
            assert result.exponent_ci[0] <= result.exponent <= result.exponent_ci[1]
            assert result.stalled == 0

    def test_one_step_is_fgsm(self) -> None:
        model, x = affine(5)
        x = x.sigmoid()
        y = model(x).argmax(1)
        result = adversarial_scaling(model, x, y, eps=self.eps)
        for k, eps in enumerate(self.eps.tolist()):
            x_adv = FGSM(ball=Linf(eps)).run(model, x, Untargeted(y), seed=0).x_adv
            assert result.predictions[k].equal(model(x_adv).argmax(1))

    def test_pgd_is_ten_projected_steps(self) -> None:
        model, x = affine(5)
        x = x.sigmoid()
        y = model(x).argmax(1)
        result = adversarial_scaling(model, x, y, eps=self.eps, attack="pgd")
        attack = PGD(ball=Linf(self.eps[-1].item()), steps=10, step_size=0.25, random_start=False, early_stop=False)
        assert result.predictions[-1].equal(model(attack(model, x, y, seed=0)).argmax(1))

    def test_the_least_likely_class_is_approached(self) -> None:
        model, x = affine(5)
        least = model(x).argmin(1)
        eps = torch.tensor([0.01, 0.02, 30.0])
        result = adversarial_scaling(model, x, eps=eps, attack="step_ll", reference="prediction", bounds=None)
        assert (result.predictions[2] == least).double().mean() > 0.9

    def test_only_right_samples_count(self) -> None:
        model, x = affine(4)
        y = model(x).argmax(1)
        y[:500] = (y[:500] + 1) % 4
        labels = adversarial_scaling(model, x, y, self.eps, bounds=None)
        assert labels.reference.shape == (1500,)
        rest = adversarial_scaling(model, x[500:], eps=self.eps, reference="prediction", bounds=None)
        assert labels.error.equal(rest.error)

    def test_a_function_is_an_attack(self) -> None:
        model, x = affine(3)
        seen = []

        def still(model: nn.Module, x: torch.Tensor, reference: torch.Tensor, eps: float) -> torch.Tensor:
            seen.append(eps)
            return x

        with pytest.warns(RuntimeWarning, match="window"):
            result = adversarial_scaling(model, x, None, self.eps, still, "prediction", bounds=None)
        assert seen == self.eps.tolist()
        assert not result.error.any()
        assert math.isnan(result.prefactor)

    def test_saturated_models_still_have_a_direction(self) -> None:
        model, x = affine(3)
        with torch.no_grad():
            model.head.weight.mul_(1e4)
        model, x = model.float(), x.float()
        result = adversarial_scaling(model, x, eps=self.eps, reference="prediction", bounds=None)
        assert result.stalled == 0
        with torch.no_grad():
            model.head.weight.zero_()
        with pytest.warns(RuntimeWarning, match="window"):
            result = adversarial_scaling(model, x, eps=self.eps, reference="prediction", bounds=None)
        assert result.stalled == len(x)

    def test_batches_and_inputs(self) -> None:
        model, x = affine(4)
        model.train()
        kept, random = x.clone(), torch.get_rng_state()
        first = adversarial_scaling(model, x, None, self.eps, "fgsm", "prediction", bounds=None)
        again = adversarial_scaling(model, x, None, self.eps, "fgsm", "prediction", bounds=None, batch_size=37)
        assert first.predictions.equal(again.predictions)
        assert first.exponent_ci == again.exponent_ci
        assert x.equal(kept)
        assert model.training
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert torch.get_rng_state().equal(random)

    def test_the_default_sizes(self) -> None:
        model, x = affine(3)
        result = adversarial_scaling(model, x.sigmoid(), reference="prediction")
        assert len(result.eps) == 24
        assert result.eps[[0, -1]].tolist() == pytest.approx([1e-5, 0.3])
        assert result.prefactor > 0
        assert result.mask.any()

    def test_bad_input(self) -> None:
        model, x = affine(3)
        x = x.sigmoid()
        y = model(x).argmax(1)
        for args in ((x * 3, y), (x[:0], y[:0]), (x * torch.nan, y), (x, y[1:]), (x, y + 9), (x, None)):
            with pytest.raises(InputError):
                adversarial_scaling(model, *args)
        for options in ({"eps": torch.zeros(2)}, {"eps": 0.1}, {"attack": "cw"}, {"reference": "y"}):
            with pytest.raises(InputError):
                adversarial_scaling(model, x, y, **options)
        with pytest.raises(InputError, match="right"):
            adversarial_scaling(model, x, (y + 1) % 3)
        with pytest.raises(InputError, match="the attack gave"):
            adversarial_scaling(model, x, y, attack=lambda m, x, y, e: x[1:])
        with torch.no_grad():
            model.head.bias.fill_(torch.nan)
        with pytest.raises(InputError, match="not finite"):
            adversarial_scaling(model, x, y)


class TestArchitectures:
    def test_report(self) -> None:
        models = {f"{k}": affine(3, seed=k)[0] for k in range(3)}
        x = affine(3)[1].sigmoid()
        y = models["0"](x).argmax(1)
        report = architecture_sensitivity(models, x, y)
        assert report.clean[0] == 1
        assert report.parameters.tolist() == [39] * 3
        fooled = FGSM(ball=Linf(8 / 255)).run(models["1"], x, Untargeted(y), seed=0).success.double().mean()
        assert report.adversarial[1] == pytest.approx(1 - float(fooled))
        assert math.isnan(report.with_size)
        assert report.with_clean == pytest.approx(np.corrcoef(report.clean, report.adversarial)[0, 1])
        with pytest.raises(InputError, match="three"):
            architecture_sensitivity({"a": models["0"]}, x, y)
