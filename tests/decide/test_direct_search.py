"""Covering direct search, attacks alone, and their hybrid: optima, budgets, and the barrier."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.attacks import AttackOperator
from assay.decide import CDSM, AttackSearch, HybridAttackSearch, NetworkObjective, OptResult
from assay.decide.attack_search import Surrogate, pulled_back
from assay.decide.direct_search import Frame
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

SHORT = CDSM(max_evals=300)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scaling(*factors: float) -> nn.Linear:
    """The network y = diag(factors) x."""
    phi = nn.utils.skip_init(nn.Linear, len(factors), len(factors), bias=False, dtype=torch.float64)
    phi.load_state_dict({"weight": torch.diag(vector(*factors))})
    return phi


def toward(*aim: float) -> Callable[[Tensor], Tensor]:
    """Minus the squared distance of the outputs from an aim."""
    return lambda y: -(y - vector(*aim)).square().sum()


PHI, NEAR = scaling(1.0, 2.0, 0.5), toward(0.4, 3.0, -0.1)
BOX = (vector(-1, -1, -1), vector(1, 1, 1))
BEST = vector(0.4, 1.0, -0.2)  # each coordinate by itself, clipped to the box


def solve(method: CDSM | AttackSearch, *, seed: int = 0, budget: int = 3000) -> OptResult:
    start = vector(0.0, 0.0, 0.9)
    if isinstance(method, CDSM):
        return replace(method, max_evals=budget).maximize(NetworkObjective(PHI, NEAR), start, BOX, seed=seed)
    method = replace(method, cdsm=replace(method.cdsm, max_evals=budget))
    return method.maximize(PHI, NEAR, start, None, BOX, seed=seed)


METHODS = [CDSM(), AttackSearch(), HybridAttackSearch()]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


@methods
def test_a_concave_quadratic_in_a_box_is_solved(method: CDSM | AttackSearch) -> None:
    best = float(NEAR(PHI(BEST).detach()))
    result = solve(method)
    assert best - 1e-4 <= result.value <= best + 1e-12


@methods
def test_the_result_is_feasible_within_budget_and_its_history_rises(method: CDSM | AttackSearch) -> None:
    result = solve(method, budget=200)
    assert result.evals <= 200
    assert (result.history.diff(dim=0) > 0).all()
    assert result.history[-1, 1] == result.value == result.at(200) == pytest.approx(float(NEAR(PHI(result.x).detach())))
    assert result.at(1) == result.history[0, 1]
    assert len(result.history) == 1 + sum(result.successes.values())
    assert (result.x >= BOX[0]).all()
    assert (result.x <= BOX[1]).all()


@methods
def test_same_seed_same_result_and_nothing_is_modified(method: CDSM | AttackSearch) -> None:
    weights, state = PHI.weight.detach().clone(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    first = solve(method, budget=150)
    assert torch.equal(torch.get_rng_state(), state)
    assert (numpy_state == np.random.get_state()[1]).all()  # type: ignore[index]  # noqa: NPY002
    again, other = solve(method, budget=150), solve(method, budget=150, seed=1)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.history, again.history)
    assert type(method) is not CDSM or not torch.equal(first.x, other.x)  # attacks draw nothing
    assert torch.equal(PHI.weight, weights)
    assert PHI.weight.requires_grad
    assert PHI.training


class Recording(nn.Module):
    """Remembers the points that it is asked for without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[bytes] = set()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            self.asked.update(row.numpy().tobytes() for row in x)
        return 2 * x


def test_every_point_is_counted_once_and_every_gradient_is_charged() -> None:
    aim, start = toward(1.0, 2.0), vector(0, 0)
    plain = Recording()
    alone = SHORT.maximize(NetworkObjective(plain, aim), start)
    assert len(plain.asked) == alone.evals
    assert alone.gradients == 0
    free = Recording()
    heuristic = AttackOperator(attack=lambda _phi, x, u, radius: x + radius * u)
    found = HybridAttackSearch(operator=heuristic, cdsm=SHORT).maximize(free, aim, start)
    assert len(free.asked) == found.evals
    assert found.successes["attack"] > 0
    steps = AttackOperator(steps=7)
    charged = AttackSearch(operator=steps, cdsm=SHORT, tries=1).maximize(Recording(), aim, start)
    assert charged.gradients > 0
    assert charged.gradients % 7 == 0
    assert charged.gradients // 7 + 1 >= charged.evals - charged.gradients  # one candidate a call, and the start


@pytest.mark.parametrize("cls", [AttackSearch, HybridAttackSearch])
def test_a_half_space_is_slid_along_to_the_projection(cls: type[AttackSearch]) -> None:
    normal, aim = vector(0.6, 0.8), (2.0, 1.0)
    excess = float(normal @ vector(*aim)) - 0.5
    expected = vector(*aim) - excess * normal
    result = cls(cdsm=CDSM(max_evals=3000)).maximize(
        scaling(1.0, 1.0), toward(*aim), vector(-1.0, -1.0), lambda y: (normal @ y - 0.5)[None]
    )
    assert normal @ result.x <= 0.5
    assert result.value >= -(excess**2) - 0.02
    if cls is HybridAttackSearch:
        assert (result.x - expected).norm() < 0.05


