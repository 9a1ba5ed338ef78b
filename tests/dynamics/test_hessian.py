"""The Hessian by products: equal to the dense one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian

from assay.audit.property import Context
from assay.audit.sharpness import measure
from assay.data import load_data
from assay.dynamics import Hessian
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.subject import Subject


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    with seeded(0, "tiny"):
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
        x = 2 * torch.randn(50, 4)
    return model, x, torch.arange(50) % 3


@pytest.fixture(scope="module")
def dense(tiny: tuple) -> torch.Tensor:
    """The Hessian in float64, parameter by parameter, of the model in evaluation mode."""
    model, x, y = tiny
    model = nn.Sequential(model[0], model[1], model[3])
    names = {k: v.detach().double() for k, v in model.named_parameters()}
    sizes = [v.numel() for v in names.values()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = {k: f.reshape(v.shape) for (k, v), f in zip(names.items(), flat.split(sizes), strict=True)}
        return F.cross_entropy(functional_call(model, parts, (x.double(),)), y)

    return hessian(loss)(torch.cat([v.reshape(-1) for v in names.values()]))


def test_products_equal_the_dense_hessian(tiny: tuple, dense: torch.Tensor) -> None:
    model, x, y = tiny
    v = torch.randn(len(dense), 3, generator=torch_rng(0, "v"), dtype=torch.float64)
    for size in (7, 50, 256):
        h = Hessian(model=model, x=x, y=y, batch_size=size)
        got = torch.stack([h.product(c) for c in v.T], 1)
        assert torch.allclose(got, dense @ v, atol=1e-5)


def test_top_eigenvalue_equals_eigvalsh(tiny: tuple, dense: torch.Tensor) -> None:
    model, x, y = tiny
    exact = float(torch.linalg.eigvalsh(dense)[-1])
    found = Hessian(model=model, x=x, y=y).top_eigenvalue(seed=0, steps=len(dense), tolerance=1e-6)
    assert found.value == pytest.approx(exact, rel=1e-4)
    assert found.residual < 1e-4
    early = Hessian(model=model, x=x, y=y).top_eigenvalue(seed=0, steps=3)
    assert early.value <= exact + 1e-6  # a Ritz value lies inside the spectrum
    assert early.steps == 3
    assert float((torch.linalg.eigvalsh(dense) - early.value).abs().min()) <= early.residual + 1e-6


def test_forms_are_those_of_each_samples_hessian(tiny: tuple, dense: torch.Tensor) -> None:
    model, x, y = tiny
    v = torch.randn(len(dense), generator=torch_rng(0, "form"), dtype=torch.float64)
    forms = Hessian(model=model, x=x, y=y, batch_size=7).forms(v)
    assert forms.shape == y.shape
    assert float(forms.mean()) == pytest.approx(float(v @ dense @ v), rel=1e-4)
    for i in (0, 13, 49):
        alone = Hessian(model=model, x=x[i : i + 1], y=y[i : i + 1])
        assert float(forms[i]) == pytest.approx(float(v @ alone.product(v)), rel=1e-4, abs=1e-5)
    top = Hessian(model=model, x=x, y=y).top_eigenvalue(seed=0, steps=len(dense), tolerance=1e-6)
    along = Hessian(model=model, x=x, y=y).forms(top.vector)
    assert float(along.mean()) == pytest.approx(top.value, rel=1e-4)


def test_lanczos_stops_on_a_small_invariant_space() -> None:
    """A quadratic loss with two different curvatures: two steps are enough, and the answer is exact."""
    model = nn.Linear(2, 1, bias=False)
    x, y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, dtype=torch.int64)
    h = Hessian(model=model, x=x, y=y, loss=lambda out, _: out.square().mean())
    found = h.top_eigenvalue(seed=0)
    assert found.value == pytest.approx(4.0, abs=1e-6)
    assert found.steps == 2
    one = Hessian(model=nn.Linear(1, 1, bias=False), x=x[:, :1], y=y, loss=lambda out, _: out.square().mean())
    assert one.top_eigenvalue(seed=0).value == pytest.approx(4.0, abs=1e-6)


def test_trace_is_unbiased_and_its_error_honest(tiny: tuple, dense: torch.Tensor) -> None:
    model, x, y = tiny
    exact = float(dense.trace())
    h = Hessian(model=model, x=x, y=y)
    found = h.trace(seed=0, probes=400)
    assert abs(found.value - exact) < 3 * found.error
    off = dense - torch.diag(dense.diagonal())
    assert found.error == pytest.approx(float((2 * off.square().sum() / 400).sqrt()), rel=0.25)  # var = 2 sum H_ij^2
    short = [h.trace(seed=s, probes=20) for s in range(20)]
    assert sum(abs(t.value - exact) < 2 * t.error for t in short) >= 16


def test_a_diagonal_hessian_has_an_exact_trace() -> None:
    model, x = nn.Linear(2, 1, bias=False), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    h = Hessian(model=model, x=x, y=torch.zeros(2, dtype=torch.int64), loss=lambda out, _: out.square().mean())
    found = h.trace(seed=0, probes=2)
    assert found.value == pytest.approx(5.0, abs=1e-6)
    assert found.error == pytest.approx(0.0, abs=1e-6)


def test_same_seed_nothing_modified_and_global_state_untouched(tiny: tuple) -> None:
    model, x, y = tiny
    model.train()
    state, before = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    h = Hessian(model=model, x=x, y=y)
    with torch.no_grad():
        pairs = [(h.top_eigenvalue(seed=5, steps=6), h.trace(seed=5, probes=3)) for _ in range(2)]
    assert pairs[0] == pairs[1]
    assert h.trace(seed=6, probes=3) != pairs[0][1]
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(before, torch.get_rng_state())


def test_unused_and_tied_parameters() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(x)))

    with seeded(0, "odd"):
        model, x = Odd(), torch.randn(9, 3)
    h = Hessian(model=model, x=x, y=torch.arange(9) % 3)
    assert h.size == 9 + 3 + 12 + 3
    names = {k: v.detach().double() for k, v in model.named_parameters()}
    sizes = [v.numel() for v in names.values()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = {k: f.reshape(v.shape) for (k, v), f in zip(names.items(), flat.split(sizes), strict=True)}
        return F.cross_entropy(functional_call(model, parts, (x.double(),)), torch.arange(9) % 3)

    exact = hessian(loss)(torch.cat([v.reshape(-1) for v in names.values()]))
    v = torch.randn(h.size, generator=torch_rng(0, "v"), dtype=torch.float64)
    assert torch.allclose(h.product(v), exact @ v, atol=1e-5)


def test_bad_input(tiny: tuple) -> None:
    model, x, y = tiny
    h = Hessian(model=model, x=x, y=y)
    for call in (
        lambda: Hessian(model=model, x=x, y=y[:-1]),
        lambda: Hessian(model=model, x=x * float("nan"), y=y),
        lambda: Hessian(model=model, x=x, y=y, batch_size=0),
        lambda: Hessian(model=nn.Flatten(), x=x, y=y),
        lambda: h.product(torch.zeros(3)),
        lambda: h.top_eigenvalue(seed=0, steps=0),
        lambda: h.trace(seed=0, probes=1),
    ):
        with pytest.raises(InputError):
            call()


def test_the_property() -> None:
    train, test = load_data("digits:train"), load_data("digits:test")
    with seeded(0, "init"):
        model = MLP(hidden=(16,))
    section = measure(Subject(model, test, train), Context(limit=100))
    assert [m.name for m in section.metrics] == ["sharpness.top_eigenvalue", "sharpness.trace"]
    assert all(m.low < m.value < m.high and m.n == 100 for m in section.metrics)
    bare = measure(Subject(model, test), Context(limit=50))
    assert any("no training data" in note for note in bare.notes)
