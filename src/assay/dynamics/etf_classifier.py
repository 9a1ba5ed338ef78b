"""A classifier that is a simplex ETF and stays one."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.dynamics.simplex_etf import simplex_etf
from assay.runtime.errors import InputError, unknown
from assay.runtime.spec import rebuildable


class _FrozenLinear(nn.Linear):
    """A linear layer without bias whose rows are given: nothing trains them and nothing draws them anew."""

    def __init__(self, rows: Float[Tensor, "k d"]) -> None:
        super().__init__(rows.shape[1], rows.shape[0], bias=False)
        self.weight.requires_grad_(False).copy_(rows)

    def reset_parameters(self) -> None:
        """Keeps the rows."""


@rebuildable
class ETFClassifier(nn.Module):
    """Logits (n, K) of features (n, d): W h', rows W of norm sqrt(``e_w``), a simplex ETF; h' = sqrt(``e_h``) h / |h|.

    Fixed classifier of Yang et al. (2022, arXiv:2203.09081, section 4.1); it has no trainable weight. Features of
    norm below 1e-12 get logits near 0. With ``client_counts`` (K,), the samples that a client has of each class, row k
    is multiplied by K n_k / sum(n) (Fan et al., 2023, arXiv:2405.18972, and its official code): classes that the
    client lacks leave their share to those it has, directions stay. ``client_counts=None`` is the global classifier.
    Raises InputError for K < 2, dim < K - 1, e_w or e_h <= 0, and counts that are negative or all zero.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        e_w: float = 1.0,
        e_h: float = 1.0,
        client_counts: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (0 < e_w < math.inf and 0 < e_h < math.inf):
            raise InputError(f"ETFClassifier: e_w={e_w}, e_h={e_h}; expected finite numbers > 0")
        rows = simplex_etf(classes, dim, scale=math.sqrt(e_w), seed=seed)
        if client_counts is not None:
            counts = torch.tensor(list(client_counts), dtype=torch.float64)
            if counts.shape != (classes,) or (counts < 0).any() or not counts.sum() > 0:
                raise InputError(
                    f"ETFClassifier: client_counts={list(client_counts)}; expected {classes} counts >= 0, not all 0"
                )
            rows = rows * (classes * counts / counts.sum())[:, None]
        self.e_w, self.e_h = float(e_w), float(e_h)
        self.frame = _FrozenLinear(rows.float())

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return self.frame(math.sqrt(self.e_h) * F.normalize(features, dim=1))


@rebuildable
class ETFNetwork(nn.Module):
    """A copy of ``model`` in which an ETFClassifier takes the place of the linear layer named ``layer``."""

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        e_w: float = 1.0,
        e_h: float = 1.0,
        client_counts: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        linear = dict(model.named_modules()).get(layer)
        if not layer or linear is None:
            raise unknown("layer", layer, [n for n, m in model.named_modules() if isinstance(m, nn.Linear)])
        if not isinstance(linear, nn.Linear):
            raise InputError(f"ETFNetwork: layer {layer!r} is {type(linear).__name__}; expected nn.Linear")
        parent, _, name = layer.rpartition(".")
        classifier = ETFClassifier(linear.in_features, linear.out_features, e_w, e_h, client_counts, seed)
        setattr(self.model.get_submodule(parent), name, classifier.to(linear.weight).train(linear.training))
        self.training = model.training

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        return self.model(x)


def attach_etf(
    model: nn.Module,
    layer: str,
    *,
    e_w: float = 1.0,
    e_h: float = 1.0,
    client_counts: Sequence[int] | None = None,
    seed: int = 0,
) -> ETFNetwork:
    """A copy of ``model`` whose linear layer ``layer`` (a dotted name) is a fixed ETFClassifier; see there.

    Raises InputError when there is no such layer, it is no nn.Linear, or its input has fewer than K - 1 dimensions.
    """
    return ETFNetwork(model, layer, e_w, e_h, client_counts, seed)
