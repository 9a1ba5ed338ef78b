"""Grids whose shared factors are known, and how many of them a representation shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import Ridge
from torch import Tensor

from assay.data import Data, load_data
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import numpy_rng

Split = Literal["train", "probe", "test"]
ENOUGH = 0.5  # accuracy above which a cell counts as captured


@dataclass(frozen=True, kw_only=True)
class SpatialMultiGrid:
    """Two views of a grid of digits that share one factor a cell (after Ozair et al., 2019, arXiv:1903.11780, where the
    cells are characters of Omniglot).

    Cell i of x shows a digit c_i, uniform and independent of the others; cell i of y shows (c_i + 1) mod 10; drawings
    are picked afresh for both. Hence the mutual information is rows x cols x log 10 nats. ``source`` names the drawings
    ("digits", "mnist"). Split "train" uses those of the source's training part, "probe" and "test" one half each of its
    test part: drawings that no encoder has seen. Raises InputError for an empty grid or n < 1.
    """

    kind: ClassVar[str] = "function"

    rows: int = 2
    cols: int = 2
    source: str = "digits"

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise InputError(f"SpatialMultiGrid: {self.rows} x {self.cols}; expected at least 1 x 1")

    @property
    def mutual_information(self) -> float:
        """In nats."""
        return self.rows * self.cols * math.log(self.classes)

    @property
    def classes(self) -> int:
        """Values that a factor takes."""
        return len(self._parts["train"].classes)

    def sample(
        self, n: int, split: Split, *, seed: int
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"], Int[Tensor, "n k"]]:
        """Both views, and the digit of x in every cell, row by row."""
        if split not in ("train", "probe", "test"):
            raise unknown("split of SpatialMultiGrid", split, ("train", "probe", "test"))
        if n < 1:
            raise InputError(f"SpatialMultiGrid: n={n}; expected at least 1")
        part, rng = self._parts[split], numpy_rng(seed, "grid", split)
        factors = rng.integers(self.classes, size=(n, self.rows * self.cols))
        views = [self._drawn(part, shown, rng) for shown in (factors, (factors + 1) % self.classes)]
        return views[0], views[1], torch.from_numpy(factors)

    @cached_property
    def _parts(self) -> dict[str, Data]:
        held = load_data(self.source, "test")
        return {
            "train": load_data(self.source, "train"),
            "probe": held[0 : len(held) : 2],
            "test": held[1 : len(held) : 2],
        }

    def _drawn(self, part: Data, shown: np.ndarray, rng: np.random.Generator) -> Float[Tensor, "n c h w"]:
        """Grids with a random drawing of each digit in ``shown`` (n, k)."""
        order, counts = np.argsort(part.y.numpy(), kind="stable"), np.bincount(part.y.numpy())
        first = np.cumsum(counts) - counts
        picked = order[first[shown] + (rng.random(shown.shape) * counts[shown]).astype(int)]
        cells = part.x[torch.from_numpy(picked)].unflatten(1, (self.rows, self.cols))
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


@dataclass(frozen=True)
class Completeness:
    """Accuracy of a linear probe by cell (k,), on drawings that neither the encoder nor the probe has seen."""

    cells: Float[np.ndarray, " k"]

    @property
    def mean(self) -> float:
        """Mean over the cells."""
        return float(self.cells.mean())

    @property
    def least(self) -> float:
        """The worst cell."""
        return float(self.cells.min())

    @property
    def captured(self) -> int:
        """How many cells are read with an accuracy above 0.5."""
        return int((self.cells > ENOUGH).sum())


def completeness_probe(
    encode: Callable[[Tensor], Tensor],
    grid: SpatialMultiGrid,
    *,
    seed: int,
    n: int = 1500,
    test: int = 1500,
    penalty: float = 1.0,
) -> Completeness:
    """How much of every factor ridge regression reads off ``encode(x)`` (n, d): one-hot targets, the largest wins.

    Fitted on ``n`` grids of the split "probe", measured on ``test`` grids of the split "test". ``penalty`` > 0 weighs
    the squared weights of standardised features. InputError for n, test < 1, penalty <= 0 and codes of other shapes.
    """
    if not 0 < penalty < math.inf:
        raise InputError(f"completeness_probe: penalty={penalty}; expected a finite number > 0")
    x, _, factors = grid.sample(n, "probe", seed=seed)
    held, _, truth = grid.sample(test, "test", seed=seed)
    with torch.no_grad():
        known, unseen = (encode(v).double().cpu().numpy() for v in (x, held))
    if known.ndim != 2 or len(known) != n:
        raise InputError(f"completeness_probe: the encoder gave {known.shape}; expected ({n}, d)")
    centre, spread = known.mean(0), known.std(0) + 1e-9
    targets = np.eye(grid.classes)[factors.numpy()].reshape(n, -1)
    fitted = Ridge(alpha=penalty).fit((known - centre) / spread, targets)
    guesses = fitted.predict((unseen - centre) / spread).reshape(test, -1, grid.classes).argmax(2)
    return Completeness((guesses == truth.numpy()).mean(0))