def test_the_projected_direction_is_that_of_the_half_space() -> None:
    phi, z = scaling(1.0, 2.0), vector(0.1, 0.1)
    normal = vector(1.0, 0.5)
    search = AttackSearch()
    walk = search.cdsm.begin(NetworkObjective(phi, toward(1, 1)), z, Frame.of("test", z, None), 0)
    surrogate = Surrogate(phi, walk.frame)
    problem = NetworkObjective(phi, toward(1.0, 1.0), lambda y: (normal @ y - 0.25)[None])
    projected, plain = search.directions(walk, problem, surrogate)
    g, across = 2 * vector(0.9 * 1.0, 0.8 * 2.0), vector(1.0, 1.0)  # J^T u and J^T grad c
    along = g - across * (g @ across) / across.square().sum()
    got = torch.from_numpy(pulled_back(surrogate, z, torch.stack((projected, plain))))
    torch.testing.assert_close(got[0] / got[0].norm(), along / along.norm())
    torch.testing.assert_close(got[1] / got[1].norm(), g / g.norm())
    assert walk.gradients == 2
    far = replace(problem, constraints=lambda y: (normal @ y - 9.0)[None])
    assert len(search.directions(walk, far, surrogate)) == 1


def wedge(x: Tensor) -> float:
    a, b = x.tolist()
    inside = a > 0 and abs(b) <= 0.02 * a and 0.1 <= math.hypot(a, b) <= 1
    return 1.0 if inside else -(a * a + b * b)


def test_covering_finds_a_thin_wedge_that_polling_misses() -> None:
    search = CDSM(cover_radius=1.0, tol=1e-300, rotate=False, max_evals=4000)
    found = [search.maximize(wedge, vector(0, 0), seed=s, target=0.5).value == 1 for s in range(10)]
    polled = [replace(search, cover=False).maximize(wedge, vector(0, 0), seed=s).value == 1 for s in range(10)]
    assert sum(found) >= 9
    assert sum(polled) <= 1


def test_the_poll_basis_is_orthonormal_and_kept_where_it_does_not_rotate() -> None:
    search = CDSM()
    walk = search.begin(lambda x: 0.0, torch.zeros(6), Frame.of("test", torch.zeros(6), None), 0)
    first, second = search._basis(walk), search._basis(walk)
    np.testing.assert_allclose(first @ first.T, np.eye(6), atol=1e-12)
    assert not np.allclose(first, second)
    fixed = CDSM(rotate=False)
    assert fixed._basis(walk) is second
    part = CDSM(poll_directions=2)._basis(walk)
    np.testing.assert_allclose(part @ part.T, np.eye(2), atol=1e-12)


def test_the_covering_point_is_the_farthest_candidate_in_the_ball() -> None:
    search = CDSM(cover_radius=0.3)
    walk = search.begin(lambda x: 0.0, torch.zeros(3), Frame.of("test", torch.zeros(3), None), 0)
    state = walk.rng.bit_generator.state
    point = search.covering(walk)
    assert np.linalg.norm(point) <= 0.3
    walk.rng.bit_generator.state = state
    draws = walk.rng.standard_normal((100, 3))
    lengths = 0.3 * walk.rng.random(100) ** (1 / 3)
    np.testing.assert_allclose(np.linalg.norm(point), lengths.max())
    np.testing.assert_allclose(
        point / np.linalg.norm(point), draws[lengths.argmax()] / np.linalg.norm(draws[lengths.argmax()])
    )


def test_units_do_not_matter_where_there_is_a_box() -> None:
    low, high = vector(-3, 10), vector(5, 14)
    unit = SHORT.maximize(lambda z: float(toward(0.3, 0.9)(z)), vector(0.5, 0.5), (vector(0, 0), vector(1, 1)))
    scaled = SHORT.maximize(lambda x: float(toward(0.3, 0.9)((x - low) / (high - low))), (low + high) / 2, (low, high))
    torch.testing.assert_close((scaled.x - low) / (high - low), unit.x, rtol=0, atol=1e-6)


def test_rounding_takes_no_point_out_of_the_box() -> None:
    low, high = torch.full((3,), 0.3, dtype=torch.float64), torch.full((3,), 0.9, dtype=torch.float64)
    assert bool((low + (high - low) > high).all())
    seen: list[Tensor] = []

    def f(x: Tensor) -> float:
        seen.append(x)
        return float(x.sum())

    found = CDSM(max_evals=200).maximize(f, (low + high) / 2, (low, high))
    assert all(bool(((x >= low) & (x <= high)).all()) for x in seen)
    assert torch.allclose(found.x, high)


def test_what_is_not_finite_is_infeasible() -> None:
    def broken(x: Tensor) -> float:
        return math.nan if x[0] > 0.1 else math.inf if x[1] > 0.1 else float(x.sum())

    result = SHORT.maximize(broken, vector(0, 0))
    assert (result.x <= 0.1).all()
    assert math.isfinite(result.value)


