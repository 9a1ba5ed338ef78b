"""Projection onto the features that a linear head puts in a given order: a batched, exact quadratic programme."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.attacks.base import Ordered
from assay.runtime.errors import InputError

RIDGE = 1e-11  # of the unit diagonal: keeps the dual definite where the head has fewer features than classes - 1
TRIES = 3  # whole-block exchanges without progress before single ones (Portugal, Judice and Vicente, 1994)
ROUNDS = 50  # times the number of constraints: far more exchanges than ever seen
VIOLATION = 1e-6  # of the logits' scale, above which no feature has the order


def ordered_pairs(targets: Int[Tensor, "n k"], classes: int) -> tuple[Int[Tensor, "n m"], Int[Tensor, "n m"]]:
    """The m = classes - 1 pairs (higher, lower): each target above the next, the last one above every other class."""
    n, k = targets.shape
    others = torch.ones(n, classes, dtype=torch.bool, device=targets.device).scatter(1, targets, False)
    rest = others.nonzero()[:, 1].reshape(n, classes - k)
    high = torch.cat((targets[:, :-1], targets[:, -1:].expand(n, classes - k)), 1)
    return high, torch.cat((targets[:, 1:], rest), 1)


def ordered_constraints(targets: Int[Tensor, "n k"], classes: int) -> Float[Tensor, "n m c"]:
    """The matrix D of section 3, one row a pair, float64: +1 at the higher class, -1 at the lower, 0 elsewhere.

    Logits s have the order of ``targets`` where every entry of the matrix times s is positive. Raises InputError for
    targets that are not distinct classes below ``classes``.
    """
    Ordered(targets).check("ordered_constraints", len(targets), classes)
    high, low = ordered_pairs(targets, classes)
    rows = torch.zeros(*high.shape, classes, dtype=torch.float64, device=targets.device)
    return rows.scatter_(2, high[..., None], 1.0).scatter_(2, low[..., None], -1.0)


class OrderedQP:
    """min ||z - z0||^2 over z with D (A z + b) >= margin (Paniagua et al., 2023, arXiv:2312.11510, section 3).

    ``weight`` A (c, d) and ``bias`` b (c,) are the linear head, D are the rows of ``ordered_constraints`` for
    ``targets`` (n, k), ``margin`` is in logits, one number or one a sample. The paper runs an interior-point solver for
    at most 20 iterations; here the dual min_{l >= 0} l' M l / 2 - l' (margin - D (A z0 + b)), M = D A A' D', is solved
    exactly in float64 by block principal pivoting, all samples at once. M comes from the Gram matrix of A, so memory is
    O(c^2) a sample whatever d is. ``active_`` keeps the constraints that the last projection ended on: the next starts
    from them. Where no z has the order (d < c - 1 allows it), the point that violates it least is approached.
    """

    def __init__(
        self,
        weight: Float[Tensor, "c d"],
        bias: Float[Tensor, " c"],
        targets: Int[Tensor, "n k"],
        margin: float | Float[Tensor, " n"] = 0.2,
    ) -> None:
        self.weight, self.bias = weight.detach().double(), bias.detach().double()
        n = len(targets)
        self.margin = torch.as_tensor(margin, dtype=torch.float64, device=weight.device).expand(n)[:, None]
        self.high, self.low = ordered_pairs(targets, len(weight))
        gram = self.weight @ self.weight.T
        upper = gram[self.high] - gram[self.low]  # (n, m, c): D A A'
        index = self.high[:, None, :].expand(-1, self.high.shape[1], -1)
        matrix = upper.gather(2, index) - upper.gather(2, self.low[:, None, :].expand_as(index))
        size = matrix.diagonal(dim1=1, dim2=2)
        largest = size.amax(1, keepdim=True).clamp_min(1e-300)
        self.scale = torch.where(size > 1e-14 * largest, size, largest).sqrt()
        self.matrix = matrix / (self.scale[:, :, None] * self.scale[:, None, :])
        self.matrix.diagonal(dim1=1, dim2=2).add_(RIDGE)
        self.active_: Bool[Tensor, "n m"] = torch.zeros_like(self.high, dtype=torch.bool)

    def short(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """By how much each pair of classes misses its margin at ``z``, in logits; negative where it does not."""
        logits = z.double() @ self.weight.T + self.bias
        return self.margin - (logits.gather(1, self.high) - logits.gather(1, self.low))

    def multipliers(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """The dual solution for ``z``, one multiplier >= 0 a row of ``ordered_constraints``."""
        lengths, self.active_ = nonnegative(self.matrix, self.short(z) / self.scale, self.active_)
        return lengths / self.scale

    def project(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The nearest features with the order, float64; ``z`` itself where it has the order."""
        push = self.multipliers(z)
        logits = torch.zeros(len(z), len(self.weight), dtype=torch.float64, device=z.device)
        logits.scatter_add_(1, self.high, push).scatter_add_(1, self.low, -push)
        return z.double() + logits @ self.weight


