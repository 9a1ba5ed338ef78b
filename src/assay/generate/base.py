"""The contract of generators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError


@dataclass(kw_only=True)
class FittedGenerator:
    """What ``Generator.fit`` returns: ``shape`` of one sample and ``bounds`` are those of the data."""

    shape: tuple[int, ...]
    bounds: tuple[float, float]

    def draw(self, n: int, *, seed: int) -> Float[Tensor, "n ..."]:
        """``n`` samples in the data's units, not yet cut to the bounds."""
        raise TypeError(f"{type(self).__name__} states no draw")

    def sample(self, n: int, *, seed: int) -> Float[Tensor, "n ..."]:
        """``n`` >= 1 samples (n, *shape), float32 on the CPU, cut to ``bounds``; the same seed gives the same ones."""
        self.check_count(n)
        return self.finished(self.draw(n, seed=seed))

    def check_count(self, n: int) -> None:
        """InputError unless ``n`` is a whole number of samples, at least one."""
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise InputError(f"{type(self).__name__}.sample: n is {n!r}; expected a whole number >= 1")

    def finished(self, x: Tensor) -> Float[Tensor, "n ..."]:
        """Samples as they are handed out. InputError where the model diverged to values that are not finite."""
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x.flatten(1))).any(1).sum())
            raise InputError(f"{type(self).__name__}.sample: {bad} of {len(x)} samples are not finite; expected finite")
        return x.reshape(-1, *self.shape).clamp(*self.bounds).float().cpu()


Fitted = TypeVar("Fitted", bound=FittedGenerator)


@dataclass(frozen=True, kw_only=True)
class Generator(Generic[Fitted]):
    """``fit(data, *, seed) -> FittedGenerator``. A subclass states in ``learn`` what it takes from the data."""

    kind: ClassVar[str] = "generator"
    contract: ClassVar[bool] = True

    def learn(self, data: Data, *, seed: int) -> Fitted:
        """The fitted generator of data that have been checked."""
        raise TypeError(f"{type(self).__name__} states no learn")

    def fit(self, data: Data, *, seed: int) -> Fitted:
        """Fit to ``data``, which stay as they are. Raises InputError on unusable data."""
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)
        return self.learn(data, seed=seed)
