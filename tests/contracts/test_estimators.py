"""The contract of estimators on plain arrays, over every exported one: ``fit(x, y) -> fitted``, ``predict(x)``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from assay.methods import exported
from assay.runtime.errors import InputError

METHODS = list(exported("estimator").values())
estimators = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


def points() -> tuple[np.ndarray, np.ndarray]:
    """Two classes, apart along the first axis."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    return rng.normal(size=(60, 3)) * 0.3 + np.where(y == 1, 1.0, -1.0)[:, None] * [1.5, 0.0, 0.0], y


def test_the_suite_sees_methods() -> None:
    assert {"LogisticGD", "BatchPerceptron", "Perceptron"} <= {c.__name__ for c in METHODS}


@estimators
def test_fits_and_predicts_and_leaves_its_inputs(cls: type[Any]) -> None:
    x, y = points()
    kept, method = x.copy(), cls()
    before = repr(method)
    state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    fitted, again = method.fit(x, y), cls().fit(x, y)
    assert (state == np.random.get_state()[1]).all()  # type: ignore[index]  # noqa: NPY002
    assert (fitted.predict(x) == y).all()
    assert (fitted.coef_ == again.coef_).all()
    assert (x == kept).all()
    assert repr(method) == before
    assert (fitted.predict(x[:7]) == fitted.predict(x)[:7]).all()


@estimators
def test_bad_input(cls: type[Any]) -> None:
    x, y = points()
    bad = x.copy()
    bad[3, 1] = np.nan
    for points_, labels in ((bad, y), (x, y[:5]), (x, y + 1), (x[:0], y[:0]), (x[:, 0], y)):
        with pytest.raises(InputError, match="expected"):
            cls().fit(points_, labels)
