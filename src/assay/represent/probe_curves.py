"""Two probes over label budgets: who errs less with few labels, and where the curves cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import ClassifierMixin, clone
from sklearn.preprocessing import MinMaxScaler
from torch import Tensor

from assay.represent.logistic_probe import LogisticProbe
from assay.represent.naive_bayes_probe import NaiveBayesProbe
from assay.represent.sample_complexity import with_every_class
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import numpy_rng

GENERATIVE, DISCRIMINATIVE = "naive bayes", "logistic"


@dataclass(frozen=True)
class ProbeCurves:
    """Test errors of P probes at S sizes in R repeats, each repeat on the same samples for all probes."""

    sizes: tuple[int, ...]
    names: tuple[str, ...]
    errors: Float[np.ndarray, "p s r"]

    def of(self, name: str) -> Float[np.ndarray, "s r"]:
        """The errors of one probe."""
        if name not in self.names:
            raise unknown("probe", name, self.names)
        return self.errors[self.names.index(name)]

    @property
    def mean(self) -> Float[np.ndarray, "p s"]:
        """Mean error over repeats."""
        return self.errors.mean(2)

    @property
    def standard_error(self) -> Float[np.ndarray, "p s"]:
        """Standard error of the mean; NaN with one repeat."""
        return _standard_error(self.errors)


@dataclass(frozen=True)
class TwoRegimes:
    """``crossing`` is the size from which the discriminative probe leads (None: none), ``asymptotes`` the mean errors
    (generative, discriminative) at the largest size, and ``generative_first`` whether the generative probe errs less at
    every size before the crossing, of which there is one at least.
    """

    crossing: int | None
    asymptotes: tuple[float, float]
    generative_first: bool


def compare_probes(
    features: Float[np.ndarray, "m n"],
    y: Int[np.ndarray, " m"],
    features_test: Float[np.ndarray, "t n"],
    y_test: Int[np.ndarray, " t"],
    sizes: Sequence[int],
    *,
    seed: int,
    repeats: int = 5,
    probes: Mapping[str, ClassifierMixin] | None = None,
) -> ProbeCurves:
    """Errors over training sizes on frozen features (Zheng et al., 2023, arXiv:2302.02334, the protocol of section 5).

    For each size and repeat as many of the ``features`` are drawn without replacement, again where a class is missing;
    each feature is brought to [0, 1] by the drawn samples alone. ``probes`` are scikit-learn classifiers by name,
    unless given NaiveBayesProbe and LogisticProbe with C = 1. Sizes increase, from the number of classes up to m.
    Raises InputError for other sizes, fewer than one repeat, features that are not finite, test features of another
    width or none, and where no draw holds every class.
    """
    features, y, features_test, y_test = (_array(v) for v in (features, y, features_test, y_test))
    chosen = dict(probes or {GENERATIVE: NaiveBayesProbe(), DISCRIMINATIVE: LogisticProbe(scaler=None)})
    classes = len(np.unique(y))
    steps = [int(m) for m in sizes]
    if not steps or sorted(set(steps)) != steps or not classes <= steps[0] <= steps[-1] <= len(features) or repeats < 1:
        given = f"sizes {steps}, {repeats} repeats"
        raise InputError(f"compare_probes: {given}; expected increasing {classes} to {len(features)}, repeats >= 1")
    for name, x, labels in (("features", features, y), ("features_test", features_test, y_test)):
        if np.ndim(x) != 2 or len(x) != len(labels) or not np.isfinite(x).all():
            raise InputError(f"compare_probes: {name} {np.shape(x)} or not finite; expected (m, n) and one label each")
    if not len(features_test) or features_test.shape[1] != features.shape[1]:
        raise InputError(
            f"compare_probes: features_test {features_test.shape}; expected (t, {features.shape[1]}), t >= 1"
        )
    errors = np.zeros((len(chosen), len(steps), repeats))
    for column, m in enumerate(steps):
        for repeat in range(repeats):
            draw = partial(_some, numpy_rng(seed, "probe", m, repeat), len(y), m)
            rows = with_every_class("compare_probes", draw, y)
            scaler = MinMaxScaler().fit(features[rows])
            x, held = scaler.transform(features[rows]), scaler.transform(features_test)
            for row, probe in enumerate(chosen.values()):
                errors[row, column, repeat] = (clone(probe).fit(x, y[rows]).predict(held) != y_test).mean()
    return ProbeCurves(tuple(steps), tuple(chosen), errors)


def two_regimes(curves: ProbeCurves, generative: str = GENERATIVE, discriminative: str = DISCRIMINATIVE) -> TwoRegimes:
    """Where the discriminative probe takes over: the first size at which its mean error is lower than the generative
    one's by more than one standard error of the paired difference (arXiv:2302.02334 calls this two regimes).
    """
    first, second = curves.of(generative), curves.of(discriminative)
    lead = (first - second).mean(1)
    ahead = lead > np.nan_to_num(_standard_error(first - second))
    at = int(ahead.argmax()) if ahead.any() else None
    before = lead[:at]
    asymptotes = float(first[-1].mean()), float(second[-1].mean())
    crossing = None if at is None else curves.sizes[at]
    return TwoRegimes(crossing, asymptotes, bool(len(before) and (before < 0).all()))


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _some(rng: np.random.Generator, n: int, m: int) -> Int[np.ndarray, " m"]:
    """``m`` of ``n`` rows without replacement."""
    return rng.choice(n, m, replace=False)


def _standard_error(errors: Float[np.ndarray, "*s r"]) -> np.ndarray:
    repeats = errors.shape[-1]
    return np.std(errors, axis=-1, ddof=1) / repeats**0.5 if repeats > 1 else np.full(errors.shape[:-1], np.nan)
