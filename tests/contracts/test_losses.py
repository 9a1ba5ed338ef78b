"""Every exported loss: reductions agree, gradients are right, rows are independent, bad input is refused."""

import inspect

import pytest
import torch
from torch import nn

import assay.losses as room
from assay.runtime.errors import InputError

METHODS = [m for m in (getattr(room, n) for n in room.__all__) if getattr(m, "kind", None) == "loss"]


def _sample(n: int = 12, c: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, c, generator=g, dtype=torch.float64), torch.randint(c, (n,), generator=g)


def test_there_are_losses() -> None:
    assert METHODS


@pytest.mark.parametrize("cls", [m for m in METHODS if not m.needs])
class TestLoss:
    def test_is_a_module_with_reductions(self, cls: type[nn.Module]) -> None:
        logits, y = _sample()
        each = cls(reduction="none")(logits, y)
        assert inspect.isclass(cls)
        assert issubclass(cls, nn.Module)
        assert each.shape == y.shape
        assert each.dtype == logits.dtype
        assert torch.allclose(cls(reduction="mean")(logits, y), each.mean())
        assert torch.allclose(cls(reduction="sum")(logits, y), each.sum())

    def test_gradient(self, cls: type[nn.Module]) -> None:
        logits, y = _sample(5)
        assert torch.autograd.gradcheck(lambda z: cls()(z, y), (logits.requires_grad_(),))

    def test_rows_are_independent_and_input_is_kept(self, cls: type[nn.Module]) -> None:
        logits, y = _sample()
        kept, state = logits.clone(), torch.random.get_rng_state()
        loss = cls(reduction="none")
        assert torch.allclose(loss(logits, y)[:5], loss(logits[:5], y[:5]), atol=1e-14)
        assert torch.equal(loss(logits, y), loss(logits, y))
        assert torch.equal(logits, kept)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_finite_for_extreme_scores(self, cls: type[nn.Module]) -> None:
        logits = torch.tensor([[1e4, 0.0, -1e4]] * 3)
        assert torch.isfinite(cls(reduction="none")(logits, torch.arange(3))).all()

    def test_a_step_down_the_gradient_lowers_it(self, cls: type[nn.Module]) -> None:
        logits, y = _sample()
        logits.requires_grad_()
        loss = cls()(logits, y)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert cls()(logits - 0.1 * gradient, y) < loss

    def test_bad_input(self, cls: type[nn.Module]) -> None:
        logits, y = _sample()
        nan = logits.clone()
        nan[0, 0] = torch.nan
        for bad in ((logits[:0], y[:0]), (nan, y), (logits, y + 4), (logits, y.double()), (logits, y[:-1]),
                    (logits[:, :1], y * 0), (logits[0], y)):  # fmt: skip
            with pytest.raises(InputError):
                cls()(*bad)
        with pytest.raises(InputError):
            cls(reduction="median")
