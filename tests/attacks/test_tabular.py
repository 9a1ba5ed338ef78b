"""Whatever the model: columns that must stay do, whole numbers stay whole, and the ball and the ranges hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.attacks import (
    Attack,
    Columns,
    RandomNoise,
    TabularL2,
    TabularLinf,
    TabularPGD,
    TabularSearch,
    Untargeted,
)
from assay.attacks.apgd import APGD
from assay.data.tabular import table_data
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

BALLS = {"linf": TabularLinf, "l2": TabularL2}
ATTACKS = {
    "pgd": lambda ball, bounds: TabularPGD(ball=ball, bounds=bounds, steps=5, restarts=2, early_stop=False),
    "apgd": lambda ball, bounds: APGD(ball=ball, bounds=bounds, steps=5),
    "search": lambda ball, bounds: TabularSearch(ball=ball, bounds=bounds, budget=40),
    "noise": lambda ball, bounds: RandomNoise(ball=ball, bounds=bounds),
}


def table(seed: int, n: int = 8) -> tuple[Tensor, Columns]:
    """Columns of very different units: 1 is immutable, 2 and 3 are whole, 4 is both, 5 is constant."""
    g = torch_rng(seed, "table")
    u = torch.rand(n, 6, generator=g)
    x = u * torch.tensor([1.0, 50.0, 9.0, 2000.0, 5.0, 0.0]) + torch.tensor([-0.5, 0.0, 0.0, 0.0, 0.0, 7.0])
    x[:, 2:5] = x[:, 2:5].round()
    return x, Columns(tuple(x.amin(0).tolist()), tuple(x.amax(0).tolist()), immutable=(1, 4), integer=(2, 3, 4))


def network(seed: int, scale: Tensor) -> nn.Module:
    """A random network on columns of these ranges."""
    with seeded(seed, "net"):
        first = nn.Linear(6, 16)
        first.weight.data /= scale.clamp_min(1e-3)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(16, 3))


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ATTACKS)
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), eps=st.floats(0.01, 1.5))
def test_what_an_attack_gives_is_a_valid_row(name: str, norm: str, seed: int, eps: float) -> None:
    x, columns = table(seed)
    ball, bounds = BALLS[norm](eps, columns=columns), (float(x.min()), float(x.max()))
    model = network(seed, torch.tensor(columns.high) - torch.tensor(columns.low))
    y = model(x).argmax(1)
    attack: Attack = ATTACKS[name](ball, bounds)
    result = attack.run(model, x, Untargeted(y), seed=seed)
    z = result.x_adv
    assert z[:, [1, 4, 5]].equal(x[:, [1, 4, 5]])
    assert z[:, [2, 3]].equal(z[:, [2, 3]].round())
    assert (z >= torch.tensor(columns.low)).all()
    assert (z <= torch.tensor(columns.high)).all()
    share = (z - x).double() / (torch.tensor(columns.high) - torch.tensor(columns.low)).clamp_min(1e-30).double()
    size = share.abs().amax(1) if norm == "linf" else share.norm(dim=1)
    assert (size <= eps * (1 + 1e-5)).all()
    torch.testing.assert_close(result.distance.double(), size, rtol=1e-4, atol=1e-6)


@given(seed=st.integers(0, 10_000), eps=st.floats(0.0, 1.0))
def test_a_valid_point_in_the_ball_stays_where_it_is(seed: int, eps: float) -> None:
    x, columns = table(seed)
    for kind in BALLS.values():
        ball = kind(eps, columns=columns)
        once = ball.project(x + torch.randn(x.shape, generator=torch_rng(seed)) * 100, x, (0, 1))
        torch.testing.assert_close(ball.project(once, x, (0, 1)), once, rtol=1e-5, atol=1e-6)


def test_whole_numbers_move_although_a_step_is_shorter_than_one() -> None:
    columns = Columns((0.0, 0.0), (20.0, 1.0), integer=(0,))
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    model.bias.data = torch.tensor([-9.5, 9.5])  # class 0 from 9.5 on
    x, y = torch.tensor([[11.0, 0.5]]), torch.tensor([0])
    ball = TabularLinf(0.1, columns=columns)  # at most 2 of 20, steps of 0.125
    attack = TabularPGD(ball=ball, bounds=(0.0, 20.0), steps=40, random_start=False)
    result = attack.run(model, x, Untargeted(y), seed=0)
    assert result.success.all()
    assert result.x_adv[0, 0] == 9


@pytest.mark.parametrize("norm", BALLS)
def test_the_search_needs_no_gradient_and_beats_noise(norm: str) -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = ((x * 8).floor() * torch.tensor([1.0, -1.0, 1.0, -1.0])).sum(1) / 4
            return torch.stack([score, -score], 1)

    x = torch.rand(60, 4, generator=torch_rng(0))
    y = Steps()(x).argmax(1)
    ball = BALLS[norm](0.2, columns=Columns((0.0,) * 4, (1.0,) * 4, immutable=(3,)))
    found = TabularSearch(ball=ball, budget=200).run(Steps(), x, Untargeted(y), seed=0)
    noise = RandomNoise(ball=ball).run(Steps(), x, Untargeted(y), seed=0)
    assert found.success.float().mean() > noise.success.float().mean() + 0.2
    assert found.gradients.sum() == 0
    assert found.x_adv[:, 3].equal(x[:, 3])


def test_bad_columns_are_named() -> None:
    with pytest.raises(InputError, match="low <= high"):
        Columns((0.0, 1.0), (1.0, 0.0))
    with pytest.raises(InputError, match="positions 0 to 1"):
        Columns((0.0, 1.0), (1.0, 2.0), immutable=(2,))
    with pytest.raises(InputError, match=r"expected \(1,\)"):
        TabularLinf(0.1).norm(torch.zeros(2, 3))


def test_columns_of_a_table() -> None:
    cells = {"town": ["b", "a", "b"], "age": [30, 40, 50], "y": [0, 1, 0]}
    columns = Columns.of(table_data(cells, "csv:x", integer=("age",)))
    assert columns == Columns((0.0, 30.0), (1.0, 50.0), immutable=(0,), integer=(0, 1))


@pytest.mark.parametrize("norm", BALLS)
def test_columns_wider_than_the_bounds_are_cut_to_them(norm: str) -> None:
    ball = BALLS[norm](1.0, columns=Columns((-5.0, -5.0), (5.0, 5.0), integer=(1,)))
    x, z = torch.tensor([[0.5, 1.0]]), torch.tensor([[9.0, -9.0]])
    moved = ball.project(z, x, (0.0, 1.0))
    assert ((moved >= 0) & (moved <= 1)).all()


@pytest.mark.parametrize("norm", BALLS)
def test_whole_numbers_of_a_wide_range_stay_in_the_ball(norm: str) -> None:
    x = torch.zeros(1, 1, dtype=torch.float64)
    ball = BALLS[norm](0.5, columns=Columns((0.0,), (3_999_999.0,), integer=(0,)))  # at most 1,999,999.5
    assert ball.project(x + 1e7, x, (0.0, 1e7)) == 1_999_999


@pytest.mark.parametrize("attack", [TabularPGD, TabularSearch])
def test_columns_of_another_width_are_refused(attack: type[Attack]) -> None:
    x, ball = torch.rand(2, 4), TabularLinf(0.1, columns=Columns((0.0,) * 3, (1.0,) * 3))
    with pytest.raises(InputError, match=r"expected \(3,\)"):
        attack(ball=ball).run(nn.Linear(4, 2), x, Untargeted(torch.tensor([0, 1])), seed=0)
