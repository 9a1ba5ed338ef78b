"""Every exported set predictor covers as promised, with the exact finite-sample quantile."""

import inspect

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import assay.certify as room
from assay.calibrate import Outputs
from assay.certify import SetPredictor
from assay.certify.base import conformal_quantile
from assay.runtime.errors import InputError

METHODS = [
    m for m in (getattr(room, n) for n in room.__all__)
    if getattr(m, "kind", None) == "set-predictor" and not inspect.isabstract(m)
]  # fmt: skip


REPEATS = 250


def _draw(n: int, seed: int) -> tuple[Outputs, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 4, generator=g)
    y = z.softmax(1).multinomial(1, generator=g)[:, 0]
    return Outputs(z * 2, views=2 * z + torch.randn(16, n, 4, generator=g)), y


def _rows(outputs: Outputs, rows: torch.Tensor) -> Outputs:
    assert outputs.views is not None
    return Outputs(outputs.logits[rows], views=outputs.views[:, rows], index=rows)


def test_quantile_index() -> None:
    scores = torch.arange(1.0, 20.0)
    assert conformal_quantile(scores, 0.1) == 18  # ceil(20 * 0.9)
    assert conformal_quantile(scores, 0.05) == 19
    assert conformal_quantile(scores, 0.04) == float("inf")
    assert METHODS


@pytest.mark.parametrize("cls", METHODS)
class TestSetPredictor:
    @pytest.mark.parametrize("alpha", [0.1, 0.3])
    def test_marginal_coverage(self, cls: type[SetPredictor], alpha: float) -> None:
        rates = []
        for k in range(200):
            outputs, y = _draw(129, k)
            part = [_rows(outputs, torch.arange(129)[r]) for r in (slice(29), slice(29, None))]
            sets = cls(alpha=alpha).fit(part[0], y[:29], seed=k).sets(part[1])
            rates.append(float(sets.gather(1, y[29:, None]).float().mean()))
        error = np.std(rates, ddof=1) / len(rates) ** 0.5
        exact = np.ceil(30 * (1 - alpha) - 1e-9) / 30
        assert np.mean(rates) > exact - 4 * error
        assert not cls.tight or np.mean(rates) < exact + 4 * error
        assert error < 0.01

    def test_coverage_of_every_class(self, cls: type[SetPredictor]) -> None:
        # 19 calibration samples of each class and one to test: it is covered with probability ceil(20 * 0.9) / 20
        hits = np.zeros(4, int)
        for k in range(REPEATS):
            outputs, y = _draw(250, k)
            first = torch.stack([(y == c).nonzero()[:20, 0] for c in range(4)])
            fit, test = first[:, :19].flatten(), first[:, 19]
            fitted = cls(alpha=0.1, by_class=True).fit(_rows(outputs, fit), y[fit], seed=k)
            hits += fitted.sets(_rows(outputs, test)).diagonal().numpy()
        for c in range(4):
            side = "two-sided" if cls.tight else "less"
            assert binomtest(int(hits[c]), REPEATS, 0.9, alternative=side).pvalue > 1e-4, (c, hits)

    def test_by_class_is_each_class_calibrated_alone(self, cls: type[SetPredictor]) -> None:
        outputs, y = _draw(200, 3)
        together = cls(alpha=0.2, by_class=True).fit(outputs, y, seed=5)
        sets = together.sets(outputs)
        assert together.thresholds_ is not None
        assert together.threshold_ == float(together.thresholds_.max())
        for c in range(4):
            rows = (y == c).nonzero()[:, 0]
            alone = cls(alpha=0.2).fit(_rows(outputs, rows), y[rows], seed=5)
            assert alone.threshold_ == float(together.thresholds_[c])
            assert torch.equal(sets[:, c], alone.sets(outputs)[:, c])

    def test_a_class_with_too_few_samples_is_in_every_set(self, cls: type[SetPredictor]) -> None:
        outputs, y = _draw(300, 4)
        keep = torch.cat([(y == c).nonzero()[: (8, 0, 50, 50)[c], 0] for c in range(4)])
        fitted = cls(alpha=0.1, by_class=True).fit(_rows(outputs, keep), y[keep])
        assert fitted.sets(outputs)[:, :2].all()
        assert fitted.thresholds_ is not None
        assert fitted.thresholds_.isfinite().tolist() == [False, False, True, True]

    def test_too_few_samples_keep_every_class(self, cls: type[SetPredictor]) -> None:
        outputs, y = _draw(8, 0)
        assert cls(alpha=0.1).fit(outputs, y).sets(outputs).all()

    def test_deterministic_and_by_sample(self, cls: type[SetPredictor]) -> None:
        outputs, y = _draw(50, 1)
        state = torch.random.get_rng_state()
        fitted = cls().fit(outputs, y, seed=4)
        sets = fitted.sets(outputs)
        assert torch.equal(sets, cls().fit(outputs, y, seed=4).sets(outputs))
        assert sets.dtype == torch.bool
        rows = torch.tensor([40, 3])
        assert torch.equal(sets[rows], fitted.sets(_rows(outputs, rows)))
        assert torch.equal(state, torch.random.get_rng_state())

    def test_bad_input(self, cls: type[SetPredictor]) -> None:
        outputs, y = _draw(20, 2)
        for bad in (y[:3], y + 4, y.float()):
            with pytest.raises(InputError):
                cls().fit(outputs, bad)
        with pytest.raises(InputError):
            cls(alpha=0.0)
