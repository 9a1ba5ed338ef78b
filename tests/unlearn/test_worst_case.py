"""Worst-case forget sets: the projection against a solver, sign descent, and choices known in advance."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.subject import Subject
from assay.subject.subject import model_hash
from assay.training import Supervised
from assay.unlearn import (
    FineTune,
    SignSGD,
    WorstCaseForgetSet,
    project_capped_simplex,
    random_forget_sets,
    stress_test,
)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.floats(0, 1), st.sampled_from([0.5, 1.0, 3.0]))
@settings(max_examples=60, deadline=None)
def test_the_projection_meets_its_optimality_conditions(values: list[float], share: float, upper: float) -> None:
    a = torch.tensor(values, dtype=torch.float64)
    m = share * upper * len(a)
    w = project_capped_simplex(a, m, upper)
    assert (w >= 0).all()
    assert (w <= upper).all()
    assert float(w.sum()) == pytest.approx(m, abs=1e-9)
    # a - w is one shift mu strictly between the bounds, at most mu at 0 and at least mu at the cap.
    shift = a - w
    inner, top, zero = (w > 1e-9) & (w < upper - 1e-9), w >= upper - 1e-9, w <= 1e-9
    if inner.any():
        mu = shift[inner]
        assert float(mu.max() - mu.min()) < 1e-9
        assert not top.any() or float(shift[top].min()) >= float(mu.max()) - 1e-8
        assert not zero.any() or float(shift[zero].max()) <= float(mu.min()) + 1e-8
    assert torch.allclose(project_capped_simplex(w, m, upper), w, atol=1e-9)


def test_the_projection_is_what_a_solver_finds() -> None:
    a = np.array([0.9, 2.5, -1.0, 0.3, 0.35, 1.4])
    bounds, total = [(0, 1)] * len(a), {"type": "eq", "fun": lambda w: w.sum() - 3}
    start, options = np.full(len(a), 0.5), {"ftol": 1e-14}
    solved = minimize(
        lambda w: ((w - a) ** 2).sum(), start, method="SLSQP", bounds=bounds, constraints=total, options=options
    )
    assert np.abs(project_capped_simplex(torch.tensor(a), 3).numpy() - solved.x).max() < 1e-6
    assert torch.equal(project_capped_simplex(torch.full((4,), 7.0), 1), torch.full((4,), 0.25, dtype=torch.float64))


def test_sign_steps_have_one_length_and_leave_zeros() -> None:
    p = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    optimizer = SignSGD([p], lr=0.5)
    p.grad = torch.tensor([1e-9, -4.0, 0.0])
    optimizer.step()
    assert p.tolist() == [0.5, -1.5, 3.0]
    assert optimizer.step(lambda: 7.0) == 7.0
    for options in ({"lr": 0.0}, {"momentum": 1.0}, {"weight_decay": -1.0}):
        with pytest.raises(InputError, match="lr > 0"):
            SignSGD([p], **options)


def test_signs_are_of_the_buffer_that_torch_keeps() -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.randn(40, generator=g).requires_grad_()
    q = p.detach().clone().requires_grad_()
    ours, theirs = SignSGD([p], 0.1, 0.9, 0.5), torch.optim.SGD([q], 0.1, 0.9, weight_decay=0.5)
    for _ in range(5):
        p.grad = torch.randn(40, generator=g)
        q.grad = p.grad.clone()
        old = p.detach().clone()
        with torch.no_grad():
            q.copy_(p)
        ours.step()
        theirs.step()
        assert torch.equal(p, old - 0.1 * theirs.state[q]["momentum_buffer"].sign())
    zero = torch.zeros(200, requires_grad=True)
    zero.grad = torch.zeros(200)
    with seeded(0, "zeros"):
        SignSGD([zero], 1.0, rand_zero=True).step()
    assert (zero.abs() == 1).all()
    assert 60 < int((zero > 0).sum()) < 140


def test_the_weights_do_not_feel_a_small_change_of_the_choice(model: nn.Module, data: Data) -> None:
    some = data.limit(40)
    method = WorstCaseForgetSet(m=3, inner_epochs=2, inner_lr=0.01, batch_size=len(some))
    w = torch.rand(len(some), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = model_hash(method.unlearned(model, some, w, 0))
    moved = [w.index_fill(0, torch.tensor([i]), float(w[i]) + 1e-6) for i in range(len(some))]
    same = [model_hash(method.unlearned(model, some, v, 0)) == start for v in moved]
    assert np.mean(same) >= 0.95


def test_the_choice_is_among_the_best_subsets_of_a_linear_model() -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 3, generator=g), torch.arange(12) % 2
    few = Data(x, y, ("a", "b"), (-10.0, 10.0), "few")
    with seeded(0, "linear"):
        start = nn.Linear(3, 2)
    method = WorstCaseForgetSet(m=3, rounds=40, inner_epochs=1, inner_lr=0.05, batch_size=12)

    def left(chosen: tuple[int, ...]) -> float:
        w = torch.zeros(12, dtype=torch.float64).index_fill_(0, torch.tensor(chosen), 1)
        each = F.cross_entropy(method.unlearned(start, few, w, 0)(x), y, reduction="none").detach()
        return float(each[list(chosen)].sum())

    losses = np.array([left(s) for s in combinations(range(12), 3)])
    found = left(tuple(method.fit(start, few, seed=0).indices_.tolist()))
    assert (losses < found - 1e-9).mean() <= 0.05
    easy = replace(method, direction="easiest").fit(start, few, seed=0)
    assert (losses > left(tuple(easy.indices_.tolist())) + 1e-9).mean() <= 0.05


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train").limit(120)


@pytest.fixture(scope="module")
def model(data: Data) -> nn.Module:
    with seeded(0, "test"):
        return Supervised(epochs=2).fit(MLP(hidden=(16,)), data, seed=0)


def as_it_is(model: nn.Module, data: Data, w: Tensor, seed: int) -> nn.Module:
    return model


def test_where_nothing_is_trained_the_smallest_losses_are_hardest(model: nn.Module, data: Data) -> None:
    with torch.no_grad():
        losses = F.cross_entropy(model(data.x), data.y, reduction="none")
    order = losses.argsort()
    for direction, expected in (("hardest", order[:9]), ("easiest", order[-9:])):
        method = WorstCaseForgetSet(m=9, rounds=12, unlearner=as_it_is, w_lr=50.0, direction=direction)  # type: ignore[arg-type]
        found = method.fit(model, data, seed=1)
        assert torch.equal(found.indices_, expected.sort().values)
        assert float(found.weights_.sum()) == pytest.approx(9)
        assert (found.history_[-1] < found.history_[0]) == (direction == "hardest")
        forget, retain = found.parts(data)
        assert torch.equal(forget.index, data.index[found.indices_])
        assert len(forget) + len(retain) == len(data)


def test_classes_are_chosen_by_their_mean_loss(model: nn.Module, data: Data) -> None:
    with torch.no_grad():
        losses = F.cross_entropy(model(data.x), data.y, reduction="none")
    means = torch.stack([losses[data.y == c].mean() for c in range(10)])
    found = WorstCaseForgetSet(m=2, level="class", unlearner=as_it_is, w_lr=50.0).fit(model, data, seed=1)
    assert torch.equal(found.indices_, means.argsort()[:2].sort().values)
    forget, retain = found.parts(data)
    assert set(forget.y.tolist()) == set(found.indices_.tolist())
    assert not torch.isin(retain.y, found.indices_).any()


def test_the_lower_level_is_weighted_sign_descent(model: nn.Module, data: Data) -> None:
    w = torch.rand(len(data), dtype=torch.float64)
    method = WorstCaseForgetSet(m=3, inner_epochs=1, inner_lr=0.01, batch_size=len(data))
    found = method.unlearned(model, data, w, 0)
    other = copy.deepcopy(model)
    each = F.cross_entropy(other(data.x), data.y, reduction="none")
    gradients = torch.autograd.grad(((1 - w.float()) * each).sum(), list(other.parameters()))
    for p, q, g in zip(model.parameters(), found.parameters(), gradients, strict=True):
        clear = g.abs() > 1e-6
        assert torch.allclose((q - p)[clear], -0.01 * g.sign()[clear], atol=1e-6)


def test_same_seed_same_set_and_nothing_changes(model: nn.Module, data: Data) -> None:
    method = WorstCaseForgetSet(m=12, rounds=2, inner_epochs=1)
    before, state = model_hash(model), torch.get_rng_state()
    first, again, other = (method.fit(model, data, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.weights_, again.weights_)
    assert first.history_ == again.history_
    assert first.history_ != other.history_
    assert model_hash(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    three, w = WorstCaseForgetSet(m=12, inner_epochs=3), torch.zeros(len(data), dtype=torch.float64)
    plain = model_hash(three.unlearned(model, data, w, 0))
    for options in ({"inner_momentum": 0.9}, {"inner_decay": 5.0}, {"inner_rand_zero": True}):
        assert model_hash(replace(three, **options).unlearned(model, data, w, 0)) != plain  # type: ignore[arg-type]
    renewed = WorstCaseForgetSet(m=12, rounds=2, inner_epochs=1, reinit=True).fit(model, data, seed=3)
    assert renewed.history_[0] > first.history_[0]
    binary = WorstCaseForgetSet(m=12, rounds=2, inner_epochs=1, binarise=2, w_lr=0.01).fit(model, data, seed=3)
    assert set(binary.weights_.tolist()) == {0.0, 1.0}


def test_a_stress_test_compares_with_retraining(model: nn.Module, data: Data) -> None:
    subject = Subject(model, load_data("digits:test").limit(150), data, recipe=Supervised(epochs=2))
    drawn = random_forget_sets(data, 12, 2, seed=5)
    assert [len(f) for f, _ in drawn] == [12, 12]
    assert not torch.equal(drawn[0][0].index, drawn[1][0].index)
    rows = stress_test({"ft": FineTune(epochs=1)}, subject, {"a": drawn[0], "b": drawn[1]}, seed=0)
    assert [(r["set"], r["unlearner"]) for r in rows] == [("a", "retrain"), ("a", "ft"), ("b", "retrain"), ("b", "ft")]
    reference, tuned = rows[0], rows[1]
    assert reference["gap"] == 0
    assert tuned["gap"] == pytest.approx(np.mean([abs(tuned[k] - reference[k]) for k in ("ua", "mia", "ra", "ta")]))


def test_bad_worst_cases(model: nn.Module, data: Data) -> None:
    for options, match in (
        ({"m": 0}, "m, rounds"),
        ({"m": 1, "w_lr": 0.0}, "rates > 0"),
        ({"m": 1, "gamma": float("nan")}, "gamma >= 0"),
        ({"m": 2.5}, "a whole m"),
        ({"m": 1, "inner_momentum": 1.0}, "a momentum in"),
        ({"m": 1, "inner_opt": "adam", "inner_decay": 0.1}, "with 'signsgd' alone"),
        ({"m": 1, "direction": "worst"}, "unknown direction"),
        ({"m": 1, "inner_opt": "lion"}, "unknown inner_opt"),
        ({"m": 1, "unlearner": "finetune"}, "a function of"),
    ):
        with pytest.raises(InputError, match=match):
            WorstCaseForgetSet(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected 1 to 119"):
        WorstCaseForgetSet(m=120).fit(model, data, seed=0)
    with pytest.raises(InputError, match="lacks samples"):
        WorstCaseForgetSet(m=1, level="class").fit(model, data[data.y < 5], seed=0)
    only = data[torch.cat([(data.y != 3).nonzero()[:, 0], (data.y == 3).nonzero()[:1, 0]])]
    lost = WorstCaseForgetSet(m=len(only) - 1, rounds=1, unlearner=as_it_is)
    with pytest.warns(RuntimeWarning, match="without samples"):
        lost.fit(model, only, seed=0)
    for a, m in ((torch.zeros(0), 0), (torch.tensor([float("nan")]), 0), (torch.zeros(3), 4)):
        with pytest.raises(InputError, match="project_capped_simplex"):
            project_capped_simplex(a, m)
    with pytest.raises(InputError, match="at least 1"):
        random_forget_sets(data, 3, 0)
