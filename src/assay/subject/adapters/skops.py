"""``sklearn:FILE.skops``: scikit-learn's classifiers and pipelines. skops builds named types and unpickles nothing."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from assay.data import Data
from assay.runtime.errors import AssayError, InputError
from assay.subject.adapters.answers import Meaning, meaning_of, one_hot
from assay.subject.adapters.base import BATCH, Ask, Backend, black_box, file_digest, flat, needed, opened, said
from assay.subject.subject import Subject

AGREED = 0.9  # of the samples, on which scores of classes and predictions are one


def load_sklearn(rest: str, data: dict[str, Data | None], *, trust: Collection[str] = ()) -> Subject:
    """A classifier saved with ``skops.io.dump``; samples are flattened row-major.

    ``trust`` names the types, besides those that skops knows as harmless, that the file may hold. Probabilities are
    asked for (``predict_proba``), else the ``decision_function``, else decisions. Raises InputError for a file that
    holds other types (naming them) or no classifier.
    """
    path, where, _ = opened(rest, "sklearn")
    test = needed(data, where)
    estimator = _read(path, tuple(trust), where)
    names = getattr(estimator, "classes_", None)
    if names is None or isinstance(names, list) or not hasattr(estimator, "predict"):
        raise InputError(f"{where} holds {type(estimator).__name__}; expected a fitted classifier of one output")
    try:
        method, meaning = _way(estimator, test.x, where)
    except AssayError:
        raise
    except Exception as error:  # what fails in a stranger's pipeline may be anything
        raise InputError(f"{where}: fails on samples of shape {test.shape} ({said(error)})") from error
    ask = Backend(partial(_open, path, tuple(trust), where, method))
    return black_box(
        ask, data, where=where, digest=file_digest(path), meaning=meaning, names=None if method == "predict" else names
    )


def _read(path: Path, trust: tuple[str, ...], where: str) -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise InputError(f"{where}: needs the package skops; expected pip install 'assay[sklearn]'") from error
    try:
        strange = [t for t in skops.io.get_untrusted_types(file=path) if t not in trust]
    except Exception as error:  # a broken or hostile archive
        raise InputError(f"{where}: cannot be read ({said(error)}); expected a file of skops.io.dump") from error
    if strange:
        hint = " ".join(f"--trust {t}" for t in strange)
        raise InputError(f"{where} holds types that are not trusted: {', '.join(strange)}; pass {hint} to build them")
    try:
        return skops.io.load(path, trusted=sorted(trust))
    except Exception as error:
        raise InputError(f"{where}: cannot be built ({said(error)}); expected this version of scikit-learn") from error


def _way(estimator: Any, x: Tensor, where: str) -> tuple[str, Meaning]:
    """The method to ask, and what it gives: probabilities that are all 0 or 1 are mere decisions."""
    if hasattr(estimator, "predict_proba"):
        for part in x.split(BATCH):
            found = np.asarray(estimator.predict_proba(_rows(estimator, part.numpy(), where)))
            if not one_hot(found):
                return "predict_proba", meaning_of(found, len(estimator.classes_), where)
        return "predict_proba", "labels"
    if hasattr(estimator, "decision_function"):
        rows = _rows(estimator, x[:BATCH].numpy(), where)
        found = np.asarray(estimator.decision_function(rows)).reshape(len(rows), -1)
        classes = len(estimator.classes_)
        if found.shape[1] == 1 and classes == 2:
            return "decision_function", "margins"
        # Otherwise one against one: no score of a class, though three classes have three pairs.
        if found.shape[1] == classes and _decides(found, estimator, rows):
            return "decision_function", "margins"
    return "predict", "labels"


def _decides(scores: np.ndarray, estimator: Any, rows: np.ndarray) -> bool:
    """Whether the highest of the scores (n, c) is the class that is predicted, but for ties of votes."""
    return bool((estimator.classes_[scores.argmax(1)] == estimator.predict(rows)).mean() > AGREED)


def _rows(estimator: Any, x: np.ndarray, where: str) -> np.ndarray:
    return flat(x, getattr(estimator, "n_features_in_", None), where).astype(np.float64)


def _open(path: Path, trust: tuple[str, ...], where: str, method: str) -> Ask:
    estimator = _read(path, trust, where)

    def ask(x: np.ndarray) -> np.ndarray:
        return np.asarray(getattr(estimator, method)(_rows(estimator, x, where)))

    return ask
