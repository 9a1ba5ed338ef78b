"""Least values of linear functions: closed forms, a solver, enumeration."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import nn

from assay.certify.bounds import LpBall, SynonymSet
from assay.certify.bounds.module import BoundedModule
from assay.runtime.errors import InputError


def drawn(seed: int, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, n, d, generator=g).double(), torch.rand(n, d, generator=g).double()


@given(st.integers(0, 10**6), st.floats(0.05, 2.0))
def test_l1_with_limits_is_the_linear_program(seed: int, eps: float) -> None:
    a, x = drawn(seed, 1, 4)
    found = LpBall(1, eps, 0.0, 1.0).least(a, x).item()
    c = a[0, 0].numpy()  # x' = x + p - q
    limits = [(0, 1 - v) for v in x[0].tolist()] + [(0, v) for v in x[0].tolist()]
    exact = linprog(np.concatenate([c, -c]), A_ub=np.ones((1, 8)), b_ub=[eps], bounds=limits)
    assert found == pytest.approx(exact.fun + float(c @ x[0].numpy()), abs=1e-7)


@given(st.integers(0, 10**6), st.floats(0.05, 2.0))
def test_l2_with_limits_is_the_constrained_minimum(seed: int, eps: float) -> None:
    a, x = drawn(seed, 1, 4)
    found, start = LpBall(2, eps, 0.0, 1.0).least(a, x).item(), x[0].numpy()
    c = a[0, 0].numpy()
    ball = {"type": "ineq", "fun": lambda v: eps**2 - ((v - start) ** 2).sum(), "jac": lambda v: -2 * (v - start)}
    exact = minimize(lambda v: c @ v, start, jac=lambda v: c, bounds=[(0, 1)] * 4, constraints=ball, method="SLSQP")
    assert found == pytest.approx(exact.fun, abs=1e-4)


@given(st.integers(0, 10**6), st.integers(0, 4))
def test_l0_is_enumeration(seed: int, count: int) -> None:
    a, x = drawn(seed, 1, 4)
    found = LpBall(0, count, 0.0, 1.0).least(a, x).item()
    best = np.inf
    for chosen in itertools.combinations(range(4), count):
        for ends in itertools.product((0.0, 1.0), repeat=count):
            v = x[0].clone()
            for k, e in zip(chosen, ends, strict=True):
                v[k] = min(e, 1.0) if a[0, 0, k] * (e - x[0, k]) < 0 else v[k]
            best = min(best, float(a[0, 0] @ v))
    assert found == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("norm", [1, 2, float("inf")])
def test_radii_of_elements(norm: float) -> None:
    a, x = drawn(0, 3, 5)
    eps = torch.tensor([0.0, 0.1, 0.2, 0.0, 0.3])
    dual = {1: float("inf"), 2: 2.0, float("inf"): 1.0}[norm]
    expected = (a * x).sum(2) - (a * eps).norm(p=dual, dim=2)
    assert torch.allclose(LpBall(norm, eps).least(a, x), expected)
    free = LpBall(norm, eps, -100.0, 100.0).least(a, x)
    assert torch.allclose(free, expected)
    still = LpBall(norm, eps).box(x)
    assert torch.equal(still.lower[:, [0, 3]], x[:, [0, 3]])


def recursion(a: np.ndarray, x: np.ndarray, words: np.ndarray, valid: np.ndarray, budget: int) -> float:
    """The paper's dynamic programme."""
    table = np.full(budget + 1, np.inf)
    table[0] = 0.0
    for i in range(len(x)):
        keep, swap = a[i] @ x[i], min((a[i] @ w for w, v in zip(words[i], valid[i], strict=True) if v), default=np.inf)
        table = np.array([min(table[j] + keep, table[j - 1] + swap if j else np.inf) for j in range(budget + 1)])
    return float(table.min())


@pytest.mark.parametrize("budget", [0, 1, 2, 6])
def test_synonyms_are_brute_force_and_the_recursion(budget: int) -> None:
    g = torch.Generator().manual_seed(budget)
    x, words = torch.randn(2, 6, 3, generator=g).double(), torch.randn(2, 6, 3, 3, generator=g).double()
    valid = torch.rand(2, 6, 3, generator=g) < 0.7
    a = torch.randn(4, 2, 6, 3, generator=g).double()
    found = SynonymSet(words, valid, budget).least(a, x)
    for s, n in itertools.product(range(4), range(2)):
        options = [[x[n, i], *(words[n, i, m] for m in range(3) if valid[n, i, m])] for i in range(6)]
        values = [[float(a[s, n, i] @ w) for w in o] for i, o in enumerate(options)]
        best = min(
            sum(v[k] for v, k in zip(values, picks, strict=True))
            for picks in itertools.product(*(range(len(o)) for o in options))
            if sum(k > 0 for k in picks) <= budget
        )
        assert found[s, n].item() == pytest.approx(best)
        arrays = (t[n].numpy() for t in (a[s], x, words, valid))
        assert found[s, n].item() == pytest.approx(recursion(*arrays, budget))


def test_synonyms_through_a_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, 2)).double()
    x, words = torch.randn(3, 5, 4).double(), torch.randn(3, 5, 2, 4).double()
    valid = torch.ones(3, 5, 2, dtype=torch.bool)
    lower, upper = BoundedModule(model, x).compute_bounds(x, SynonymSet(words, valid, 2))
    for i, j in itertools.combinations(range(5), 2):
        for m in range(2):
            near = x.clone()
            near[:, i], near[:, j] = words[:, i, m], words[:, j, m]
            assert ((model(near) >= lower - 1e-9) & (model(near) <= upper + 1e-9)).all()


@pytest.mark.parametrize("norm", [0, 1, 2])
def test_forward_and_backward_agree_on_a_linear_model(norm: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), torch.rand(5, 4).double()
    ball = LpBall(norm, 1.0, 0.0, 1.0)
    one, two = (BoundedModule(model, x).compute_bounds(x, ball, torch.eye(3).double(), m) for m in ("forward", "CROWN"))
    assert torch.allclose(one[0], two[0])
    assert torch.allclose(one[1], two[1])


@pytest.mark.parametrize("bad", [{"norm": 3}, {"eps": -1.0}, {"low": 1.0, "high": 0.0}, {"norm": 0}])
def test_bad_balls(bad: dict) -> None:
    with pytest.raises(InputError, match="LpBall"):
        LpBall(**bad)
