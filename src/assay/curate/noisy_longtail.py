"""Long-tailed subsets with wrong labels."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.data import make_long_tail
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import torch_rng

Mode = Literal["imb", "assumption"]


def make_noisy_longtail(
    y: Int[Tensor, " n"],
    ratio: float,
    noise: float,
    mode: Mode = "imb",
    *,
    largest: int | None = None,
    seed: int,
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Positions, sorted, of a long-tailed subset, and its labels of which a share is wrong.

    Class k of K keeps int(``largest`` / ratio^(k / (K - 1))) samples, at least 1 (``largest``: the smallest class's
    size unless given); the noise comes after the tail. "imb", the protocol of the code for RoLT (Wei et al., 2021,
    arXiv:2108.11569): exactly int(noise m) random samples get another label j, with probability n_j / (m - n_i) for
    the true label i. "assumption" (Zhang et al., 2023, arXiv:2211.10955, assumption 3.1): each label is redrawn with
    probability ``noise``, as j with probability n_j / m, which may be the old one: a share noise (1 - sum (n_k / m)^2)
    is wrong. InputError as ``make_long_tail``, and for noise outside [0, 1).
    """
    check_labels("make_noisy_longtail", y, len(y))
    rows = make_long_tail(y, ratio, largest=largest, seed=seed)
    classes = int(y.max()) + 1
    most = int(torch.bincount(y).min()) if largest is None else largest
    sizes = torch.tensor([max(int(most * (1 / ratio) ** (k / (classes - 1))), 1) for k in range(classes)])
    rows = rows[_rank(y[rows]) < sizes[y[rows]]]
    chances = redraw_matrix(torch.bincount(y[rows], minlength=classes), mode)
    return rows, flip_labels(y[rows], noise, chances, exact=mode == "imb", seed=seed)


def redraw_matrix(counts: Int[Tensor, " k"], mode: Mode = "imb") -> Float[Tensor, "k k"]:
    """Row i: with which probability a sample of class i that is chosen for noise gets each label, by class sizes."""
    if mode not in ("imb", "assumption"):
        raise unknown("mode of make_noisy_longtail", str(mode), ("imb", "assumption"))
    if counts.dim() != 1 or len(counts) < 2 or int(counts.min()) < 1:
        raise InputError(f"redraw_matrix: class sizes {counts.tolist()}; expected two or more, each at least 1")
    share = counts.double().expand(len(counts), len(counts)).clone()
    if mode == "imb":
        share.fill_diagonal_(0)
    return share / share.sum(1, keepdim=True)


def flip_matrix(counts: Int[Tensor, " k"], noise: float, mode: Mode = "imb") -> Float[Tensor, "k k"]:
    """T_ij = P(given label j | true label i), rows summing to 1: (1 - noise) I + noise ``redraw_matrix``."""
    _check_noise(noise)
    return (1 - noise) * torch.eye(len(counts), dtype=torch.float64) + noise * redraw_matrix(counts, mode)


def flip_labels(
    y: Int[Tensor, " n"], noise: float, chances: Float[Tensor, "k k"], *, exact: bool, seed: int
) -> Int[Tensor, " n"]:
    """Labels of which exactly int(noise n), or each with probability ``noise``, are drawn from their row of chances.

    InputError for chances that are not square, negative, or 0 throughout a row.
    """
    _check_noise(noise)
    if chances.dim() != 2 or len(chances) != chances.shape[1] or not (chances >= 0).all() or not chances.any(1).all():
        raise InputError(f"flip_labels: chances {tuple(chances.shape)}; expected (k, k), >= 0, no row of zeros")
    check_labels("flip_labels", y, len(y), len(chances))
    g = torch_rng(seed, "flips")
    if exact:
        chosen = torch.randperm(len(y), generator=g)[: int(noise * len(y))]
    else:
        chosen = (torch.rand(len(y), generator=g) < noise).nonzero()[:, 0]
    noisy = y.clone()
    if len(chosen):
        noisy[chosen] = chances[y[chosen]].multinomial(1, generator=g)[:, 0]
    return noisy


def _rank(y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """How many samples of the same class come before each."""
    counts, order = torch.bincount(y), y.argsort(stable=True)
    rank = torch.empty_like(y)
    rank[order] = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[order]]
    return rank


def _check_noise(noise: float) -> None:
    if not 0 <= noise < 1:
        raise InputError(f"label noise {noise}; expected a share in [0, 1)")
