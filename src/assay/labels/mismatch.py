"""Unlabelled data with classes that are not among the labelled ones: how it is drawn, and what it does to weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


def make_mismatch_pool(
    y: Int[Tensor, " n"],
    target_classes: Sequence[int],
    n_labeled: int,
    mismatch: float,
    *,
    seed: int,
    balanced: bool = False,
) -> tuple[Int[Tensor, " l"], Int[Tensor, " u"]]:
    """Rows of the labelled set and of the unlabelled pool under class distribution mismatch (Du et al., 2023,
    arXiv:2308.11874, section 4.1, as their code draws them).

    ``n_labeled`` rows of the ``target_classes`` are labelled, at random, or as many of each for ``balanced``. The pool
    is all T others of these classes and ceil(``mismatch`` T / (1 - ``mismatch``)) random rows of the other classes:
    ``mismatch`` in [0, 1) is their share. Both in increasing order. Raises InputError for fewer than two classes or
    two rows of one, a target class without a labelled row, and where the other classes have too few rows.
    """
    targets = torch.tensor(sorted(set(target_classes)), dtype=torch.int64)
    check_labels("make_mismatch_pool", y, len(y))
    if len(targets) < 2 or not 0 <= mismatch < 1 or n_labeled < 0 or (balanced and n_labeled % len(targets)):
        raise InputError(
            f"make_mismatch_pool: {len(targets)} target classes, n_labeled={n_labeled}, mismatch={mismatch}; expected "
            "two or more, at least 0 and a multiple of their number where balanced, a share in [0, 1)"
        )
    order = torch.randperm(len(y), generator=torch_rng(seed, "mismatch"))
    wanted = torch.isin(y[order], targets)
    inside, outside = order[wanted], order[~wanted]
    each = [inside[y[inside] == c][: n_labeled // len(targets)] for c in targets]
    labelled = torch.cat(each) if balanced else inside[:n_labeled]
    rest = inside[~torch.isin(inside, labelled)]
    unknown = math.ceil(mismatch * len(rest) / (1 - mismatch) - 1e-9)
    if len(labelled) < n_labeled or not torch.isin(targets, y[labelled]).all() or unknown > len(outside):
        raise InputError(
            f"make_mismatch_pool: {len(labelled)} of {n_labeled} labelled rows, {len(outside)} of {unknown} rows of "
            "other classes; expected as many, and a labelled row of every target class"
        )
    return labelled.sort().values, torch.cat((rest, outside[:unknown])).sort().values


def mismatch_errors(
    pseudo: Int[Tensor, " n"], weight: Float[Tensor, " n"], truth: Int[Tensor, " n"]
) -> tuple[float, float]:
    """Pseudo-labelling error and invasion error of weighted pseudo labels (Du et al., 2023, arXiv:2308.11874, whose
    bound of the population risk has one term of either).

    ``truth`` is the class of each sample among the targets, -1 where it is none of them. The first is the weighted
    share of wrong pseudo labels among samples of target classes, the second the share of the weight that lies on the
    others. Both in [0, 1]; NaN where the weights they divide by are 0. Raises InputError unless all are (n,) and the
    weights are finite and at least 0.
    """
    if not pseudo.shape == weight.shape == truth.shape or pseudo.dim() != 1 or len(pseudo) == 0:
        shapes = f"{tuple(pseudo.shape)}, {tuple(weight.shape)}, {tuple(truth.shape)}"
        raise InputError(f"mismatch_errors: {shapes}; expected three tensors (n,), n >= 1")
    if not torch.isfinite(weight).all() or weight.min() < 0:
        raise InputError("mismatch_errors: weights are negative or not finite; expected numbers >= 0")
    mass, known = weight.double(), truth >= 0
    wrong = known & (pseudo != truth)
    return float(mass[wrong].sum() / mass[known].sum()), float(mass[~known].sum() / mass.sum())
