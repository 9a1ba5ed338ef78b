"""Every exported loss: reductions agree, gradients are right, rows are independent, bad input is refused."""

import inspect

import pytest
import torch
from torch import nn

import assay.losses as room
from assay.runtime.errors import InputError

METHODS = [m for m in (getattr(room, n) for n in room.__all__) if getattr(m, "kind", None) == "loss"]


def _sample(cls: type[nn.Module], n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and labels as the loss takes them: (n, 4) and 0 to 3, or (n,) and both of 0 and 1 where it is binary."""
    g = torch.Generator().manual_seed(3)
    if getattr(cls, "binary", False):
        return torch.randn(n, generator=g, dtype=torch.float64), torch.arange(n) % 2
    return torch.randn(n, 4, generator=g, dtype=torch.float64), torch.randint(4, (n,), generator=g)


def _fields(cls: type[nn.Module], logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the loss needs besides: second labels, shares, or other logits of the same samples."""
    g = torch.Generator().manual_seed(4)
    other = {name: logits + torch.randn(logits.shape, generator=g, dtype=logits.dtype) for name in cls.needs}
    mixed = {
        "target_b": torch.randint(4, (len(logits),), generator=g),
        "lam": torch.rand(len(logits), generator=g, dtype=logits.dtype),
    }
    return {name: mixed.get(name, other[name]) for name in cls.needs}


def test_there_are_losses() -> None:
    assert METHODS


@pytest.mark.parametrize("cls", [m for m in METHODS if not getattr(m, "batchwise", False)])
class TestSumOverSamples:
    def test_reductions(self, cls: type[nn.Module]) -> None:
        logits, y = _sample(cls)
        fields = _fields(cls, logits)
        each = cls(reduction="none")(logits, y, **fields)
        assert each.shape == y.shape
        assert each.dtype == logits.dtype
        assert torch.allclose(cls(reduction="mean")(logits, y, **fields), each.mean())
        assert torch.allclose(cls(reduction="sum")(logits, y, **fields), each.sum())
        with pytest.raises(InputError):
            cls(reduction="median")

    def test_rows_are_independent(self, cls: type[nn.Module]) -> None:
        logits, y = _sample(cls)
        loss = cls(reduction="none")
        fields = _fields(cls, logits)
        part = {name: field[:5] for name, field in fields.items()}
        assert torch.allclose(loss(logits, y, **fields)[:5], loss(logits[:5], y[:5], **part), atol=1e-14)


@pytest.mark.parametrize("cls", [m for m in METHODS if not m.needs])
class TestLoss:
    """In evaluation mode: a loss that draws is deterministic there."""

    def test_is_a_module_that_gives_a_scalar(self, cls: type[nn.Module]) -> None:
        assert inspect.isclass(cls)
        assert issubclass(cls, nn.Module)
        assert cls().eval()(*_sample(cls)).shape == ()

    def test_gradient(self, cls: type[nn.Module]) -> None:
        logits, y = _sample(cls, 6)
        assert torch.autograd.gradcheck(lambda z: cls().eval()(z, y), (logits.requires_grad_(),))

    def test_input_is_kept(self, cls: type[nn.Module]) -> None:
        logits, y = _sample(cls)
        kept, state = logits.clone(), torch.random.get_rng_state()
        loss = cls().eval()
        assert torch.equal(loss(logits, y), loss(logits, y))
        assert torch.equal(logits, kept)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_finite_for_extreme_scores(self, cls: type[nn.Module]) -> None:
        logits, y = _sample(cls)
        assert torch.isfinite(cls().eval()(1e4 * logits.sign(), y))

    def test_a_step_down_the_gradient_lowers_it(self, cls: type[nn.Module]) -> None:
        logits, y = _sample(cls)
        logits.requires_grad_()
        loss = cls().eval()(logits, y)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert cls().eval()(logits - 0.01 * gradient, y) < loss

    def test_bad_input(self, cls: type[nn.Module]) -> None:
        logits, y = _sample(cls)
        nan = logits.clone()
        nan.view(-1)[0] = torch.nan
        # A loss on embeddings knows no number of classes.
        beyond = () if getattr(cls, "embeddings", False) else ((logits, y + 4),)
        for bad in ((logits[:0], y[:0]), (nan, y), *beyond, (logits, y.double()), (logits, y[:-1]), (logits, y - 4)):
            with pytest.raises(InputError):
                cls().eval()(*bad)

    def test_shapes_of_scores(self, cls: type[nn.Module]) -> None:
        logits, y = _sample(cls)
        wrong = (logits[:, None, None],) if getattr(cls, "binary", False) else (logits[:, :1], logits[0])
        for scores in wrong:
            with pytest.raises(InputError):
                cls().eval()(scores, y * 0)
