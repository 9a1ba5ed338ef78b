"""The contracts of the room: certifiers, bounders and set predictors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.calibrate import Outputs
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import Draws


@dataclass(frozen=True)
class Region:
    """All inputs within ``eps`` (>= 0, in the data's units) of x in ``norm``, cut to ``bounds`` where given."""

    norm: Literal["linf", "l2"] = "linf"
    eps: float = 8 / 255
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise InputError(f"Region: norm is {self.norm!r}; expected 'linf' or 'l2'")
        if not 0 <= self.eps < float("inf"):
            raise InputError(f"Region: eps is {self.eps}; expected a finite number >= 0")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise InputError(f"Region: bounds are {list(self.bounds)}; expected low < high")

    def box(self, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]]:
        """The smallest box around the region, float64: the region itself under linf, larger under l2."""
        lower, upper = x.double() - self.eps, x.double() + self.eps
        return (lower, upper) if self.bounds is None else (lower.clamp(*self.bounds), upper.clamp(*self.bounds))


@dataclass(frozen=True)
class Certificate:
    """What holds for n samples, each with probability at least ``confidence`` (1: always).

    verdict (n,) bool: the prediction is y and stays so within ``radius``; prediction (n,) int64, -1 where the method
    abstains; radius (n,) float64 >= 0 in the data's units, within which the *prediction* is guaranteed not to change.
    """

    verdict: Bool[Tensor, " n"]
    prediction: Int[Tensor, " n"]
    radius: Float[Tensor, " n"]
    confidence: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Certifier(ABC):
    """``certify(model, x, y) -> Certificate``: x (n, ...), y (n,) int64."""

    kind: ClassVar[str] = "certifier"

    @abstractmethod
    def certify(
        self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], *, seed: int = 0
    ) -> Certificate:
        """Guarantees around each sample. ``seed`` matters to randomised methods only."""


@dataclass(frozen=True, kw_only=True)
class Bounder(ABC):
    """``bounds(model, x, region) -> (lower, upper)``, each (n, c): every logit of every input in the region."""

    kind: ClassVar[str] = "bounder"

    @abstractmethod
    def bounds(
        self, model: nn.Module, x: Float[Tensor, "n ..."], region: Region
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Sound bounds on the logits, float64 on the CPU."""


@dataclass(frozen=True)
class FittedSets:
    """A set predictor with its calibrated ``threshold_`` (infinite where the calibration set is too small).

    Calibrated by class it has one threshold for each, ``thresholds_`` (c,); ``threshold_`` is then the largest.
    """

    method: SetPredictor
    threshold_: float
    seed: int
    thresholds_: Float[Tensor, " c"] | None = None

    @property
    def limits(self) -> Float[Tensor, ...]:
        """What scores (n, c) are held against, float64: (c,), or () where one threshold serves all classes."""
        return torch.tensor(self.threshold_, dtype=torch.float64) if self.thresholds_ is None else self.thresholds_

    def sets(self, outputs: Outputs) -> Bool[Tensor, "n c"]:
        """Which classes belong to each sample's set."""
        u = self.method.uniform(outputs, self.seed, "sets")
        return self.method.scores(outputs, u) <= self.limits


@dataclass(frozen=True, kw_only=True)
class SetPredictor(ABC):
    """Split conformal prediction (Papadopoulos et al., 2002; Vovk et al., 2005): a subclass declares its scores.

    Samples exchangeable with the n calibration samples fall in their sets with probability at least 1 - ``alpha``
    (where ``tight``, also below 1 - alpha + 1 / (n + 1) if scores have no ties). ``by_class`` calibrates each class on
    its own samples (Mondrian conformal prediction: Vovk et al., 2003; Vovk, 2012, arXiv:1209.2673): then the same holds
    among the samples of every class, with their number for n. A class of fewer than ceil(1 / alpha) - 1 is in every
    set.
    """

    kind: ClassVar[str] = "set-predictor"
    tight: ClassVar[bool] = True

    alpha: float = 0.1
    by_class: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise InputError(f"{type(self).__name__}: alpha is {self.alpha}; expected 0 < alpha < 1")

    @property
    def top(self) -> float:
        """What no score exceeds; none is below 0."""
        return 1.0

    @abstractmethod
    def scores(self, outputs: Outputs, u: Float[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        """Non-conformity of each class, float64; ``u`` uniform in (0, 1) breaks ties at random."""

    def uniform(self, outputs: Outputs, seed: int, stream: str) -> Float[Tensor, "n 1"]:
        """One uniform number a sample, by its name."""
        return Draws(seed, f"{type(self).__name__}.{stream}", outputs.names).uniform(1).double()

    def fit(self, outputs: Outputs, y: Int[Tensor, " n"], *, seed: int = 0) -> FittedSets:
        """Calibrate on logits (n, c) and labels (n,) int64: the ceil((n + 1)(1 - alpha))-th smallest score of y."""
        check_labels(type(self).__name__, y, len(outputs.logits), outputs.classes)
        scores = self.scores(outputs, self.uniform(outputs, seed, "fit"))
        threshold, by_class = self.thresholds(scores, y, self.alpha)
        return FittedSets(self, threshold, seed, by_class)

    def thresholds(
        self, scores: Float[Tensor, "n c"], y: Int[Tensor, " n"], alpha: float
    ) -> tuple[float, Float[Tensor, " c"] | None]:
        """The conformal quantile of the scores of y; with ``by_class`` the largest of the classes', and all of them."""
        own = scores.gather(1, y[:, None])[:, 0]
        if not self.by_class:
            return conformal_quantile(own, alpha), None
        found = class_quantiles(own, y, scores.shape[1], alpha)
        return float(found.max()), found


def conformal_quantile(scores: Float[Tensor, " n"], alpha: float) -> float:
    """The k-th smallest score, k = ceil((n + 1)(1 - alpha)); infinity where k > n (Vovk et al., 2005, section 4.2)."""
    k = max(math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9), 1)  # 1e-9: a whole number is not lifted by rounding
    return float(scores.kthvalue(k).values) if k <= len(scores) else float("inf")


def class_quantiles(scores: Float[Tensor, " n"], y: Int[Tensor, " n"], classes: int, alpha: float) -> Tensor:
    """``conformal_quantile`` of the scores of each class, (classes,) float64; infinity for a class without samples."""
    by_score = scores.sort(stable=True)
    order = by_score.indices[y[by_score.indices].argsort(stable=True)]
    counts = y.bincount(minlength=classes)
    k = ((counts + 1).double() * (1 - alpha) - 1e-9).ceil().clamp_min(1).long()
    place = (counts.cumsum(0) - counts + k - 1).clamp(0, len(scores) - 1)
    return torch.where(k <= counts, scores[order[place]].double(), torch.inf)


def best_other(logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The largest value over the classes other than y."""
    return torch.where(torch.nn.functional.one_hot(y, logits.shape[1]).bool(), -torch.inf, logits).amax(1)
