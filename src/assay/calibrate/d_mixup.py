"""Training on mixtures of d + 1 samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import derive, numpy_rng, torch_rng
from assay.training import State, Trainer


def d_mixup_batch(
    x: Float[Tensor, "n ..."],
    y_onehot: Float[Tensor, "n c"],
    *,
    d: int = 1,
    concentration: float = 1.0,
    per_sample: bool = False,
    partners: Int[Tensor, "d n"] | None = None,
    seed: int,
) -> tuple[Float[Tensor, "n ..."], Float[Tensor, "n c"]]:
    """sum_j w_j x[p_j] and sum_j w_j y[p_j] over the batch itself and ``d`` permutations p_j of it, the weights w from
    a symmetric Dirichlet distribution of d + 1 entries (Chidambaram & Ge, 2024, arXiv:2306.00740; d = 1 is Mixup, Zhang
    et al., 2018, arXiv:1710.09412).

    One w for the batch, as in the authors' code, or one for each sample. ``partners`` gives the permutations. Raises
    InputError for d < 1, d >= n, a concentration <= 0 and partners that are not (d, n) positions.
    """
    check_inputs("d_mixup_batch", x)
    n = len(x)
    if d < 1 or not 0 < concentration < math.inf or y_onehot.dim() != 2 or len(y_onehot) != n:
        given = f"d={d}, concentration={concentration}, labels {tuple(y_onehot.shape)}"
        raise InputError(f"d_mixup_batch: {given}; expected d >= 1, concentration > 0, labels ({n}, c)")
    if partners is None:
        if d >= n:
            raise InputError(f"d_mixup_batch: d={d} with {n} samples; expected d below their number")
        partners = _permutations(n, d, seed)
    valid = partners.shape == (d, n) and partners.dtype == torch.int64
    if not valid or not 0 <= int(partners.min()) <= int(partners.max()) < n:
        found = f"{partners.dtype} {tuple(partners.shape)}"
        raise InputError(f"d_mixup_batch: partners {found}; expected int64 ({d}, {n}), from 0 to {n - 1}")
    drawn = numpy_rng(seed, "weights").dirichlet([concentration] * (d + 1), n if per_sample else 1)
    weights = torch.from_numpy(drawn).to(x)
    rows = torch.cat((torch.arange(n)[None], partners)).to(x.device)
    mixed = [
        sum(w.reshape(-1, *[1] * (t.dim() - 1)) * t[p] for w, p in zip(weights.T, rows, strict=True))
        for t in (x, y_onehot.to(x))
    ]
    return mixed[0], mixed[1]


@dataclass(frozen=True, kw_only=True)
class DMixupTrainer(Trainer):
    """Cross-entropy on mixtures of ``d`` + 1 samples and of their labels (Chidambaram & Ge, 2024, arXiv:2306.00740,
    d-Mixup; see ``d_mixup_batch``).

    An interpolator of mixtures is constrained between training points too, and so hedges where classes overlap. The
    paper reports underconfidence on images for d > 2. Raises InputError for d < 1, d not below the batch size, and a
    concentration <= 0.
    """

    d: int = 1
    concentration: float = 1.0
    per_sample: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.d < self.batch_size or not 0 < self.concentration < math.inf:
            given = f"d={self.d}, concentration={self.concentration}, batch_size={self.batch_size}"
            raise InputError(f"DMixupTrainer: {given}; expected 1 <= d < batch_size, a finite concentration > 0")

    def partners(self, batch: Batch, seed: int) -> Int[Tensor, "d n"]:
        """Whom each sample is mixed with."""
        return _permutations(len(batch.y), self.d, seed)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        seed = derive(state.seed, "mixup", state.step)
        labels = F.one_hot(batch.y, len(state.data.classes)).to(batch.x)
        x, target = d_mixup_batch(
            batch.x,
            labels,
            d=self.d,
            concentration=self.concentration,
            per_sample=self.per_sample,
            partners=self.partners(batch, seed),
            seed=seed,
        )
        return F.cross_entropy(model(x), target)

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        if self.d >= len(data):
            raise InputError(f"DMixupTrainer: d={self.d} with {len(data)} samples; expected d below their number")
        return super().fit(model, data, seed=seed, **options)


def _permutations(n: int, d: int, seed: int) -> Int[Tensor, "d n"]:
    g = torch_rng(seed, "partners")
    return torch.stack([torch.randperm(n, generator=g) for _ in range(d)])
