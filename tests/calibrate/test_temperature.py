"""Temperature scaling: the optimum is exact, and the calibrated model survives saving."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import assay
from assay.calibrate import Calibrated, Outputs, TemperatureScaling, VectorScaling
from assay.data import load_data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.subject import Subject


def test_closed_form_for_two_classes() -> None:
    # logits (a, 0), a fraction q of labels 0: sigmoid(a / T) = q, so T = a / logit(q)
    z = torch.tensor([[2.0, 0.0]]).repeat(100, 1)
    y = (torch.arange(100) >= 80).long()
    fitted = TemperatureScaling().fit(Outputs(z), y)
    assert abs(fitted.temperature_ - 2.0 / torch.logit(torch.tensor(0.8, dtype=torch.float64)).item()) < 1e-8


def test_edges() -> None:
    right = Outputs(torch.eye(3).repeat(4, 1) * 5)
    y = torch.arange(3).repeat(4)
    assert TemperatureScaling().fit(right, y).temperature_ == 0.01
    assert TemperatureScaling().fit(right, (y + 1) % 3).temperature_ == 100.0
    assert TemperatureScaling().fit(Outputs(torch.ones(4, 3)), y[:4]).temperature_ == 1.0
    far = 5000 * torch.eye(2).repeat(10, 1)  # half right, with margins at which the softmax is saturated for all T
    assert TemperatureScaling().fit(Outputs(far), torch.zeros(20, dtype=torch.int64)).temperature_ == 100.0


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.3, 5.0))
def test_scaling_the_logits_scales_the_temperature(seed: int, factor: float) -> None:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(80, 4, generator=g, dtype=torch.float64)
    y = z.softmax(1).multinomial(1, generator=g)[:, 0]
    one = TemperatureScaling(lowest=1e-4, highest=1e4).fit(Outputs(z), y).temperature_
    other = TemperatureScaling(lowest=1e-4, highest=1e4).fit(Outputs(z * factor), y).temperature_
    assert one >= 1e4 or abs(other / (one * factor) - 1) < 1e-8


def _subject() -> Subject:
    torch.manual_seed(0)
    return Subject(MLP(hidden=(16,)), load_data("digits:test"))


def test_repair_and_round_trip(tmp_path: Path) -> None:
    subject = _subject()
    before = {k: v.clone() for k, v in subject.model.state_dict().items()}
    model = TemperatureScaling().repair(subject, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in subject.model.state_dict().items())
    assert isinstance(model, Calibrated)
    assert model.temperature != 1
    again = assay.load(subject.with_model(model).save(tmp_path / "s"))
    x = subject.test.x
    assert torch.equal(predict(again.model, x), predict(model, x))
    assert torch.allclose(predict(model, x) * model.temperature, predict(subject.model, x), atol=1e-6)


def test_control_changes_nothing() -> None:
    subject = _subject()
    model = TemperatureScaling().control(subject, seed=0)
    assert torch.equal(predict(model, subject.test.x), predict(subject.model, subject.test.x))


def test_a_model_without_a_spec_gives_one_without() -> None:
    data = load_data("digits:test")
    model = TemperatureScaling().apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data)
    assert getattr(model, "spec", None) is None


def test_a_model_that_gives_no_logits_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    for method in (TemperatureScaling(), VectorScaling()):
        with pytest.raises(InputError, match="Pair gives tuple; expected a tensor of logits"):
            method.apply(Pair(), load_data("digits:test"))
