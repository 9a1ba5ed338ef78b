"""HSPI-LD: the platform is read off the bits of the logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.multiclass import OneVsOneClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor

from assay.privacy.platform.base import Identifier, winner
from assay.privacy.platform.float_bits import float_bits, split_float
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import derive


@dataclass(frozen=True, kw_only=True)
class LogitFingerprint(Identifier):
    """Hardware and software platform inference from logits (Zhang et al., 2024, arXiv:2411.05197, HSPI-LD).

    ``fit({name: logits}) -> fitted``, the logits (n, c) float32 exactly as each platform gives them, of the same inputs
    or of others. Each value becomes its 32 bits ("bits"), or its sign, exponent and fraction ("ints"); ``group``
    consecutive samples are one example of group x c x 32 (or 3) features (what does not fill a group at the end is left
    out); examples are standardised, and linear support vector machines, one for each pair of platforms, vote.
    Defaults are those of the official script, which has scikit-learn's C = 1.

    Evaluate on other inputs than those fitted on: two platforms share inputs, so that rows alone do not separate the
    parts. Raises InputError for fewer than two platforms, another type than float32, non-finite logits, unequal
    widths, or fewer samples than a group.
    """

    contract: ClassVar[bool] = False

    group: int = 10
    features: Literal["bits", "ints"] = "bits"
    C: float = 1.0
    max_iter: int = 10_000

    def __post_init__(self) -> None:
        if self.features not in ("bits", "ints"):
            raise unknown("features of LogitFingerprint", self.features, ("bits", "ints"))
        if self.group < 1 or self.C <= 0 or self.max_iter < 1:
            found = f"group {self.group}, C {self.C}, max_iter {self.max_iter}"
            raise InputError(f"LogitFingerprint: {found}; expected group >= 1, C > 0 and max_iter >= 1")

    def encode(self, logits: Float[Tensor, "n c"]) -> Tensor:
        """What the classifier sees of each value: (n, c, features)."""
        return float_bits(logits) if self.features == "bits" else torch.stack(split_float(logits), -1)

    def examples(self, logits: Float[Tensor, "n c"]) -> np.ndarray:
        """One row a group of consecutive samples, (n // group, group c features) float64."""
        if not isinstance(logits, Tensor) or logits.dtype != torch.float32 or logits.dim() != 2:
            found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"LogitFingerprint: logits are {found}; expected float32 (n, c)")
        if not torch.isfinite(logits).all():
            raise InputError("LogitFingerprint: logits hold NaN or infinite values; expected finite ones")
        groups = len(logits) // self.group
        if groups == 0:
            raise InputError(f"LogitFingerprint: {len(logits)} samples; expected at least a group of {self.group}")
        return self.encode(logits[: groups * self.group].cpu()).reshape(groups, -1).double().numpy()

    def fit(self, logits: Mapping[str, Float[Tensor, "n c"]], *, seed: int = 0) -> FittedLogitFingerprint:
        """Learn to tell the platforms apart by their logits."""
        self.check_platforms(logits)
        parts = {name: self.examples(value) for name, value in logits.items()}
        widths = {name: value.shape[1] for name, value in logits.items()}
        if len(set(widths.values())) > 1:
            raise InputError(f"LogitFingerprint: widths of the logits are {widths}; expected the same for all")
        machine = LinearSVC(C=self.C, max_iter=self.max_iter, dual="auto", random_state=derive(seed, "svc") % 2**31)
        classifier = make_pipeline(StandardScaler(copy=False), OneVsOneClassifier(machine))
        labels = np.repeat(np.arange(len(parts)), [len(p) for p in parts.values()])
        classifier.fit(np.concatenate(list(parts.values())), labels)
        return FittedLogitFingerprint(self, tuple(parts), next(iter(widths.values())), classifier)


@dataclass(frozen=True)
class FittedLogitFingerprint:
    """``names_`` of the platforms, the ``width_`` of their logits, and the ``classifier_`` of groups."""

    method: LogitFingerprint
    names_: tuple[str, ...]
    width_: int
    classifier_: Pipeline

    def _classes(self, logits: Float[Tensor, "n c"]) -> Int[np.ndarray, " g"]:
        examples = self.method.examples(logits)
        if logits.shape[1] != self.width_:
            raise InputError(f"LogitFingerprint: logits have {logits.shape[1]} columns; expected {self.width_}")
        return np.asarray(self.classifier_.predict(examples))

    def predict(self, logits: Float[Tensor, "n c"]) -> list[str]:
        """The name of the platform for each group of samples."""
        return [self.names_[k] for k in self._classes(logits)]

    def identify(self, logits: Float[Tensor, "n c"]) -> dict[str, int]:
        """How many groups speak for each platform."""
        votes = Counter(self.predict(logits))
        return {name: votes[name] for name in self.names_}

    def name(self, logits: Float[Tensor, "n c"]) -> str | None:
        """The platform with the most votes; None where two have as many."""
        return winner(self.identify(logits))

    def confusion(self, logits: Mapping[str, Float[Tensor, "n c"]]) -> Int[np.ndarray, "m m"]:
        """Groups by platform (rows, in the order of ``names_``) and by what they were taken for (columns)."""
        counts = np.zeros((len(self.names_), len(self.names_)), dtype=np.int64)
        for name, value in logits.items():
            if name not in self.names_:
                raise unknown("platform", name, self.names_)
            counts[self.names_.index(name)] = np.bincount(self._classes(value), minlength=len(self.names_))
        return counts

    def f1(self, logits: Mapping[str, Float[Tensor, "n c"]]) -> dict[str, float]:
        """The F1 score of each platform: 2 hits / (groups of it + groups taken for it); 0 where there is neither."""
        counts = self.confusion(logits)
        both = counts.sum(0) + counts.sum(1)
        return dict(zip(self.names_, (2 * np.diag(counts) / np.maximum(both, 1)).tolist(), strict=True))

    def score(self, logits: Mapping[str, Float[Tensor, "n c"]]) -> float:
        """The share of groups whose platform is named rightly."""
        counts = self.confusion(logits)
        return float(np.trace(counts) / counts.sum())
