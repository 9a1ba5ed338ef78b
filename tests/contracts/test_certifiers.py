"""Every exported certifier: deterministic, pure, independent of batching, and never broken inside its radius."""

import copy
import inspect

import pytest
import torch
from torch import nn

import assay.certify as room
from assay.certify import CROWN, IBP, Certifier, RandomizedSmoothing
from assay.runtime.errors import InputError

OPTIONS = {IBP: {"eps": 0.05}, CROWN: {"eps": 0.05}, RandomizedSmoothing: {"sigma": 0.3, "n0": 20, "n": 400}}
METHODS = [
    m for m in (getattr(room, n) for n in room.__all__)
    if getattr(m, "kind", None) == "certifier" and not inspect.isabstract(m)
]  # fmt: skip


def _case() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(3, 4, generator=g))
        model[0].bias.zero_()
    x = torch.rand(40, 4, generator=g)
    return model, x, model(x).argmax(1)


def test_there_are_certifiers() -> None:
    assert METHODS


@pytest.mark.parametrize("cls", METHODS)
class TestCertifier:
    def make(self, cls: type[Certifier], **extra: int) -> Certifier:
        return cls(**OPTIONS.get(cls, {}), **extra)

    def test_same_seed_and_batching(self, cls: type[Certifier]) -> None:
        model, x, y = _case()
        before, rng = [p.clone() for p in model.parameters()], torch.random.get_rng_state()
        a, b, c = (self.make(cls, batch_size=k).certify(model, x, y, seed=3) for k in (256, 256, 7))
        assert torch.equal(rng, torch.random.get_rng_state())
        assert model.training
        assert all(p.requires_grad for p in model.parameters())
        assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
        for other in (b, c):
            assert torch.equal(a.verdict, other.verdict)
            assert torch.equal(a.prediction, other.prediction)
            assert torch.equal(a.radius, other.radius)
        assert 0 < a.verdict.sum() <= 40
        assert not (a.verdict & (a.prediction != y)).any()
        wrong = self.make(cls).certify(model, x, (y + 1) % 3, seed=3)
        assert not (wrong.verdict & (a.prediction != (y + 1) % 3)).any()
        assert wrong.verdict.sum() < a.verdict.sum()

    def test_a_model_of_another_floating_type_is_refused(self, cls: type[Certifier]) -> None:
        model, x, y = _case()
        with pytest.raises(InputError, match="model holds float64 and fails on inputs of float32"):
            self.make(cls).certify(copy.deepcopy(model).double(), x, y)

    def test_never_broken_on_a_linear_model(self, cls: type[Certifier]) -> None:
        # smoothing leaves the decisions of linear margins in place, so the exact distances below judge both
        model, x, y = _case()
        found = self.make(cls).certify(model, x, y)
        w, z = model[0].weight.detach().double(), model(x).detach().double()
        norm = 1 if issubclass(cls, IBP) else 2
        gap = z.gather(1, y[:, None]) - z
        distance = (gap / (w[y][:, None] - w[None]).norm(p=norm, dim=2)).nan_to_num(torch.inf)
        nearest = distance.scatter(1, y[:, None], torch.inf).amin(1)
        kept = found.prediction == y
        assert (found.radius[kept] <= nearest[kept] + 1e-4).float().mean() >= (1 if found.confidence == 1 else 0.97)

    def test_bad_input(self, cls: type[Certifier]) -> None:
        model, x, y = _case()
        for bad_x, bad_y in ((x[:0], y[:0]), (x, y[:3]), (x * torch.nan, y), (x, y.float())):
            with pytest.raises(InputError):
                self.make(cls).certify(model, bad_x, bad_y)
