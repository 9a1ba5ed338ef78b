"""The spherical family: invariances and closed forms of the Z-loss, and the output layer against dense SGD."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from assay.losses import OneHotSquaredLoss, SphericalLinear, SphericalSoftmaxLoss, TaylorSoftmaxLoss, ZLoss
from assay.losses.spherical import SphericalLoss
from assay.papers.z_loss import dense
from assay.runtime.allocations import allocated
from assay.runtime.errors import InputError

FAMILY = [ZLoss(), ZLoss(0.3, 2.0), SphericalSoftmaxLoss(), TaylorSoftmaxLoss(), OneHotSquaredLoss()]


def _scores(seed: int, n: int = 8, c: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=g, dtype=torch.float64), torch.randint(c, (n,), generator=g)


def _batches(d: int, classes: int, m: int, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(m, d, generator=g, dtype=torch.float64) / d**0.5, torch.randint(classes, (m,), generator=g))
        for _ in range(steps)
    ]


@given(st.integers(0, 2**31), st.floats(1e-2, 1e2), st.floats(-1e2, 1e2))
def test_z_loss_is_invariant_to_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    o, y = _scores(seed)
    loss = ZLoss(reduction="none")
    assert torch.allclose(loss(scale * o + shift, y), loss(o, y), atol=1e-9)


@given(st.integers(0, 2**31))
def test_z_loss_and_its_gradient_are_the_closed_forms(seed: int) -> None:
    o, y = _scores(seed)
    z = (o - o.mean(1, keepdim=True)) / o.std(1, keepdim=True, correction=0)
    own = z.gather(1, y[:, None])
    assert float(own.abs().max()) <= math.sqrt(5) + 1e-12
    loss = ZLoss(2.0, 1.5, reduction="sum")
    assert torch.allclose(loss(o, y), F.softplus(2 * (1.5 - own)).sum() / 2)
    o.requires_grad_()
    (found,) = torch.autograd.grad(loss(o, y), o)
    slope = torch.sigmoid(2 * (1.5 - own)) / o.detach().std(1, keepdim=True, correction=0)
    expected = -slope * (F.one_hot(y, 6).double() - 1 / 6 - own * z / 6)
    assert torch.allclose(found, expected, atol=1e-10)
    assert float(found.sum(1).abs().max()) < 1e-10
    assert float((found * (o.detach() - o.detach().mean(1, keepdim=True))).sum(1).abs().max()) < 1e-10


def test_the_family_is_its_formulas() -> None:
    o, y = _scores(3)
    own = o.gather(1, y[:, None])[:, 0]
    squares, series = o**2 + 0.01, 1 + o + o**2 / 2
    expected = {
        SphericalSoftmaxLoss: -((own**2 + 0.01) / squares.sum(1)).log(),
        TaylorSoftmaxLoss: -((1 + own + own**2 / 2) / series.sum(1)).log(),
        OneHotSquaredLoss: ((o - F.one_hot(y, 6)) ** 2).sum(1),
    }
    for cls, value in expected.items():
        assert torch.allclose(cls(reduction="none")(o, y), value)


@pytest.mark.parametrize("loss", FAMILY, ids=repr)
@pytest.mark.parametrize("m", [1, 7])
def test_layer_is_dense_sgd(loss: SphericalLoss, m: int) -> None:
    d, classes = 5, 30
    layer = SphericalLinear(d, classes, loss, lr=0.2, seed=3)
    start, batches = layer.weight(), _batches(d, classes, m, 60)
    for k, (h, y) in enumerate(batches):
        weight = layer.weight()
        assert torch.allclose(layer.scores(h), h @ weight.T, atol=1e-12)
        hidden = h.clone().requires_grad_()
        value = loss(hidden @ weight.T, y)
        (expected,) = torch.autograd.grad(value, hidden)
        found, gradient = layer.step(h, y)
        assert float(found) == pytest.approx(float(value.detach()), abs=1e-10)
        assert torch.allclose(gradient, expected, atol=1e-10)
        if k == 30:
            layer.refactor()
    end = dense(start, batches, loss, 0.2)
    scale = float(end.abs().max())
    assert float((layer.weight() - end).abs().max()) < 1e-11 * scale
    assert float((layer.q - end.T @ end).abs().max()) < 1e-10 * float((end.T @ end).abs().max())
    assert float((layer.w - end.sum(0)).abs().max()) < 1e-10 * classes * scale
    assert torch.allclose(layer.u_inverse @ layer.u, torch.eye(d, dtype=torch.float64), atol=1e-10)


def test_layer_multiplies_out_when_it_drifts() -> None:
    layer = SphericalLinear(4, 12, OneHotSquaredLoss(), lr=0.4)
    start, batches = layer.weight(), _batches(4, 12, 6, 200)
    drifts = []
    for h, y in batches:
        layer.step(h, y)
        drifts.append(layer.drift)
    assert 0.0 in drifts
    assert max(map(abs, drifts)) <= math.log(1e3)
    assert torch.allclose(layer.weight(), dense(start, batches, OneHotSquaredLoss(), 0.4), atol=1e-10)


@pytest.mark.parametrize("norm", [1.0, 4.2])
def test_a_norm_of_its_own_changes_no_z_score(norm: float) -> None:
    layer, batches = SphericalLinear(4, 12, lr=0.3), _batches(4, 12, 5, 20)
    for h, y in batches:
        layer.step(h, y)
    weight, (h, y) = layer.weight(), batches[0]
    before = ZLoss()(layer.scores(h), y)
    layer.rescale(norm)
    scaled = weight * norm / weight.norm()
    assert torch.allclose(layer.weight(), scaled, atol=1e-13)
    assert float(ZLoss()(layer.scores(h), y)) == pytest.approx(float(before), abs=1e-12)
    assert abs(layer.drift) <= math.log(1e3)
    for h, y in batches:
        layer.step(h, y)
    assert torch.allclose(layer.weight(), dense(scaled, batches, ZLoss(), 0.3), atol=1e-11)


def test_a_step_costs_the_same_for_any_number_of_classes() -> None:
    written = []
    for classes in (100, 5000):
        layer, (h, y) = SphericalLinear(8, classes), _batches(8, classes, 4, 1)[0]
        layer.step(h, y)
        written.append(allocated(lambda layer=layer, h=h, y=y: layer.step(h, y)))
        assert allocated(lambda layer=layer, h=h: layer.scores(h)) >= 4 * classes
    assert written[0] == written[1] > 0


def test_equal_scores_and_unreachable_positions_warn() -> None:
    y = torch.zeros(2, dtype=torch.int64)
    o = torch.ones(2, 5, dtype=torch.float64, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="equal scores"):
        loss = ZLoss()(o, y)
    assert not torch.autograd.grad(loss, o)[0].any()
    with pytest.warns(RuntimeWarning, match="largest z-score"):
        ZLoss(b=3.0)(_scores(0)[0], _scores(0)[1])
    assert ZLoss().position(10) == pytest.approx(2.49)
    assert ZLoss().position(10**6) == 10
    assert ZLoss()(torch.randn(3, 4).half(), torch.arange(3)).dtype == torch.float32


def test_layer_leaves_its_inputs_and_takes_hidden_layers_that_learn() -> None:
    layer = SphericalLinear(4, 9)
    h = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    kept = h.detach().clone()
    loss, gradient = layer.step(h, torch.arange(3))
    assert torch.equal(h, kept)
    assert not any(t.requires_grad for t in (loss, gradient, layer.v))
    other = SphericalLinear(4, 9)
    assert torch.equal(other.weight(), SphericalLinear(4, 9).weight())
    assert not torch.equal(other.weight(), SphericalLinear(4, 9, seed=1).weight())


@pytest.mark.parametrize("lr", [0.5, 0.4999999])
def test_a_step_that_has_no_inverse_is_that_of_dense_sgd(lr: float) -> None:
    """With |h| = 1 and lr = 1/2 the squared error's step takes a direction out of W."""
    layer = SphericalLinear(3, 5, OneHotSquaredLoss(), lr=lr)
    g = torch.Generator().manual_seed(0)
    batches = [
        (F.normalize(torch.randn(1, 3, generator=g, dtype=torch.float64), dim=1), torch.tensor([k])) for k in (4, 0, 2)
    ]
    expected = dense(layer.weight(), batches, OneHotSquaredLoss(), lr)
    for h, y in batches:
        layer.step(h, y)
    assert torch.allclose(layer.weight(), expected, atol=1e-13)
    assert torch.allclose(layer.q, expected.T @ expected, atol=1e-13)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ZLoss(a=0.0),
        lambda: ZLoss(b=math.nan),
        lambda: SphericalSoftmaxLoss(eps=0.0),
        lambda: SphericalLinear(0, 5),
        lambda: SphericalLinear(3, 5, lr=0.0),
        lambda: SphericalLinear(3, 5).rescale(0.0),
        lambda: SphericalLinear(3, 5, torch.nn.CrossEntropyLoss()),  # type: ignore[arg-type]
        lambda: SphericalLinear(3, 5).step(torch.randn(2, 4, dtype=torch.float64), torch.arange(2)),
        lambda: SphericalLinear(3, 5).step(torch.randn(2, 3), torch.arange(2)),
        lambda: SphericalLinear(3, 5).step(torch.full((2, 3), math.nan, dtype=torch.float64), torch.arange(2)),
        lambda: SphericalLinear(3, 5).step(torch.randn(2, 3, dtype=torch.float64), torch.tensor([1, 5])),
    ],
)
def test_bad_input(make: object) -> None:
    with pytest.raises(InputError, match="expected"):
        make()  # type: ignore[operator]
