"""Naive Bayes on frozen features: the generative twin of the logistic probe."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from assay.runtime.errors import InputError


class NaiveBayesProbe(ClassifierMixin, BaseEstimator):
    """Gaussian naive Bayes as a linear probe (Zheng et al., 2023, arXiv:2302.02334, the generative side of section 2).

    Features x (m, n), K classes with means mu_k, priors pi_k = m_k / m and population variances var_k (n,). All classes
    share v = sum_k pi_k var_k + ``var_smoothing``, so that score_k(x) = log pi_k - 1/2 sum_j (x_j - mu_kj)^2 / v_j is
    linear in x but for a term common to all classes: ``to_linear()`` gives w_k = mu_k / v and
    b_k = log pi_k - 1/2 sum_j mu_kj^2 / v_j. With ``shared_variance=False`` each class has its own variances, the
    scores gain - 1/2 sum_j log v_kj and the classifier is quadratic: no probe in the sense of the paper.

    A scikit-learn classifier; ``partial_fit(x, y, classes)`` adds samples, and any split gives the fit of the whole:
    means and sums of squares are merged by Chan et al. (1979). Learned: ``classes_`` (K,), ``class_count_`` (K,),
    ``mean_`` (K, n), ``squares_`` (K, n) summed about the class means, and ``constant_`` (n,), the features without
    variance within any class, which have the floor alone. ``var_smoothing`` >= 0 is absolute (scikit-learn's is a share
    of the largest variance). Everything is float64. Raises InputError for a single class, for features that are not
    finite or not (m, n), for labels of other length or unknown, for a negative floor, and where a variance and the
    floor are both 0.
    """

    kind: ClassVar[str] = "function"

    def __init__(self, var_smoothing: float = 1e-9, shared_variance: bool = True) -> None:
        self.var_smoothing = var_smoothing
        self.shared_variance = shared_variance

    def fit(self, X: Any, y: Any) -> NaiveBayesProbe:
        """Learn from features (m, n) and labels (m,); what was learned before is forgotten."""
        x, labels = checked_samples(self, X, y)
        return self._start(unique_labels(labels), x.shape[1])._add(x, labels)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> NaiveBayesProbe:
        """Learn from more samples. The first call names all ``classes``; one without samples is not predicted."""
        first = not hasattr(self, "classes_")
        x, labels = checked_samples(self, X, y, reset=first)
        if first:
            if classes is None:
                raise InputError("NaiveBayesProbe: classes is None; expected all class labels at the first partial_fit")
            self._start(unique_labels(classes), x.shape[1])
        return self._add(x, labels)

    def scores(self, X: Any) -> Float[np.ndarray, "m k"]:
        """log pi_k + log density but for what all classes share, float64; -inf for a class without samples."""
        x = checked_features(self, X)
        with np.errstate(divide="ignore"):
            prior = np.log(self._priors())
        variance = np.broadcast_to(self.variance_, self.mean_.shape)
        # The squares are expanded about the mean of the means, so that no digits are lost to a common offset.
        centre = self._priors() @ self.mean_
        x, mean = x - centre, self.mean_ - centre
        distance = x**2 @ (1 / variance).T - 2 * x @ (mean / variance).T + (mean**2 / variance).sum(1)
        return prior - 0.5 * distance - (0 if self.shared_variance else 0.5 * np.log(variance).sum(1))

    def to_linear(self) -> tuple[Float[np.ndarray, "k n"], Float[np.ndarray, " k"]]:
        """W and b with scores(x) = x W^T + b but for a term all classes share. InputError where it is not linear."""
        check_is_fitted(self)
        if not self.shared_variance:
            raise InputError("NaiveBayesProbe: each class has its own variances; expected shared_variance=True")
        if not self.class_count_.all():
            missing = self.classes_[self.class_count_ == 0][0]
            raise InputError(f"NaiveBayesProbe: no sample of class {missing!r}; expected one of every class")
        weight = self.mean_ / self.variance_
        return weight, np.log(self._priors()) - 0.5 * (self.mean_ * weight).sum(1)

    def decision_function(self, X: Any) -> np.ndarray:
        """The scores (m, K); with two classes their difference (m,), as scikit-learn has it."""
        found = self.scores(X)
        return found[:, 1] - found[:, 0] if found.shape[1] == 2 else found

    def predict(self, X: Any) -> np.ndarray:
        """The class of the largest score (m,)."""
        best = self.scores(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "m k"]:
        """Posterior probabilities of the classes."""
        return softmax(self.scores(X), axis=1)

    @property
    def variance_(self) -> np.ndarray:
        """v (n,), or one row a class (K, n) where they are not shared; with the floor."""
        within = self.squares_.sum(0) / self.class_count_.sum()
        if not self.shared_variance:
            within = self.squares_ / np.maximum(self.class_count_, 1)[:, None]
        return within + self.var_smoothing

    @property
    def constant_(self) -> np.ndarray:
        """The features (n,) that do not vary within any class."""
        return np.logical_not(self.squares_.any(0))

    def _start(self, classes: np.ndarray, n: int) -> NaiveBayesProbe:
        if len(classes) < 2:
            raise InputError(f"NaiveBayesProbe: {len(classes)} class; expected at least two")
        if not (math.isfinite(self.var_smoothing) and self.var_smoothing >= 0):
            raise InputError(f"NaiveBayesProbe: var_smoothing={self.var_smoothing}; expected a finite number >= 0")
        self.classes_ = classes
        self.class_count_ = np.zeros(len(classes))
        self.mean_, self.squares_ = np.zeros((2, len(classes), n))
        return self

    def _add(self, x: Float[np.ndarray, "m n"], y: Int[np.ndarray, " m"]) -> NaiveBayesProbe:
        """Merge the counts, means and sums of squares of more samples into those kept."""
        known = np.isin(y, self.classes_)
        if not known.all():
            raise InputError(f"NaiveBayesProbe: label {y[~known][0]!r}; expected one of {list(self.classes_)}")
        member = y[:, None] == self.classes_
        count = member.sum(0).astype(float)
        new = member.T @ x / np.maximum(count, 1)[:, None]
        which, present = member.argmax(1), np.flatnonzero(count)
        starts = np.searchsorted(np.sort(which), present)
        by_class = x[which.argsort(kind="stable")]
        low, high = (extreme.reduceat(by_class, starts) for extreme in (np.minimum, np.maximum))
        new[present] = np.where(low == high, low, new[present])  # a mean of equal numbers is that number, not rounded
        squares = member.T @ (x - new[which]) ** 2
        total = self.class_count_ + count
        share = (count / np.maximum(total, 1))[:, None]
        self.squares_ = self.squares_ + squares + self.class_count_[:, None] * share * (new - self.mean_) ** 2
        self.mean_ = self.mean_ + share * (new - self.mean_)
        self.class_count_ = total
        if self.var_smoothing == 0 and not self.variance_.all():
            raise InputError("NaiveBayesProbe: a feature without variance; expected var_smoothing > 0")
        return self

    def _priors(self) -> Float[np.ndarray, " k"]:
        return self.class_count_ / self.class_count_.sum()


def checked_samples(probe: BaseEstimator, x: Any, y: Any, *, reset: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Features (m, n) in float64 and labels (m,), as scikit-learn checks them; InputError where it refuses."""
    try:
        features, labels = validate_data(probe, x, y, dtype=np.float64, reset=reset)
        check_classification_targets(labels)
    except ValueError as error:
        raise _refused(probe, error) from error
    return features, labels


def checked_features(probe: BaseEstimator, x: Any) -> np.ndarray:
    """Features (m, n) in float64 for a fitted probe; InputError where scikit-learn refuses them."""
    check_is_fitted(probe)
    try:
        return np.asarray(validate_data(probe, x, dtype=np.float64, reset=False))
    except ValueError as error:
        raise _refused(probe, error) from error


def _refused(probe: BaseEstimator, error: ValueError) -> InputError:
    return InputError(f"{type(probe).__name__}: {error}; expected finite features (m, n), one label each")
