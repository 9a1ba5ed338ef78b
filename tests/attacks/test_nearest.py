"""Minimum-norm attacks against the closed form on linear models, and the projection that they step by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import nn

from assay.attacks import DDN, FAB, FMN, CarliniWagner, DeepFool, Targeted, Untargeted
from assay.attacks.hyperplane import project_to_hyperplane
from assay.attacks.nearest import linearise
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

D, C = 20, 5
DUALS = {"l2": 2.0, "linf": 1.0, "l1": float("inf")}


def linear(classes: int = C) -> nn.Linear:
    model, rng = nn.Linear(D, classes).double(), torch_rng(3, "linear")
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, D, generator=rng, dtype=torch.float64))
        model.bias.copy_(0.3 * torch.randn(classes, generator=rng, dtype=torch.float64))
    return model


X = 0.3 + 0.4 * torch.rand(12, D, generator=torch_rng(4, "x"), dtype=torch.float64)


def distances(model: nn.Linear, norm: str) -> torch.Tensor:
    """|z_l - z_y| / ||w_l - w_y||_dual for every class l, infinite for y."""
    with torch.no_grad():
        z = model(X)
        y = z.argmax(1)
        gap = z.gather(1, y[:, None]) - z
        w = model.weight[y][:, None] - model.weight[None]
        return (gap / w.norm(DUALS[norm], 2)).masked_fill(nn.functional.one_hot(y, z.shape[1]).bool(), float("inf"))


EXACT = [
    (FAB(norm="linf"), 0.01),
    (FAB(norm="l2"), 0.01),
    (FAB(norm="l1", bounds=(-50.0, 50.0)), 0.01),
    (FAB(norm="l2", targets=9), 0.01),
    (FAB(norm="linf", restarts=2), 0.01),
    (DeepFool(), 0.0201),
    (DeepFool(norm="linf"), 0.0201),
    (DeepFool(overshoot=1e-4), 2e-4),
    (DDN(steps=300, gamma=0.02), 0.03),
    (FMN(steps=300, alpha=0.3, alpha_last=1e-3), 0.01),
    (FMN(norm="linf", steps=400, alpha=0.3, alpha_last=1e-3), 0.03),
    (CarliniWagner(steps=3000, searches=6, initial=0.1), 0.03),
]


@pytest.mark.parametrize(("attack", "slack"), EXACT, ids=lambda a: "" if isinstance(a, float) else type(a).__name__)
def test_the_distance_to_a_linear_boundary_is_found(attack, slack):
    model = linear()
    y = model(X).argmax(1)
    true = distances(model, attack.norm).amin(1)
    result = attack.run(model, X, Untargeted(y), seed=0)
    assert result.success.all()
    assert (result.distance >= true - 1e-9).all()
    assert (result.distance <= (1 + slack) * true).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_distance_of_a_two_class_model(norm):
    model = linear(2)
    y = model(X).argmax(1)
    true = distances(model, norm).amin(1)
    result = FAB(norm=norm).run(model, X, Targeted(1 - y), seed=0)
    assert (result.distance <= 1.01 * true).all()


def test_linearisation_is_exact_on_a_linear_model():
    model = linear()
    z = X.clone().requires_grad_()
    logits = model(z)
    y = logits.argmax(1)
    level, slope = linearise(logits, z, y, "l2")
    nearest = distances(model, "l2").argmin(1)
    torch.testing.assert_close(slope, (model.weight[nearest] - model.weight[y]).detach())
    torch.testing.assert_close(
        level, (logits.gather(1, nearest[:, None]) - logits.gather(1, y[:, None]))[:, 0].detach()
    )


def test_enough_ends_a_sample_early_and_a_start_that_meets_the_goal_costs_nothing():
    model = linear()
    y = model(X).argmax(1)
    far = FAB(norm="l2", enough=1e9).run(model, X, Untargeted(y), seed=0)
    all_steps = FAB(norm="l2").run(model, X, Untargeted(y), seed=0)
    assert (far.queries < 8).all()
    assert (all_steps.queries >= 200).all()
    wrong = FAB(norm="l2").run(model, X, Untargeted((y + 1) % C), seed=0)
    assert (wrong.distance == 0).all()
    assert (wrong.gradients == 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fmn_steps_beyond_a_linear_boundary(norm):
    missed = 0
    for seed in range(6):
        model, rng = nn.Linear(D, C).double(), torch_rng(seed, "fmn")
        with torch.no_grad():
            model.weight.copy_(torch.randn(C, D, generator=rng, dtype=torch.float64))
        x = torch.rand(60, D, generator=rng, dtype=torch.float64)
        result = FMN(norm=norm, steps=60).run(model, x, Untargeted(model(x).argmax(1)), seed=0)
        missed += int((~result.success).sum())
    assert missed == 0


def test_carlini_wagner_takes_what_rounding_put_outside_the_bounds():
    model, x = linear().float(), X.float().clone()
    x[:, :3] = 1 + 9e-7
    result = CarliniWagner(steps=100, searches=2, initial=1.0, learning_rate=0.1).run(
        model, x, Untargeted(model(x).argmax(1)), seed=0
    )
    assert not result.x_adv.isnan().any()
    assert result.success.any()


def test_each_round_of_carlini_wagner_starts_adam_anew():
    taken: list[int] = []

    class Watched(CarliniWagner):
        def _adam(self, memory, grad, k):
            taken.append(k)
            return super()._adam(memory, grad, k)

    Watched(steps=9, searches=3).run(linear(), X, Untargeted(linear()(X).argmax(1)), seed=0)
    assert taken == [1, 2, 3, 1, 2, 1, 2]


def by_scipy(z: np.ndarray, w: np.ndarray, gap: float, norm: str) -> np.ndarray:
    """The least displacement onto the plane inside the unit box, by a general solver."""
    d = len(z)
    if norm == "l2":
        ends = list(zip(-z, 1 - z, strict=True))
        plane = {"type": "eq", "fun": lambda v: w @ v - gap, "jac": lambda v: w}
        solved = minimize(
            lambda v: v @ v, np.zeros(d), jac=lambda v: 2 * v, bounds=ends, constraints=[plane],
            method="SLSQP", options={"maxiter": 500, "ftol": 1e-14},
        )  # fmt: skip
        return solved.x
    eye, one = np.eye(d), np.ones((d, 1))
    if norm == "linf":
        cost = np.r_[np.zeros(d), 1.0]
        above = np.block([[eye, -one], [-eye, -one]])
        row, ends = np.r_[w, 0.0], [*zip(-z, 1 - z, strict=True), (0, None)]
    else:
        cost = np.r_[np.zeros(d), np.ones(d)]
        above = np.block([[eye, -eye], [-eye, -eye]])
        row, ends = np.r_[w, np.zeros(d)], [*zip(-z, 1 - z, strict=True), *[(0, None)] * d]
    solved = linprog(cost, A_ub=above, b_ub=np.zeros(2 * d), A_eq=row[None], b_eq=[gap], bounds=ends)
    assert solved.success
    return solved.x[:d]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), share=st.floats(0.02, 0.98), down=st.booleans())
def test_projection_agrees_with_a_general_solver(norm, seed, share, down):
    rng = np.random.default_rng(seed)
    z, w = rng.uniform(size=7), rng.normal(size=7)
    w[rng.uniform(size=7) < 0.2] = 0.0
    z[0] = float(down)
    w[1] = 1.0
    reach = np.where(w > 0, w * (1 - z), -w * z).sum() if not down else np.where(w > 0, w * z, -w * (1 - z)).sum()
    gap = share * reach * (-1 if down else 1)
    mine = project_to_hyperplane(
        torch.from_numpy(z)[None], torch.from_numpy(w)[None], torch.tensor([gap]).double(), (0.0, 1.0), norm
    )[0].numpy()
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    assert w @ mine == pytest.approx(gap, abs=1e-9)
    assert ((z + mine >= -1e-12) & (z + mine <= 1 + 1e-12)).all()
    best = np.linalg.norm(by_scipy(z, w, gap, norm), order)
    assert np.linalg.norm(mine, order) <= best * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_plane_beyond_the_box_is_approached_as_far_as_it_goes(norm):
    z, w = torch.tensor([[0.2, 0.5, 0.9]]), torch.tensor([[1.0, 0.0, -2.0]])
    moved = project_to_hyperplane(z, w, torch.tensor([100.0]), (0.0, 1.0), norm)
    torch.testing.assert_close(moved, torch.tensor([[0.8, 0.0, -0.9]]))
    assert project_to_hyperplane(z, w * 0, torch.tensor([1.0]), (0.0, 1.0), norm).equal(torch.zeros(1, 3))
    assert project_to_hyperplane(z, w, torch.tensor([0.0]), (0.0, 1.0), norm).abs().max() == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: FAB(norm="l0"),
        lambda: FAB(beta=1.5),
        lambda: FAB(radius=0.0),
        lambda: DeepFool(overshoot=-1.0),
        lambda: DeepFool(enough=-1.0),
        lambda: DDN(norm="linf"),
        lambda: FMN(gamma=0.0),
        lambda: CarliniWagner(steps=3),
        lambda: CarliniWagner(restarts=2),
        lambda: DDN(restarts=2),
        lambda: FMN(restarts=2),
        lambda: DeepFool(restarts=2),
        lambda: DeepFool(loss="ce"),
        lambda: FAB(loss="dlr"),
        lambda: FAB(targets=2).run(linear().float(), X.float(), Targeted(torch.zeros(12, dtype=torch.int64)), seed=0),
        lambda: project_to_hyperplane(X, X, X[:, 0], (0.0, 1.0), "l3"),
    ],
)
def test_bad_options(make):
    with pytest.raises(InputError):
        make()
