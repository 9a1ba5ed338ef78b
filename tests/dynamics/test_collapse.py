"""Neural collapse: perfect frames, closed forms, invariances, and the geometry property."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.audit.geometry import measure
from assay.audit.property import Context
from assay.data import load_data
from assay.dynamics import Collapse, head_inputs, neural_collapse
from assay.nets import MLP, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.subject import Subject


def frame(c: int, d: int, seed: int = 0) -> torch.Tensor:
    """A simplex equiangular tight frame (c, d), rows of unit norm."""
    u = torch.linalg.qr(torch.randn(d, c, generator=torch_rng(seed, "u"), dtype=torch.float64))[0]
    centred = torch.eye(c, dtype=torch.float64) - 1 / c
    return (c / (c - 1)) ** 0.5 * centred @ u.T


def numbers(found: Collapse) -> torch.Tensor:
    return torch.tensor(
        [found.nc1, found.norms, found.angles, found.head_norms, found.head_angles, found.nc3, found.nc4]
    )


def blobs(seed: int, c: int = 4, d: int = 7, n: int = 120) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch_rng(seed, "blobs")
    y = torch.arange(n) % c
    centres = torch.randn(c, d, generator=g, dtype=torch.float64)
    h = centres[y] + 0.5 * torch.randn(n, d, generator=g, dtype=torch.float64)
    return h, y, torch.randn(c, d, generator=g, dtype=torch.float64)


@given(c=st.integers(2, 8), extra=st.integers(0, 6), scale=st.floats(0.01, 100), seed=st.integers(0, 50))
@settings(max_examples=25)
def test_a_perfect_frame_measures_zero(c: int, extra: int, scale: float, seed: int) -> None:
    """Unbalanced classes, an offset of all features, and a head of another scale change nothing."""
    etf = frame(c, c + extra, seed)
    y = torch.cat([torch.full((2 + k,), k) for k in range(c)])
    offset = torch.randn(c + extra, generator=torch_rng(seed, "offset"), dtype=torch.float64)
    found = neural_collapse(scale * etf[y] + offset, y, 3 * etf, -3 * etf @ offset)
    assert float(numbers(found).abs().max()) < 1e-9


def test_nc1_equals_the_pseudo_inverse() -> None:
    h, y, w = blobs(0)
    means = torch.stack([h[y == k].mean(0) for k in range(4)])
    m = means - means.mean(0)
    between = m.T @ m / 4
    within = torch.stack([(h[y == k] - means[k]).T @ (h[y == k] - means[k]) / 30 for k in range(4)]).mean(0)
    exact = float(torch.trace(within @ torch.linalg.pinv(between, rtol=1e-8))) / 4
    assert neural_collapse(h, y, w).nc1 == pytest.approx(exact, rel=1e-9)


def test_closed_forms_in_the_plane() -> None:
    """Two classes at (-1, 0) and (3, 0), each spread by +-1 upwards and by +-0.5 along the axis."""
    corner = torch.tensor([[-0.5, -1.0], [-0.5, 1.0], [0.5, -1.0], [0.5, 1.0]])
    h = torch.cat([corner + torch.tensor([-1.0, 0.0]), corner + torch.tensor([3.0, 0.0])])
    y = torch.tensor([0] * 4 + [1] * 4)
    w = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    found = neural_collapse(h, y, w)
    assert found.nc1 == pytest.approx(0.25 / 4 / 2)  # S_W = diag(1/4, 1), S_B = diag(4, 0)
    assert found.norms == pytest.approx(0)
    assert found.angles == pytest.approx(0)
    assert found.nc3 == pytest.approx(2**0.5)  # orthogonal to the means
    assert found.nc4 == pytest.approx(0.5)
    assert neural_collapse(h, y, w, torch.tensor([9.0, 0.0])).nc4 == pytest.approx(0.5)
    assert neural_collapse(h, y, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([1.0, -1.0])).nc4 == 0
    longer = neural_collapse(h, y, torch.tensor([[-1.0, 0.0], [0.0, 3.0]]))
    assert longer.head_norms == pytest.approx(0.5)
    assert longer.head_angles == pytest.approx(1.0)


@given(seed=st.integers(0, 60), scale=st.floats(0.1, 10))
@settings(max_examples=20)
def test_rotation_scale_and_order_do_not_matter(seed: int, scale: float) -> None:
    h, y, w = blobs(seed)
    turn = torch.linalg.qr(torch.randn(7, 7, generator=torch_rng(seed, "turn"), dtype=torch.float64))[0]
    order = torch.randperm(len(h), generator=torch_rng(seed, "order"))
    a, b = neural_collapse(h, y, w), neural_collapse((scale * h @ turn)[order], y[order], w @ turn)
    assert torch.allclose(numbers(a), numbers(b), atol=1e-9)


def test_a_larger_class_counts_no_more() -> None:
    h, y, w = blobs(1)
    again = torch.cat([torch.arange(len(h)), torch.where(y == 2)[0]])
    a, b = neural_collapse(h, y, w), neural_collapse(h[again], y[again], w)
    assert torch.allclose(numbers(a)[:6], numbers(b)[:6], atol=1e-12)


def test_bad_input() -> None:
    h, y, w = blobs(2)
    for args in (
        (h[:, :5], y, w),
        (h, y[:-1], w),
        (h, y + 1, w),
        (h[y < 3], y[y < 3], w),
        (h * float("nan"), y, w),
        (torch.ones_like(h), y, w),
        (h, y, w, torch.zeros(3)),
        (h, torch.zeros_like(y), w[:1]),
    ):
        with pytest.raises(InputError):
            neural_collapse(*args)


def test_head_inputs_are_what_the_head_is_fed() -> None:
    x = load_data("digits:test").x[:50]
    with seeded(0, "init"):
        model = SmallCNN()
    fed, head = head_inputs(model, x, batch_size=7)
    assert head is model.head
    assert torch.allclose(fed, model.body(x).detach(), atol=1e-6)
    assert all(not m._forward_hooks for m in model.modules())
    for bad in (
        nn.Sequential(nn.Flatten(), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)),
    ):
        with pytest.raises(InputError, match="linear head"):
            head_inputs(bad, x)
        assert all(not m._forward_hooks for m in bad.modules())


def test_the_property_on_train_on_test_and_skipped() -> None:
    train, test = load_data("digits:train"), load_data("digits:test")
    with seeded(0, "init"):
        model = MLP(hidden=(24,))
    section = measure(Subject(model, test, train), Context())
    names = [m.name for m in section.metrics]
    assert names == ["geometry.nc1", "geometry.nc2.norms", "geometry.nc2.angles", "geometry.nc3", "geometry.nc4"]
    assert all(m.low <= m.value <= m.high and m.low < m.high for m in section.metrics)
    assert section.skipped is None
    assert not section.notes
    bare = measure(Subject(model, test), Context())
    assert "no training data" in bare.notes[0]
    assert measure(Subject(model, test[test.y != 3]), Context()).skipped is not None
    assert "linear head" in (measure(Subject(nn.Flatten(), test), Context()).skipped or "")


def test_weighting_by_sample() -> None:
    """The official form, from its matrices: global mean and S_W over samples, S_B over classes."""
    h, y, w = blobs(4)
    again = torch.cat([torch.arange(len(h)), torch.where(y == 2)[0], torch.where(y == 2)[0]])
    h, y = h[again], y[again]
    means = torch.stack([h[y == k].mean(0) for k in range(4)])
    m = means - h.mean(0)
    within = (h - means[y]).T @ (h - means[y]) / len(h)
    found = neural_collapse(h, y, w, weighting="sample")
    assert found.nc1 == pytest.approx(float(torch.trace(within @ torch.linalg.pinv(m.T @ m / 4, rtol=1e-8))) / 4)
    simplex = (torch.eye(4, dtype=torch.float64) - 1 / 4) / 3**0.5
    assert found.product == pytest.approx(float((w @ m.T / (w @ m.T).norm() - simplex).norm()))
    assert found.head_gram == pytest.approx(float((w @ w.T / (w @ w.T).norm() - simplex).norm()))
    assert found.nc1 != pytest.approx(neural_collapse(h, y, w).nc1, rel=1e-3)
    balanced = blobs(5)
    by_class, by_sample = (neural_collapse(*balanced, weighting=how) for how in ("class", "sample"))
    assert torch.allclose(numbers(by_class), numbers(by_sample), atol=1e-12)
    with pytest.raises(InputError, match="weighting"):
        neural_collapse(h, y, w, weighting="pixel")


def test_measures_per_class() -> None:
    h, y, w = blobs(6)
    wide = torch.where(y[:, None] == 1, h + 5 * (h - h[y == 1].mean(0)), h)
    found = neural_collapse(wide, y, w)
    assert float(found.per_class["spread"].mean()) == pytest.approx(found.nc1)
    assert int(found.per_class["spread"].argmax()) == 1
    assert found.per_class["count"].tolist() == [30] * 4
    assert float(found.per_class["disagree"].mean()) == pytest.approx(found.nc4)
    assert float(found.per_class["norm"].mean()) == pytest.approx(1)
    etf = neural_collapse(frame(5, 8)[torch.arange(20) % 5], torch.arange(20) % 5, frame(5, 8))
    assert torch.allclose(etf.per_class["nearest"], torch.full((5,), -0.25, dtype=torch.float64))
    assert torch.allclose(etf.per_class["head_cos"], torch.ones(5, dtype=torch.float64))


def test_without_a_head_and_with_a_single_sample() -> None:
    h, y, w = blobs(7)
    bare, full = neural_collapse(h, y), neural_collapse(h, y, w)
    assert (bare.nc1, bare.norms, bare.angles) == (full.nc1, full.norms, full.angles)
    assert torch.tensor([bare.head_norms, bare.head_angles, bare.nc3, bare.head_gram, bare.product]).isnan().all()
    assert len(bare.disagree) == 0
    with pytest.warns(UserWarning, match="class 3 has one sample"):
        neural_collapse(torch.cat([h[y < 3], h[y == 3][:1]]), torch.cat([y[y < 3], y[y == 3][:1]]), w)
    with pytest.raises(InputError, match="bias"):
        neural_collapse(h, y, None, torch.zeros(4))
    with pytest.raises(InputError, match="at least 2"):
        neural_collapse(h, torch.zeros_like(y))
