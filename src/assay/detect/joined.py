"""Detectors that join a score of each layer by logistic weights."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.detect.base import FittedDetector
from assay.runtime.errors import InputError

FOLDS = 5


@dataclass(kw_only=True)
class FittedJoined(FittedDetector):
    """Score = sum_l weight_l (s_l - centre_l) / scale_l + bias over the scores s_l of the layers.

    ``joined_`` says where the weights come from.
    """

    layers_: list[str] = field(default_factory=list)
    centre_: np.ndarray = field(default_factory=lambda: np.zeros(1))
    scale_: np.ndarray = field(default_factory=lambda: np.ones(1))
    weight_: np.ndarray = field(default_factory=lambda: np.ones(1))
    bias_: float = 0.0
    joined_: str = ""

    @abstractmethod
    def layer_scores(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n l"]:
        """The score at every layer, float64 on the CPU."""

    def standardise(self, columns: Float[np.ndarray, "n l"], joined: str) -> None:
        """Weigh the layers alike, each standardised by mean and deviation of ``columns``, the scores on fit data."""
        self.centre_, self.scale_ = columns.mean(0), np.maximum(columns.std(0), 1e-12)
        self.weight_, self.joined_ = np.ones(columns.shape[1]), joined

    def join(self, columns: Float[Tensor, "n l"]) -> Float[Tensor, " n"]:
        """One score a sample; differentiable."""
        centre, scale, weight = (torch.from_numpy(v) for v in (self.centre_, self.scale_, self.weight_))
        return ((columns - centre) / scale) @ weight + self.bias_

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        return self.join(self.layer_scores(x))

    def with_out(self, inside: Float[Tensor, "n ..."], outside: Float[Tensor, "m ..."]) -> Self:
        """The same layers with weights from logistic regression, ``inside`` 0 against ``outside`` 1.

        5-fold cross-validation of the log-likelihood chooses the penalty; the score becomes the log-odds of being
        outside. These inputs decide the weights: they must not be those that the detector is then tested on.
        InputError below five samples of each.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV

        inside, outside = self.check(inside), self.check(outside)
        if min(len(inside), len(outside)) < FOLDS:
            raise InputError(
                f"{type(self).__name__}.with_out: {len(inside)} inside and {len(outside)} outside; "
                f"expected at least {FOLDS} of each"
            )
        columns = np.r_[self.layer_scores(inside).numpy(), self.layer_scores(outside).numpy()]
        label = np.repeat([0, 1], [len(inside), len(outside)])
        other = replace(self)
        other.standardise(columns, "logistic regression on out-data")
        search = GridSearchCV(
            LogisticRegression(max_iter=1000), {"C": np.logspace(-4, 4, 9)}, scoring="neg_log_loss", cv=FOLDS
        )
        fit = search.fit((columns - other.centre_) / other.scale_, label).best_estimator_
        other.weight_, other.bias_ = fit.coef_[0], float(fit.intercept_[0])
        other.reference_ = other.score(inside).numpy()
        other.threshold_from_ = "the inside samples of with_out"
        return other
