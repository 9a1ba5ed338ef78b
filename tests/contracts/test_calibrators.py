"""Every exported calibrator: deterministic, leaves its input alone, does not worsen what it declares."""

import inspect

import pytest
import torch

import assay.calibrate as room
from assay.calibrate import Calibrator, Outputs
from assay.calibrate import measures as measures
from assay.runtime.errors import InputError

METHODS = [
    m for m in (getattr(room, n) for n in room.__all__)
    if getattr(m, "kind", None) == "calibrator" and not inspect.isabstract(m)
]  # fmt: skip


def _sample(n: int = 300, c: int = 5, scale: float = 4.0) -> tuple[Outputs, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    z = torch.randn(n, c, generator=g) * 1.5
    y = torch.distributions.Categorical(logits=z).probs.multinomial(1, generator=g)[:, 0]
    return Outputs(z * scale), y


def test_there_are_calibrators() -> None:
    assert METHODS


@pytest.mark.parametrize("cls", METHODS)
class TestCalibrator:
    @pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
    def test_does_not_worsen_its_objective(self, cls: type[Calibrator], scale: float) -> None:
        outputs, y = _sample(scale=scale)
        measure = getattr(measures, cls.objective)
        after = measure(cls().fit(outputs, y).transform(outputs).softmax(1), y)
        before = measure(outputs.probabilities, y)
        assert after <= before + 1e-12
        assert scale == 1.0 or after < before - 1e-3

    def test_deterministic_and_pure(self, cls: type[Calibrator]) -> None:
        outputs, y = _sample()
        kept, state = outputs.logits.clone(), torch.random.get_rng_state()
        a, b = (cls().fit(outputs, y).transform(outputs) for _ in range(2))
        assert torch.equal(a, b)
        assert a.shape == kept.shape
        assert a.dtype == torch.float64
        assert torch.equal(outputs.logits, kept)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_rows_are_independent(self, cls: type[Calibrator]) -> None:
        outputs, y = _sample()
        fitted = cls().fit(outputs, y)
        assert torch.allclose(fitted.transform(outputs)[:7], fitted.transform(Outputs(outputs.logits[:7])), atol=1e-12)

    def test_bad_input(self, cls: type[Calibrator]) -> None:
        outputs, y = _sample()
        for bad in (y[:-1], y + 5, y.float(), y - 10):
            with pytest.raises(InputError):
                cls().fit(outputs, bad)
        for logits in (torch.full((3, 2), torch.nan), torch.zeros(0, 3), torch.zeros(3), torch.zeros(3, 1)):
            with pytest.raises(InputError):
                Outputs(logits)