def project_ordered(
    z: Float[Tensor, "n d"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"],
    targets: Int[Tensor, "n k"],
    margin: float | Float[Tensor, " n"] = 0.2,
) -> Float[Tensor, "n d"]:
    """The nearest features, float64, that the head puts in the order of ``targets`` with ``margin`` (see OrderedQP).

    Raises InputError for mis-shaped or non-finite arguments, and where no features have the order.
    """
    where = "project_ordered"
    if weight.dim() != 2 or bias.shape != weight.shape[:1] or z.dim() != 2 or z.shape[1] != weight.shape[1]:
        shapes = f"{tuple(z.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}"
        raise InputError(f"{where}: z, weight and bias have shapes {shapes}; expected (n, d), (c, d) and (c,)")
    if not all(bool(torch.isfinite(t).all()) for t in (z, weight, bias)):
        raise InputError(f"{where}: z, weight or bias is not finite; expected finite numbers")
    Ordered(targets).check(where, len(z), len(weight))
    problem = OrderedQP(weight, bias, targets, margin)
    point = problem.project(z.detach())
    size = 1 + (z.detach().double() @ problem.weight.T + problem.bias).abs().amax(1)
    missed = problem.short(point).clamp_min(0).amax(1) > VIOLATION * size
    if missed.any():
        raise InputError(f"{where}: no features have the order of {int(missed.sum())} of {len(z)} rows of targets")
    return point


def nonnegative(
    matrix: Float[Tensor, "n m m"], target: Float[Tensor, "n m"], active: Bool[Tensor, "n m"]
) -> tuple[Float[Tensor, "n m"], Bool[Tensor, "n m"]]:
    """min over l >= 0 of l' matrix l / 2 - l' target, each matrix positive definite; and where l is free to be > 0.

    Block principal pivoting (Portugal, Judice and Vicente, 1994): solve on the active set, exchange every index with
    the wrong sign, or the last one alone where that makes no progress, which ends for positive definite matrices.
    Raises InputError in the event that rounding keeps it from ending.
    """
    n, m = target.shape
    found, active = torch.zeros_like(target), active.clone()
    rows = torch.arange(n, device=target.device)
    best = torch.full_like(rows, m + 1)
    tries = torch.full_like(rows, TRIES)
    for _ in range(ROUNDS * m):
        quad, goal, free = matrix[rows], target[rows], active[rows]
        value = _on_active(quad, goal, free)
        slope = (quad @ value[..., None])[..., 0] - goal
        tolerance = 1e-11 * goal.abs().amax(1, keepdim=True) + 1e-14 * m * value.abs().amax(1, keepdim=True)
        wrong = torch.where(free, value, slope) < -tolerance
        found[rows] = value.clamp_min(0)
        count = wrong.sum(1)
        left = count > 0
        if not left.any():
            return found, active
        rows, wrong, count = rows[left], wrong[left], count[left]
        gained = count < best[rows]
        tries[rows] = torch.where(gained, TRIES, tries[rows] - 1)
        best[rows] = torch.where(gained, count, best[rows])
        last = torch.zeros_like(wrong).scatter_(1, m - 1 - wrong.flip(1).int().argmax(1, keepdim=True), True)
        active[rows] ^= torch.where((tries[rows] >= 0)[:, None], wrong, last)
    raise InputError(f"ordered projection: {len(rows)} of {n} did not end; expected a finite, well-scaled linear head")


def _on_active(
    matrix: Float[Tensor, "n m m"], target: Float[Tensor, "n m"], active: Bool[Tensor, "n m"]
) -> Float[Tensor, "n m"]:
    """The solution of matrix l = target on the active indices, 0 elsewhere; sizes are padded to the largest set."""
    size = int(active.sum(1).max())
    if size == 0:
        return torch.zeros_like(target)
    index = active.int().argsort(dim=1, descending=True, stable=True)[:, :size]
    real = active.gather(1, index)
    part = matrix.gather(1, index[:, :, None].expand(-1, -1, matrix.shape[2])).gather(
        2, index[:, None, :].expand(-1, size, -1)
    )
    part = torch.where(real[:, :, None] & real[:, None, :], part, torch.eye(size, dtype=part.dtype, device=part.device))
    right = target.gather(1, index) * real
    value = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(part))[..., 0]
    return torch.zeros_like(target).scatter_(1, index, value * real)
