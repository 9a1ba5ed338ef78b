"""The features that an attribution weighs: single input elements, or groups of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError


@dataclass(frozen=True)
class Features:
    """Inputs of ``shape`` seen as d features. ``groups`` (n, e) names each element's feature; None: each its own."""

    shape: tuple[int, ...]
    d: int
    groups: Int[Tensor, "n e"] | None = None

    @classmethod
    def of(cls, where: str, x: Tensor, feature_mask: Int[Tensor, "n ..."] | None) -> Features:
        """The elements of ``x``, or the groups 0 to d - 1 of ``feature_mask``, the same d in every sample."""
        shape = tuple(x.shape[1:])
        if feature_mask is None:
            return cls(shape, math.prod(shape))
        if not isinstance(feature_mask, Tensor) or feature_mask.shape != x.shape or feature_mask.dtype != torch.int64:
            is_tensor = isinstance(feature_mask, Tensor)
            kind = f"{feature_mask.dtype} of shape {tuple(feature_mask.shape)}" if is_tensor else "no tensor"
            raise InputError(f"{where}: feature_mask is {kind}; expected int64 of shape {tuple(x.shape)}")
        groups = feature_mask.flatten(1).to(x.device)
        d = int(groups.max()) + 1
        present = torch.zeros(len(groups), max(d, 1), dtype=torch.bool, device=x.device)
        if int(groups.min()) < 0 or not present.scatter_(1, groups, True).all():
            raise InputError(f"{where}: feature_mask leaves out groups; expected 0 to {d - 1} in every sample")
        return cls(shape, d, groups)

    def rows(self, rows: Tensor) -> Features:
        """The features of some samples."""
        return self if self.groups is None else Features(self.shape, self.d, self.groups[rows])

    def spread(self, values: Float[Tensor, "n k d"]) -> Float[Tensor, "n k ..."]:
        """Each element gets its feature's value."""
        if self.groups is not None:
            values = values.gather(2, self.groups[:, None].expand(-1, values.shape[1], -1))
        return values.unflatten(2, self.shape)

    def total(self, elements: Float[Tensor, "n k ..."]) -> Float[Tensor, "n k d"]:
        """The sum over each feature's elements."""
        flat = elements.flatten(2)
        if self.groups is None:
            return flat
        out = flat.new_zeros(*flat.shape[:2], self.d)
        return out.scatter_add_(2, self.groups[:, None].expand_as(flat), flat)

    def mean(self, elements: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """The mean over each feature's elements: the feature's own value where they are equal."""
        whole = elements[:, None]
        return (self.total(whole) / self.total(torch.ones_like(whole)))[:, 0]
