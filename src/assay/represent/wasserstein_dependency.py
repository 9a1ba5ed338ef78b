"""The Wasserstein dependency of two views: learned by a Lipschitz critic, and exact for small samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.losses.dependency import gradient_penalty
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.training import Plan, State, fit


@dataclass(frozen=True)
class FittedDependency:
    """``value_`` in the units of the data, and the ``critic_`` that attains it."""

    value_: float
    critic_: nn.Module


@dataclass(frozen=True, kw_only=True)
class WassersteinDependency:
    """I_W = sup E f(x, y) - E f(x, y') over critics of slope 1: W1 between the joint and the product distribution of
    two views (Ozair et al., 2019, arXiv:1903.11780), in the Euclidean metric of (x, y).

    ``fit(critic, x, y, *, seed, perm=None)``: ``critic(x, y) -> (n,)`` is copied and trained by Adam on the difference
    less ``lam`` times the gradient penalty. y' is y[perm], one independent pairing, or each batch's next y. ``value_``
    is the difference on all n pairs, over y[perm] or the mean over y rolled by 1 to 8. The penalty draws the slope to 1
    and does not hold it there: an estimate, which a small critic leaves below the truth. Without ``perm`` a last batch
    of one pair, which has no next, is left out. Raises InputError for fewer than two pairs, integers, or options out of
    range, such as batches of one without ``perm``.
    """

    kind: ClassVar[str] = "function"

    lam: float = 10.0
    steps: int = 1000
    batch_size: int = 256
    lr: float = 1e-3

    def fit(
        self,
        critic: nn.Module,
        x: Float[Tensor, "n ..."],
        y: Float[Tensor, "n ..."],
        *,
        seed: int,
        perm: Int[Tensor, " n"] | None = None,
    ) -> FittedDependency:
        """The attained value and its critic; ``critic`` is untouched."""
        pairs = paired_data("WassersteinDependency", x, y)
        if not 0 <= self.lam < math.inf:
            raise InputError(f"WassersteinDependency: lam={self.lam}; expected a finite number >= 0")
        if perm is None and self.batch_size < 2:
            raise InputError(f"WassersteinDependency: batch_size={self.batch_size}; expected two or more, or perm")
        if perm is not None:
            perm = torch.as_tensor(perm)
            if not torch.equal(perm.sort().values, torch.arange(len(x))):
                raise InputError(f"WassersteinDependency: perm {tuple(perm.shape)}; expected a permutation of {len(x)}")
            pairs = Data(pairs.x, pairs.y, pairs.classes, pairs.bounds, fields={"y": y, "neg": y[perm]})
        lone = perm is None and len(x) % self.batch_size == 1
        plan = Plan(steps=self.steps, batch_size=self.batch_size, lr=self.lr, drop_last=lone)
        trained = fit(critic, pairs, self.objective, plan, seed=seed)
        with evaluating(trained), torch.no_grad():
            others = [y[perm]] if perm is not None else [y.roll(k, 0) for k in range(1, min(9, len(y)))]
            apart = trained(x, y).mean() - torch.stack([trained(x, o).mean() for o in others]).mean()
        return FittedDependency(float(apart), trained)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, ""]:
        """The penalised difference of one batch, to be minimised."""
        x, y = batch.x, batch.fields["y"]
        other = batch.fields.get("neg", y.roll(1, 0))
        return model(x, other).mean() - model(x, y).mean() + self.lam * gradient_penalty(model, x, y, other)


def paired_data(where: str, x: Float[Tensor, "n ..."], y: Float[Tensor, "n ..."]) -> Data:
    """Both views as a data set for the training engine: y as the field "y"."""
    if len(x) != len(y) or len(x) < 2 or not x.is_floating_point() or not y.is_floating_point():
        given = f"{x.dtype} {tuple(x.shape)}, {y.dtype} {tuple(y.shape)}"
        raise InputError(f"{where}: {given}; expected floats of one length, two or more")
    labels = torch.zeros(len(x), dtype=torch.int64)
    return Data(x, labels, ("pair", "none"), (-math.inf, math.inf), "pairs", fields={"y": y})


def exact_wdm(x: Float[np.ndarray, "n ..."], y: Float[np.ndarray, "n ..."], perm: Int[np.ndarray, " n"]) -> float:
    """W1 between the pairs (x_i, y_i) and (x_i, y_perm(i)), both with weights 1 / n: the linear program's value.

    For equal weights an optimal plan is an assignment, found exactly in O(n^3). Euclidean metric of the flattened pair.
    InputError unless ``perm`` is a permutation, lengths agree and samples are finite, one at least.
    """
    if not len(x) or not len(y) or not np.isfinite(x).all() or not np.isfinite(y).all():
        raise InputError(f"exact_wdm: {np.shape(x)} and {np.shape(y)}; expected finite samples, one at least")
    left, right = (np.asarray(v, float).reshape(len(v), -1) for v in (x, y))
    order = np.asarray(perm)
    if len(left) != len(right) or not np.array_equal(np.sort(order), np.arange(len(left))):
        raise InputError(f"exact_wdm: {len(left)}, {len(right)} samples, perm {order.shape}; expected a permutation")
    cost = cdist(np.concatenate((left, right), 1), np.concatenate((left, right[order]), 1))
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean())
