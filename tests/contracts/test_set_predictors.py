"""Every exported set predictor covers as promised, with the exact finite-sample quantile."""

import inspect

import numpy as np
import pytest
import torch

import assay.certify as room
from assay.calibrate import Outputs
from assay.certify import SetPredictor
from assay.certify.base import conformal_quantile
from assay.runtime.errors import InputError

METHODS = [
    m for m in (getattr(room, n) for n in room.__all__)
    if getattr(m, "kind", None) == "set-predictor" and not inspect.isabstract(m)
]  # fmt: skip


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
