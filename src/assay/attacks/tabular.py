"""Attacks on tables: balls in units of each column's range that leave some columns alone and keep others whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.attacks.balls import L2, Ball, Bounds, Linf
from assay.attacks.engine import Climb
from assay.attacks.pgd import PGD
from assay.attacks.scores import BLOCK, Climbers, ScoreSearch
from assay.data.tabular import TabularData
from assay.runtime.errors import InputError
from assay.runtime.random import Draws

SHARES = ((0.0, 0.5), (0.1, 0.2), (0.3, 0.1), (0.6, 0.05))  # from this part of the budget on, this share of columns
ROUNDING = 4  # units in the last place by which a whole number may be missed


@dataclass(frozen=True)
class Columns:
    """The columns of a table: their least and greatest values, and which are immutable or whole numbers (positions)."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    immutable: tuple[int, ...] = ()
    integer: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        d = len(self.low)
        if len(self.high) != d or not d or any(a > b for a, b in zip(self.low, self.high, strict=False)):
            text = f"{d} least and {len(self.high)} greatest values"
            raise InputError(f"Columns: {text}; expected low <= high, one of each a column")
        if any(not 0 <= k < d for k in (*self.immutable, *self.integer)):
            raise InputError(f"Columns: marked {self.immutable} and {self.integer}; expected positions 0 to {d - 1}")

    @classmethod
    def of(cls, data: TabularData) -> Columns:
        """The columns of ``data``."""
        low, high = zip(*data.ranges, strict=True)
        return cls(low, high, data.immutable, data.integer)

    def scale(self, like: Tensor) -> Float[Tensor, " d"]:
        """The columns' ranges, 0 where a column cannot move. ``like`` (n, d)."""
        if like.shape[1:] != (len(self.low),):
            shape = tuple(like.shape[1:])
            raise InputError(f"ball on columns: samples of shape {shape}; expected ({len(self.low)},)")
        width = like.new_tensor(self.high) - like.new_tensor(self.low)
        return width.masked_fill(self.mask(self.immutable, like), 0)

    def mask(self, positions: tuple[int, ...], like: Tensor) -> Bool[Tensor, " d"]:
        """True at ``positions``."""
        chosen = torch.zeros(len(self.low), dtype=torch.bool, device=like.device)
        chosen[list(positions)] = True
        return chosen

    def shares(self, delta: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Displacements as shares of the ranges; in a column that cannot move any displacement is infinite."""
        return torch.where(delta == 0, 0, delta / self.scale(delta))

    def settled(self, move: Float[Tensor, "n d"], x: Float[Tensor, "n d"], bounds: Bounds) -> Float[Tensor, "n d"]:
        """x + ``move``, no coordinate moved further: in the ranges and the bounds, whole where columns are."""
        low, high = x.new_tensor(self.low).clamp(min=bounds[0]), x.new_tensor(self.high).clamp(max=bounds[1])
        z = torch.minimum(torch.maximum(x + move, torch.minimum(low, x)), torch.maximum(high, x))
        whole = x + ((z - x) * (1 + ROUNDING * torch.finfo(x.dtype).eps)).trunc()
        z = torch.where(self.mask(self.integer, x), whole, z)
        return torch.where(self.scale(x) > 0, z, x)


@dataclass(frozen=True)
class TabularLinf(Linf):
    """No column moves by more than the share eps of its range; immutable ones stay, whole numbers stay whole.

    x (n, d) in the data's own units, whole where a column is. What ``project`` gives is valid at every step: a column
    of whole numbers moves by as many as fit.
    """

    columns: Columns = Columns((0.0,), (1.0,))

    def norm(self, delta: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return super().norm(self.columns.shares(delta))

    def project(self, z: Float[Tensor, "n d"], x: Float[Tensor, "n d"], bounds: Bounds) -> Float[Tensor, "n d"]:
        reach = self.eps * self.columns.scale(x)
        return self.columns.settled((z - x).clamp(-reach, reach), x, bounds)

    def draw(self, x: Float[Tensor, "n d"], draws: Draws) -> Float[Tensor, "n d"]:
        return super().draw(x, draws) * self.columns.scale(x)

    def ascent(self, grad: Float[Tensor, "n d"], z: Float[Tensor, "n d"], bounds: Bounds) -> Float[Tensor, "n d"]:
        return super().ascent(grad, z, bounds) * self.columns.scale(grad)


@dataclass(frozen=True)
class TabularL2(L2):
    """The Euclidean norm of the displacement, in shares of the columns' ranges, is at most eps; else as TabularLinf."""

    columns: Columns = Columns((0.0,), (1.0,))

    def norm(self, delta: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return super().norm(self.columns.shares(delta))

    def project(self, z: Float[Tensor, "n d"], x: Float[Tensor, "n d"], bounds: Bounds) -> Float[Tensor, "n d"]:
        scale = self.columns.scale(x)
        share = torch.where(scale > 0, (z - x) / scale.clamp_min(1e-30), 0)
        inside = L2(self.eps).project(share, torch.zeros_like(share), (-math.inf, math.inf))
        return self.columns.settled(inside * scale, x, bounds)

    def draw(self, x: Float[Tensor, "n d"], draws: Draws) -> Float[Tensor, "n d"]:
        return L2(self.eps).draw(x, draws) * self.columns.scale(x)

    def ascent(self, grad: Float[Tensor, "n d"], z: Float[Tensor, "n d"], bounds: Bounds) -> Float[Tensor, "n d"]:
        scale = self.columns.scale(grad)
        return super().ascent(grad * scale, z, bounds) * scale


def columns_of(ball: Ball) -> Columns | None:
    """The columns that a ball knows of."""
    return ball.columns if isinstance(ball, (TabularLinf, TabularL2)) else None


@dataclass(frozen=True, kw_only=True)
class TabularPGD(PGD):
    """PGD on tables, valid at every step (Simonetto et al., 2022, arXiv:2112.01156: constrained PGD).

    In a ``TabularLinf`` or ``TabularL2`` ball a step in a column of whole numbers is rounded up to a whole one, so that
    a column whose steps are shorter than 1 moves too; in any other ball it is PGD. x (n, d). For ranges and errors see
    Attack, for options GradientAttack.
    """

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        columns, step = columns_of(self.ball), self.direction(run.grad, run.z, run.memory, run.step)
        step = step * self.length(run.step)
        if columns is not None:
            whole = columns.mask(columns.integer, step)
            step = torch.where(whole, step.sign() * step.abs().ceil(), step)
        return self.ball.project(run.z + step, run.x, self.bounds)


@dataclass(frozen=True, kw_only=True)
class TabularSearch(ScoreSearch):
    """Random search over columns by scores, for models without gradients (trees, remote ones) and steps that they miss.

    As in Square (Andriushchenko et al., 2020, arXiv:1912.00049, algorithm 1) a proposal puts some coordinates at the
    edge of the ball and is kept where the margin grows; as columns have no neighbours, they are drawn one by one, half
    of them at first and fewer later. What is asked is valid in a ``TabularLinf`` or ``TabularL2`` ball. Options: see
    ScoreSearch.
    """

    ball: Ball = Linf(8 / 255)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ball, (Linf, L2)):
            self.refuse("ball", repr(self.ball), "a ball of kind Linf or L2")

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.ball.norm(delta)

    def _reach(self, x: Tensor) -> Tensor:
        """How far one coordinate alone can move."""
        columns = columns_of(self.ball)
        return self.ball.eps * (x.new_ones(x.shape[1:]) if columns is None else columns.scale(x))

    def first(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        return self.ball.project(x + draws.signs(*x.shape[1:]).to(x) * self._reach(x), x, self.bounds)

    def plan(self, at: Climbers, step: int) -> tuple[Tensor, ...]:
        shape = (BLOCK, *at.x.shape[1:])
        size, part = at.x[0].numel(), step / self.budget
        share = next(s for start, s in reversed(SHARES) if part >= start)
        drawn = at.draws.uniform(*shape)
        least = drawn.flatten(2).argmin(2)[..., None] == torch.arange(size, device=drawn.device)
        return (drawn < share) | least.view(drawn.shape), at.draws.signs(*shape).to(at.x)

    def propose(self, at: Climbers, plan: tuple[Tensor, ...], step: int) -> Float[Tensor, "n ..."]:
        chosen, signs = plan
        z = torch.where(chosen, at.x + signs * self._reach(at.x), at.z)
        return self.ball.project(z, at.x, self.bounds)
