"""``sklearn:FILE.skops``: scikit-learn's classifiers and pipelines. skops builds named types and unpickles nothing."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from assay.data import Data
from assay.runtime.errors import InputError
from assay.subject.adapters.answers import Meaning
from assay.subject.adapters.base import Ask, Backend, black_box, file_digest, flat, needed, opened, said
from assay.subject.subject import Subject


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
    method, meaning = _way(estimator, test.x[:2].numpy(), where)
    ask = Backend(partial(_open, path, tuple(trust), where, method))
    return black_box(
        ask, data, where=where, digest=file_digest(path), meaning=meaning, names=None if meaning == "labels" else names
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


def _way(estimator: Any, x: np.ndarray, where: str) -> tuple[str, Meaning | None]:
    """The method to ask, and what it gives (None: read off the answers, as probabilities may be mere decisions)."""
    rows = flat(x, getattr(estimator, "n_features_in_", None), where).astype(np.float64)
    if hasattr(estimator, "predict_proba"):
        return "predict_proba", None
    if hasattr(estimator, "decision_function"):
        width = np.asarray(estimator.decision_function(rows)).reshape(len(rows), -1).shape[1]
        classes = len(estimator.classes_)
        if width == (1 if classes == 2 else classes):  # otherwise one against one: no score of a class
            return "decision_function", "margins"
    return "predict", "labels"


def _open(path: Path, trust: tuple[str, ...], where: str, method: str) -> Ask:
    estimator = _read(path, trust, where)
    features = getattr(estimator, "n_features_in_", None)

    def ask(x: np.ndarray) -> np.ndarray:
        return np.asarray(getattr(estimator, method)(flat(x, features, where).astype(np.float64)))

    return ask
