"""Logistic weights for several scores of the same input."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from assay.runtime.errors import InputError


def logistic_weights(
    where: str, inside: Float[np.ndarray, "n k"], outside: Float[np.ndarray, "m k"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"], float]:
    """Centre, scale, weights and bias of logistic regression on standardised scores, inside 0 against outside 1.

    5-fold cross-validation of the log-likelihood chooses the penalty. Raises InputError below five samples of each.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    if min(len(inside), len(outside)) < 5:
        raise InputError(f"{where}: {len(inside)} inside and {len(outside)} outside; expected at least 5 of each")
    scores, label = np.r_[inside, outside], np.repeat([0, 1], [len(inside), len(outside)])
    centre, scale = scores.mean(0), np.maximum(scores.std(0), 1e-12)
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": np.logspace(-4, 4, 9)}, scoring="neg_log_loss")
    fit = search.fit((scores - centre) / scale, label).best_estimator_
    return centre, scale, fit.coef_[0], float(fit.intercept_[0])
