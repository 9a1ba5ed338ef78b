"""IBP: elision tightens, a temperature changes no verdict, what tracing misses is refused."""

import pytest
import torch
from torch import nn

from assay.calibrate import Calibrated
from assay.certify import CROWN, IBP, Intervals, Region
from assay.certify.base import best_other
from assay.nets import MLP
from assay.runtime.errors import InputError


def test_elision_is_never_looser_and_helps() -> None:
    torch.manual_seed(0)
    model, x = MLP((6,), 4, (12,)), torch.rand(30, 6)
    y = model(x).argmax(1)
    lower, upper = Intervals().bounds(model, x, Region(eps=0.02, bounds=(0, 1)))
    plain = lower.gather(1, y[:, None])[:, 0] - best_other(upper, y)
    elided = IBP(eps=0.02).margins(model, x, y)
    assert (elided >= plain - 1e-9).all()
    assert (elided > plain + 1e-3).all()


def test_temperature_changes_no_verdict() -> None:
    torch.manual_seed(0)
    model, x = MLP((6,), 4, (12,)), torch.rand(30, 6)
    y = model(x).argmax(1)
    a, b = (IBP(eps=0.01).certify(m, x, y).verdict for m in (model, Calibrated(model, 3.0)))
    assert torch.equal(a, b)
    assert a.any()


class Updates(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.view(x.shape[0], -1)
        g = h * 2
        kept = g
        g += 1
        return torch.cat([kept - h, -h], 1)


def test_updates_in_place_are_followed() -> None:
    x = torch.rand(2, 3)
    lower, upper = Intervals().bounds(Updates(), x, Region(eps=0.1))
    assert torch.allclose((lower + upper) / 2, Updates()(x).double(), atol=1e-6)


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(3)


def test_a_model_that_draws_is_refused() -> None:
    with pytest.raises(InputError, match="disagrees"):
        Intervals().bounds(Noisy(), torch.rand(2, 3), Region(eps=0.1))


def test_what_no_margin_can_be_bounded_of_is_refused() -> None:
    model, x, y = MLP((6,), 4, (12,)), torch.rand(3, 6), torch.tensor([0, 1, 4])
    for ask in (IBP().certify, IBP().margins):
        with pytest.raises(InputError, match="expected 0 to 3"):
            ask(model, x, y)
        with pytest.raises(InputError, match="two classes or more"):
            ask(MLP((6,), 1), x, y * 0)
        with pytest.raises(InputError, match="expected float32 or float64"):
            ask(model.half(), x.half(), y * 0)
        model.float()
    for size in (0, -1):
        with pytest.raises(InputError, match=f"batch_size is {size}"):
            CROWN(batch_size=size)


def test_crown_certifies_what_ibp_does_and_more() -> None:
    torch.manual_seed(0)
    model, x = MLP((6,), 4, (12, 12)), torch.rand(60, 6)
    y = model(x).argmax(1)
    ibp, crown = (cls(eps=0.25).certify(model, x, y).verdict for cls in (IBP, CROWN))
    assert (crown | ~ibp).all()
    assert crown.sum() > ibp.sum()
    tuned = CROWN(eps=0.25, alpha_steps=5).certify(model, x, y).verdict
    assert (tuned | ~crown).all()
    assert (CROWN(eps=0.25).margins(model, x, y) >= IBP(eps=0.25).margins(model, x, y)).all()