class Root(nn.Module):
    """Not a number below 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


def test_networks_that_are_not_finite_are_infeasible() -> None:
    result = HybridAttackSearch(cdsm=SHORT).maximize(Root(), lambda y: -y.sum(), vector(0.5, 0.5))
    assert (result.x >= 0).all()
    assert result.value > -0.5


def test_an_infeasible_start_is_refused_or_repaired() -> None:
    args = (scaling(1.0, 1.0), toward(2.0, 2.0), vector(3.0, 3.0), lambda y: y - 1)
    with pytest.raises(InputError, match="infeasible"):
        HybridAttackSearch(cdsm=SHORT).maximize(*args)
    result = HybridAttackSearch(cdsm=SHORT, phase1=True).maximize(*args)
    assert (result.x <= 1).all()
    assert result.evals <= 300
    with pytest.raises(InputError, match="phase 1"):
        HybridAttackSearch(cdsm=CDSM(max_evals=2), phase1=True).maximize(*args)


def test_constraints_without_derivatives_are_left_to_the_barrier() -> None:
    result = HybridAttackSearch(cdsm=SHORT, project=False).maximize(
        scaling(1.0, 1.0), toward(2.0, 0.0), vector(0.0, 0.0), lambda y: torch.floor(y[:1] / 0.5)
    )
    assert result.x[0] < 0.5


def test_steps_have_no_slope_and_one_constraint_may_be_a_number() -> None:
    with seeded(0, "net"):
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    box = (-torch.ones(3), torch.ones(3))
    start = net(torch.zeros(1, 3)).detach()[0]
    method = HybridAttackSearch(cdsm=CDSM(max_evals=200))
    steps = method.maximize(net, lambda y: (10 * y[0]).floor(), torch.zeros(3), bounds=box)
    counts = method.maximize(net, lambda y: (y > start).sum().double(), torch.zeros(3), bounds=box)
    assert steps.value > float((10 * start[0]).floor())
    assert counts.value == 2
    limit = float(start[1]) + 0.05
    for least in (lambda y: y[1] - limit, lambda y: (y[1] - limit)[None]):
        found = method.maximize(net, lambda y: y[0], torch.zeros(3), least, box)
        assert net(found.x[None].float())[0, 1].item() <= limit + 1e-6
    assert method.maximize(net, lambda y: y[0], torch.zeros(3), lambda y: torch.tensor([-0.05]), box).value > start[0]


def test_the_hybrid_moves_where_attacks_alone_are_stuck() -> None:
    with seeded(0, "dead"):
        phi = nn.Sequential(nn.Linear(2, 2, dtype=torch.float64), nn.ReLU())
    phi[0].load_state_dict({"weight": torch.eye(2, dtype=torch.float64), "bias": vector(-0.1, -0.1)})
    args = (phi, lambda y: y.sum(), vector(0.0, 0.0))
    assert AttackSearch(cdsm=SHORT).maximize(*args).value == 0
    assert HybridAttackSearch(cdsm=SHORT).maximize(*args).value > 0


def test_random_float32_networks_are_served() -> None:
    with seeded(2, "net"):
        phi = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    start = torch.rand(4, generator=torch_rng(0, "start"))
    result = HybridAttackSearch(cdsm=SHORT).maximize(
        phi, lambda y: y[0] - y[1].square(), start, None, (0 * start, 0 * start + 1)
    )
    assert result.value > result.history[0, 1]


def test_many_variables_warn_unless_few_directions_are_polled() -> None:
    start = torch.zeros(5001)
    with pytest.warns(UserWarning, match="polls 10002 points"):
        CDSM(max_evals=1).maximize(lambda x: 0.0, start)
    CDSM(max_evals=3, poll_directions=2, cover=False).maximize(lambda x: 0.0, start)


@pytest.mark.parametrize(
    "options", [{"sigma0": 0.0}, {"tol": math.nan}, {"increase": -1.0}, {"max_evals": 0}, {"poll_directions": 0}]
)
def test_bad_options_of_cdsm(options: dict) -> None:
    with pytest.raises(InputError):
        CDSM(**options)


@pytest.mark.parametrize("options", [{"radius0": 2.0}, {"radius_min": 0.0}, {"tries": 0}])
def test_bad_options_of_attack_search(options: dict) -> None:
    with pytest.raises(InputError):
        HybridAttackSearch(**options)


@pytest.mark.parametrize("x0", [torch.zeros(2, 2), torch.zeros(0), torch.full((2,), math.nan)])
def test_bad_starts(x0: Tensor) -> None:
    with pytest.raises(InputError):
        CDSM().maximize(lambda x: 0.0, x0)


def test_bad_bounds_and_readings() -> None:
    with pytest.raises(InputError):
        CDSM().maximize(lambda x: 0.0, torch.zeros(2), (torch.ones(2), torch.zeros(2)))
    for bounds in ((torch.zeros(3), torch.ones(3)), (torch.zeros(2), torch.ones(2, 1)), (0.0, 0.5, 1.0)):
        with pytest.raises(InputError, match="CDSM: bounds of shapes"):
            CDSM().maximize(lambda x: 0.0, torch.zeros(2), bounds)
    with pytest.raises(InputError):
        solve(CDSM(), budget=5).at(0)
