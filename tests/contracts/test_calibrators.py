"""Every exported calibrator: deterministic, leaves its input alone, does not worsen what it declares, repairs."""

import inspect
from pathlib import Path

import pytest
import torch

import assay
import assay.calibrate as room
from assay.calibrate import Calibrator, Outputs
from assay.calibrate import measures as measures
from assay.data import load_data
from assay.methods import from_text
from assay.nets import MLP
from assay.repair import Repairing
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.subject import Subject

METHODS = [
    m for m in (getattr(room, n) for n in room.__all__)
    if getattr(m, "kind", None) == "calibrator" and not inspect.isabstract(m)
]  # fmt: skip


def _sample(n: int = 300, c: int = 5, scale: float = 4.0) -> tuple[Outputs, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    z = torch.randn(n, c, generator=g) * 1.5
    y = torch.distributions.Categorical(logits=z).probs.multinomial(1, generator=g)[:, 0]
    return Outputs(z * scale), y


def _few(cls: type[Calibrator]) -> Calibrator:
    """The method for three classes."""
    return cls(**({"k": 3} if hasattr(cls, "k") else {}))


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
        assert after <= before + (1e-12 if cls.guaranteed else 0.02)
        assert scale == 1.0 or after < before - 1e-3

    @pytest.mark.parametrize("scale", [0.2, 4.0])
    def test_calibrates_samples_it_has_not_seen(self, cls: type[Calibrator], scale: float) -> None:
        outputs, y = _sample(2000, scale=scale)
        fitted = cls().fit(Outputs(outputs.logits[:1000]), y[:1000])
        after = fitted.transform(Outputs(outputs.logits[1000:])).softmax(1)
        assert measures.ece(after, y[1000:]) < 0.5 * measures.ece(outputs.probabilities[1000:], y[1000:])

    def test_takes_logits_with_a_graph(self, cls: type[Calibrator]) -> None:
        outputs, y = _sample(60)
        method = cls(**({"epochs": 3} if hasattr(cls, "epochs") else {}))
        followed = Outputs(outputs.logits.clone().requires_grad_())
        assert torch.equal(method.fit(followed, y).transform(outputs), method.fit(outputs, y).transform(outputs))

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

    def test_shifts_of_a_row_change_nothing(self, cls: type[Calibrator]) -> None:
        outputs, y = _sample()
        fitted = cls().fit(outputs, y)
        p, q = (fitted.transform(Outputs(z)).softmax(1) for z in (outputs.logits, outputs.logits + 3.0))
        assert cls in (room.MatrixScaling, room.VectorScaling, room.MSCTemperatureScaling) or torch.allclose(
            p, q, atol=1e-5
        )

    def test_edges_stay_finite(self, cls: type[Calibrator]) -> None:
        y = torch.arange(3).repeat(8)
        right = 5 * torch.eye(3).repeat(8, 1)
        for logits, labels in (
            (right, y), (right, (y + 1) % 3), (torch.ones(24, 3), y), (200 * right, y), (right, y.clamp_max(1)),
            (right[:1], y[:1]), (right[:2], y[:2]),
        ):  # fmt: skip
            fitted = _few(cls).fit(Outputs(logits), labels)
            assert torch.isfinite(fitted.transform(Outputs(logits))).all()
            assert torch.isfinite(fitted.transform(Outputs(-30 * right))).all()

    def test_bad_input(self, cls: type[Calibrator]) -> None:
        outputs, y = _sample()
        for bad in (y[:-1], y + 5, y.float(), y - 10):
            with pytest.raises(InputError):
                cls().fit(outputs, bad)
        for logits in (torch.full((3, 2), torch.nan), torch.zeros(0, 3), torch.zeros(3), torch.zeros(3, 1)):
            with pytest.raises(InputError):
                Outputs(logits)

    def test_repairs_and_is_saved(self, cls: type[Calibrator], tmp_path: Path) -> None:
        method = from_text(f"calibrate.{cls.__name__}")
        assert isinstance(method, Repairing)
        torch.manual_seed(0)
        subject = Subject(MLP(hidden=(16,)), load_data("digits:test"))
        before = {k: v.clone() for k, v in subject.model.state_dict().items()}
        model = method.repair(subject, seed=0)
        assert all(torch.equal(v, before[k]) for k, v in subject.model.state_dict().items())
        x, holdout = subject.test.x, subject.holdout
        assert holdout is not None
        fitted = method.fit(Outputs(predict(subject.model, holdout.x)), holdout.y)
        expected = fitted.transform(Outputs(predict(subject.model, x)))
        assert torch.allclose(predict(model, x).double(), expected, atol=1e-4)
        few = x[:20].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(few).log_softmax(1)[:, 0].sum(), few)
        assert torch.isfinite(gradient).all()
        again = assay.load(subject.with_model(model).save(tmp_path / "s"))
        assert torch.equal(predict(again.model, x), predict(model, x))
        control = method.control(subject, seed=0)
        assert control is None or torch.equal(predict(control, x), predict(subject.model, x))
