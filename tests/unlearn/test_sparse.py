"""Sparse unlearning: the penalty, the influence step, masks that stay, and the factors of the error bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.compress import MagnitudePruning, size_of
from assay.data import Data, load_data
from assay.dynamics import Hessian
from assay.nets import MLP, ResNet
from assay.runtime.errors import AccessError, InputError
from assay.runtime.random import seeded, torch_rng
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import (
    FineTune,
    InfluenceUnlearn,
    L1SparseUnlearn,
    NegGrad,
    PruneFirstThenUnlearn,
    Retrain,
    Unlearner,
    fisher_solve,
    forget_set,
    masked_curvature,
    near_zero,
    running_solve,
    unlearning_error_bound,
)
from assay.unlearn.sparse_bound import flat_mask


@pytest.fixture(scope="module")
def subject() -> Subject:
    train, recipe = load_data("digits:train").limit(300), Supervised(epochs=6)
    with seeded(0, "test"):
        model = MLP(hidden=(32,))
    return Subject(recipe.fit(model, train, seed=0), load_data("digits:test"), train, recipe=recipe)


@pytest.fixture(scope="module")
def parts(subject: Subject) -> tuple[Data, Data]:
    return forget_set(subject.training("the test"), "class=3")


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_without_penalty_it_is_fine_tuning_bit_for_bit(subject: Subject, parts: tuple[Data, Data]) -> None:
    plain = FineTune(epochs=3, lr=0.03).forget(subject, *parts, seed=1)
    method = L1SparseUnlearn(epochs=3, lr=0.03, gamma=0.0)
    assert same(method.forget(subject, *parts, seed=1), plain)
    assert not same(replace(method, gamma=1e-5).forget(subject, *parts, seed=1), plain)


def test_schedules_by_hand() -> None:
    def weights(**options: object) -> list[float]:
        method = L1SparseUnlearn(gamma=8.0, epochs=4, **options)
        return [method.weight(t) for t in range(4)]

    assert weights() == [8, 6, 4, 2]
    assert weights(schedule="increasing") == [0, 2, 4, 6]
    assert weights(schedule="constant") == [8, 8, 8, 8]
    assert weights(no_l1_epochs=2) == [8, 4, 0, 0]
    assert weights(schedule="constant", no_l1_epochs=1) == [8, 8, 8, 0]
    assert weights(no_l1_epochs=4) == [8, 8, 8, 8]


def test_one_step_is_gradient_plus_sign(subject: Subject, parts: tuple[Data, Data]) -> None:
    retain = parts[1]
    whole = subject.with_model(subject.model, recipe=Supervised(batch_size=len(retain), schedule="constant"))
    method = L1SparseUnlearn(epochs=1, lr=0.1, momentum=0.0, gamma=1e-3)
    moved = dict(method.forget(whole, *parts, seed=0).named_parameters())
    loss = F.cross_entropy(subject.model(retain.x), retain.y)
    gradients = torch.autograd.grad(loss, list(subject.model.parameters()))
    for (name, p), g in zip(subject.model.named_parameters(), gradients, strict=True):
        assert torch.allclose(moved[name], p - 0.1 * (g + 1e-3 * p.sign()), atol=1e-6)


def test_the_penalty_sparsifies_and_may_spare_norms(subject: Subject, parts: tuple[Data, Data]) -> None:
    shares = [
        near_zero(L1SparseUnlearn(epochs=5, lr=0.03, gamma=gamma).forget(subject, *parts, seed=0), 5e-3)
        for gamma in (0.0, 3e-3, 1e-2)
    ]
    assert shares[0] < shares[1] < shares[2]
    with seeded(0, "norms"):
        net = ResNet((1, 8, 8), 10, 4, (1,))
    norms = sum(
        float(p.detach().abs().sum()) for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    )
    every, some = (float(L1SparseUnlearn(exclude_norm=e).norm(net).detach()) for e in (False, True))
    assert norms > 0
    assert every - some == pytest.approx(norms, rel=1e-5)


def logistic() -> tuple[nn.Module, Subject, Data, Data]:
    """Twenty parameters: 4 classes, 4 inputs and a bias."""
    g = torch_rng(0, "logistic")
    x, y = torch.randn(70, 4, generator=g, dtype=torch.float64), torch.randint(4, (70,), generator=g)
    data = Data(x, y, tuple("abcd"), bounds=(-9.0, 9.0))
    with seeded(0, "weights"):
        model = nn.Linear(4, 4).double()
    return model, Subject(model, data, data), data[:20], data[20:]


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(model(x), y)
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]
    )


def test_exact_influence_is_the_dense_solve() -> None:
    model, subject, forget, retain = logistic()
    assert sum(p.numel() for p in model.parameters()) == 20
    rows = torch.stack([gradient(model, x[None], y[None]) for x, y in zip(retain.x, retain.y, strict=True)])
    lost = torch.stack([gradient(model, x[None], y[None]) for x, y in zip(forget.x, forget.y, strict=True)])
    v = lost.sum(0) / 70 - 20 / (70 * 50) * rows.sum(0)
    fisher = rows.T @ rows / 50
    dense = torch.linalg.solve(fisher + 1e-3 * fisher.diagonal().mean() * torch.eye(20).double(), v)
    step = InfluenceUnlearn().step(model, forget, retain, seed=0)
    assert (step - dense).norm() / dense.norm() < 1e-8
    fast = InfluenceUnlearn(mode="fast").step(model, forget, retain, seed=0)
    assert (fast - dense).norm() / dense.norm() > 0.1
    moved = InfluenceUnlearn(alpha=0.5).forget(subject, forget, retain, seed=0)
    flat = torch.cat([(a - b).flatten() for a, b in zip(moved.parameters(), model.parameters(), strict=True)])
    assert torch.allclose(flat, 0.5 * dense, rtol=1e-6)


def test_frozen_parameters_stay_and_count_in_no_gradient() -> None:
    model, subject, forget, retain = logistic()
    model.bias.requires_grad_(False)
    rows, lost = (
        torch.stack([gradient(model, x[None], y[None]) for x, y in zip(d.x, d.y, strict=True)])
        for d in (retain, forget)
    )
    expected = fisher_solve(rows, lost.sum(0) / 70 - 20 / (70 * 50) * rows.sum(0))
    moved = InfluenceUnlearn(alpha=0.5).forget(subject, forget, retain, seed=0)
    assert torch.allclose((moved.weight - model.weight).flatten(), 0.5 * expected, rtol=1e-6)
    assert torch.equal(moved.bias, model.bias)
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter"):
        InfluenceUnlearn().forget(subject, forget, retain, seed=0)


def test_the_step_raises_what_is_forgotten_and_holds_what_is_retained() -> None:
    model, subject, forget, retain = logistic()
    before, after = model, InfluenceUnlearn(alpha=0.2).forget(subject, forget, retain, seed=0)
    loss = [[float(F.cross_entropy(m(d.x), d.y).detach()) for d in (forget, retain)] for m in (before, after)]
    assert loss[1][0] > loss[0][0]
    assert loss[1][1] - loss[0][1] < loss[1][0] - loss[0][0]


def test_the_running_recursion_by_hand_is_no_inverse() -> None:
    g = torch.tensor([[1.0, 0.0], [1.0, 2.0]]).double()
    v = torch.tensor([1.0, 1.0]).double()
    # One step: o = (1, 0), o.g = 1, k.g = 3: k = (1, 1) - 3 / (2 + 1) (1, 0).
    assert running_solve(g, v).tolist() == [0, 1]
    dense = torch.linalg.solve(g.T @ g / 2 + 1e-3 * 1.5 * torch.eye(2).double(), v)
    assert torch.allclose(fisher_solve(g, v), dense, rtol=1e-10)
    assert not torch.allclose(dense, running_solve(g, v), rtol=0.1)


@pytest.mark.parametrize(
    "unlearner",
    [
        FineTune(epochs=2, lr=0.02),
        NegGrad(lr=1e-3),
        L1SparseUnlearn(epochs=2, gamma=1e-3),
        InfluenceUnlearn(alpha=0.1, n_fisher=50),
        Retrain(),
    ],
    ids=lambda u: type(u).__name__,
)
def test_masked_entries_are_exactly_zero(subject: Subject, parts: tuple[Data, Data], unlearner: Unlearner) -> None:
    method = PruneFirstThenUnlearn(pruner=MagnitudePruning(sparsity=0.8), unlearner=unlearner)
    found = method.fit(subject, *parts, seed=0)
    weights = dict(found.model.named_parameters())
    assert set(weights) == {name for name, _ in subject.model.named_parameters()}
    assert sum(int((~m).sum()) for m in found.mask_.values()) == round(
        0.8 * sum(m.numel() for m in found.mask_.values())
    )
    for model in (found.model, found.sparse_):
        assert all(not dict(model.named_parameters())[n][~m].any() for n, m in found.mask_.items())
    assert any(bool((weights[n] != dict(found.sparse_.named_parameters())[n]).any()) for n in weights)
    assert size_of(found.model).sparsity > 0.7
    assert not found.model.training


def test_pruning_leaves_frozen_weights_and_reaches_shared_ones(subject: Subject, parts: tuple[Data, Data]) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.utils.parametrizations.weight_norm(nn.Linear(64, 8))
            self.second, self.third, self.frozen = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)
            self.third.weight = self.second.weight
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.frozen(self.third(self.second(self.first(x.flatten(1)).relu()).relu()).relu())

    with seeded(0, "shared"):
        net = Shared().eval()
    method = PruneFirstThenUnlearn(pruner=MagnitudePruning(sparsity=0.75), unlearner=FineTune(epochs=1))
    found = method.fit(subject.with_model(net), *parts, seed=0)
    assert {k: int((~m).sum()) for k, m in found.mask_.items()} == {"second.weight": 48}
    for model in (found.model, found.sparse_):
        assert same(model.frozen, net.frozen)
        assert model.third.weight is model.second.weight
        assert int((model.third.weight == 0).sum()) == 48
    assert not same(found.model.first, net.first)


def test_the_mask_is_that_of_torch_and_rewinding_starts_there(subject: Subject, parts: tuple[Data, Data]) -> None:
    import copy

    from torch.nn.utils import prune

    other = copy.deepcopy(subject.model)
    layers = [m for m in other.modules() if isinstance(m, nn.Linear)]
    prune.global_unstructured([(m, "weight") for m in layers], prune.L1Unstructured, amount=0.9)
    with seeded(5, "rewind"):
        early = MLP(hidden=(32,)).state_dict()
    quick = subject.with_model(subject.model, recipe=Supervised(epochs=0))
    method = PruneFirstThenUnlearn(pruner=MagnitudePruning(sparsity=0.9), rewind=early, unlearner=FineTune(epochs=0))
    found = method.fit(quick, *parts, seed=0)
    for layer, (name, mask) in zip(layers, found.mask_.items(), strict=True):
        assert torch.equal(layer.weight_mask.bool(), mask)
        assert torch.equal(found.sparse_.state_dict()[name], early[name] * mask)


def test_curvature_is_that_of_the_dense_block_and_shrinks_with_the_mask() -> None:
    with seeded(0, "mlp"):
        model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(20, 3)
    hessian = Hessian(model=model, x=x, y=torch.arange(20) % 3)
    dense = torch.stack([hessian.product(e) for e in torch.eye(hessian.size).double()])
    whole = masked_curvature(hessian, torch.ones(hessian.size).double(), seed=0, steps=500, tolerance=1e-12)
    assert whole == pytest.approx(float(torch.linalg.eigvalsh((dense + dense.T) / 2).abs().max()), rel=1e-3)
    g = torch_rng(0, "masks")
    for _ in range(20):
        keep = (torch.rand(hessian.size, generator=g) < 0.5).double()
        part = dense[keep.bool()][:, keep.bool()]
        sigma = masked_curvature(hessian, keep, seed=0)
        assert sigma <= whole * (1 + 1e-6)
        assert sigma == pytest.approx(float(torch.linalg.eigvalsh((part + part.T) / 2).abs().max()), rel=0.05)


def test_the_bound_by_its_factors(subject: Subject) -> None:
    data = subject.training("the test")[:40]
    masks = MagnitudePruning(sparsity=0.9).masks(subject.model, seed=0)
    with seeded(0, "start"):
        start = MLP(hidden=(32,))
    dense = unlearning_error_bound(subject.model, {}, start, data.x, data.y, lr=0.1, steps=5)
    sparse = unlearning_error_bound(subject.model, masks, start, data.x, data.y, lr=0.1, steps=5)
    assert sparse.distance < dense.distance
    assert sparse.sigma <= dense.sigma
    assert dense.value == pytest.approx(0.01 * 5 * dense.distance * dense.sigma)
    kept = flat_mask(subject.model, masks)
    assert int(kept.sum()) == size_of(subject.model).parameters - sum(int((~m).sum()) for m in masks.values())
    with pytest.raises(InputError, match="no such parameter"):
        flat_mask(subject.model, {"nothing": torch.ones(1).bool()})


def test_bad_options(subject: Subject, parts: tuple[Data, Data]) -> None:
    for cls, options in (
        (L1SparseUnlearn, {"gamma": -1.0}),
        (L1SparseUnlearn, {"no_l1_epochs": 11}),
        (L1SparseUnlearn, {"schedule": "linear"}),
        (InfluenceUnlearn, {"alpha": float("nan")}),
        (InfluenceUnlearn, {"n_fisher": 0}),
        (InfluenceUnlearn, {"mode": "slow"}),
    ):
        with pytest.raises(InputError):
            cls(**options)
    with pytest.raises(AccessError, match="recipe"):
        PruneFirstThenUnlearn().forget(subject.with_model(subject.model, recipe=None), *parts, seed=0)
    with pytest.raises(InputError, match="empties"):
        PruneFirstThenUnlearn(pruner=MagnitudePruning(sparsity=0.9999)).forget(subject, *parts, seed=0)
