"""The container of every data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


@dataclass(frozen=True)
class Batch:
    """Some samples: inputs, labels, their indices in the data set, and the named fields."""

    x: Tensor
    y: Tensor
    index: Tensor
    fields: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return Batch(
            self.x.to(device),
            self.y.to(device),
            self.index.to(device),
            {k: v.to(device) for k, v in self.fields.items()},
        )


@dataclass(frozen=True)
class Data:
    """A map-style data set.

    x (n, ...) float32 in ``bounds``; y (n,) int64 in [0, len(classes)); classes: names that differ; index (n,) int64, a
    name for each sample that survives subsetting; fields: named tensors with one row a sample (groups, human_probs
    ...). Tensors may be memory-mapped. ``name`` says where the data came from.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    bounds: tuple[float, float] = (0.0, 1.0)
    name: str = "data"
    index: Tensor = None  # type: ignore[assignment]
    fields: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.index is None:
            object.__setattr__(self, "index", torch.arange(len(self.x)))
        self._check()

    def _check(self) -> None:
        where, n = f"data {self.name!r}", len(self.x)
        if not isinstance(self.x, Tensor) or not self.x.is_floating_point():
            raise InputError(
                f"{where}: x is {getattr(self.x, 'dtype', type(self.x).__name__)}; expected a float tensor"
            )
        if n == 0:
            raise InputError(f"{where} is empty; expected at least one sample")
        if len(self.classes) < 2:
            raise InputError(f"{where} has {len(self.classes)} class; expected at least two")
        if len(set(self.classes)) < len(self.classes):
            twice = next(c for k, c in enumerate(self.classes) if c in self.classes[:k])
            raise InputError(f"{where}: class {twice!r} occurs twice; expected names that differ")
        for name, t in {"y": self.y, "index": self.index, **self.fields}.items():
            if len(t) != n:
                raise InputError(f"{where}: {name} has {len(t)} rows; expected {n}, one a sample")
        if self.y.dtype != torch.int64 or self.y.dim() != 1:
            raise InputError(f"{where}: labels are {self.y.dtype} {tuple(self.y.shape)}; expected int64 ({n},)")
        least, most = int(self.y.min()), int(self.y.max())
        if least < 0 or most >= len(self.classes):
            raise InputError(f"{where}: labels span [{least}, {most}]; expected 0 to {len(self.classes) - 1}")
        if not torch.isfinite(self.x).all():
            bad = int((~torch.isfinite(self.x.flatten(1))).any(1).sum())
            raise InputError(f"{where}: {bad} samples hold NaN or infinite values; expected finite inputs")
        low, high = float(self.x.min()), float(self.x.max())
        if low < self.bounds[0] - 1e-6 or high > self.bounds[1] + 1e-6:
            raise InputError(f"{where}: x spans [{low:.4g}, {high:.4g}]; expected values in {list(self.bounds)}")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor | slice) -> Data:
        """The samples that a mask, positions or a slice selects; their ``index`` goes with them."""
        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            index=self.index[rows],
            fields={k: v[rows] for k, v in self.fields.items()},
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    @cached_property
    def hash(self) -> str:
        """Content hash over inputs, labels, indices, fields and metadata."""
        h = hashlib.sha256(repr((self.classes, self.bounds, tuple(self.x.shape))).encode())
        for _, t in sorted({"x": self.x, "y": self.y, "index": self.index, **self.fields}.items()):
            h.update(t.contiguous().numpy().tobytes())
        return h.hexdigest()

    def batch(self, rows: Tensor) -> Batch:
        """The samples at positions ``rows`` (b,)."""
        return Batch(self.x[rows], self.y[rows], self.index[rows], {k: v[rows] for k, v in self.fields.items()})

    def batches(self, size: int, *, order: Int[Tensor, " n"] | None = None) -> Iterator[Batch]:
        """All samples in batches, in ``order`` (positions) or as they lie."""
        order = torch.arange(len(self)) if order is None else order
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size])

    def split(self, fraction: float, *, seed: int) -> tuple[Data, Data]:
        """Two disjoint random parts, the first with ``fraction`` of the samples (at least one in each)."""
        if not 0 < fraction < 1 or len(self) < 2:
            raise InputError(
                f"split of {self.name!r}: fraction {fraction} of {len(self)}; expected 0 < fraction < 1, n >= 2"
            )
        order = torch.randperm(len(self), generator=torch_rng(seed, "split", self.name))
        k = min(max(round(fraction * len(self)), 1), len(self) - 1)
        return self[order[:k].sort().values], self[order[k:].sort().values]

    def limit(self, n: int | None, *, seed: int = 0) -> Data:
        """At most ``n`` samples, drawn at random without replacement."""
        if n is None or n >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch_rng(seed, "limit", self.name))
        return self[order[:n].sort().values]

    def with_x(self, x: Float[Tensor, "n ..."]) -> Data:
        """The same samples with other inputs."""
        return replace(self, x=x)

    def with_y(self, y: Int[Tensor, " n"]) -> Data:
        """The same samples with other labels."""
        return replace(self, y=y)

    def without(self, index: Tensor) -> Data:
        """The samples whose ``index`` is not among ``index``."""
        return self[~torch.isin(self.index, index)]
