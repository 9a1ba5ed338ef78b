"""Every exported bounder: exact on linear models, never broken by enumeration or sampling."""

import inspect
import itertools

import pytest
import torch
from torch import nn

import assay.certify as room
from assay.certify import Bounder, Region
from assay.nets import MLP, ResNet, SmallCNN
from assay.runtime.errors import InputError

METHODS = [
    m for m in (getattr(room, n) for n in room.__all__)
    if getattr(m, "kind", None) == "bounder" and not inspect.isabstract(m)
]  # fmt: skip


def _state(model: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in model.state_dict().values()]


@pytest.mark.parametrize("cls", METHODS)
class TestBounder:
    def test_exact_on_linear_models(self, cls: type[Bounder]) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        x = torch.rand(5, 3, 2, 2)
        lower, upper = cls().bounds(model, x, Region(eps=0.1))
        w, b = model[1].weight.double(), model[1].bias.double()
        middle, radius = x.double().flatten(1) @ w.T + b, 0.1 * w.abs().sum(1)
        assert torch.allclose(lower, middle - radius, atol=1e-5)
        assert torch.allclose(upper, middle + radius, atol=1e-5)

    def test_encloses_enumeration(self, cls: type[Bounder]) -> None:
        torch.manual_seed(1)
        model = MLP((3,), 3, (6, 6))
        x = torch.rand(1, 3)
        lower, upper = cls().bounds(model, x, Region(eps=0.2, bounds=(0, 1)))
        grid = torch.tensor(list(itertools.product(torch.linspace(-0.2, 0.2, 15).tolist(), repeat=3)))
        z = model((x + grid).clamp(0, 1))
        assert (z >= lower).all()
        assert (z <= upper).all()

    @pytest.mark.parametrize("make", [lambda: SmallCNN(widths=(4, 8), hidden=8), lambda: ResNet((1, 8, 8), width=4)])
    def test_never_broken_and_pure(self, cls: type[Bounder], make) -> None:
        torch.manual_seed(2)
        model = make()
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
        model.train()
        x, before, rng = torch.rand(6, 1, 8, 8), _state(model), torch.random.get_rng_state()
        lower, upper = cls().bounds(model, x, Region(eps=0.02, bounds=(0, 1)))
        assert torch.equal(rng, torch.random.get_rng_state())
        assert model.training
        assert all(p.requires_grad for p in model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, _state(model), strict=True))
        small = cls(batch_size=2).bounds(model, x, Region(eps=0.02, bounds=(0, 1)))
        assert torch.allclose(lower, small[0], atol=1e-9)
        model.eval()
        for k in range(20):
            step = torch.rand(x.shape) * 0.04 - 0.02 if k % 2 else torch.randn(x.shape).sign() * 0.02
            z = model((x + step).clamp(0, 1))
            assert (z >= lower).all()
            assert (z <= upper).all()

    def test_bad_input(self, cls: type[Bounder]) -> None:
        model = MLP((3,), 3)
        with pytest.raises(InputError):
            cls().bounds(model, torch.full((1, 3), torch.nan), Region())
        with pytest.raises(InputError, match="Threshold at '1'"):
            cls().bounds(nn.Sequential(nn.Linear(3, 3), nn.Threshold(0.1, 5.0)), torch.rand(1, 3), Region())
        with pytest.raises(InputError):
            Region(eps=-1)


def test_there_are_bounders() -> None:
    assert METHODS
