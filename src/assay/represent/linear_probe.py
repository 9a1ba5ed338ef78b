"""How much of the labels a representation shows to a linear classifier."""

from __future__ import annotations

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import predict


def linear_probe(model: nn.Module, train: Data, test: Data, *, penalty: float = 1.0) -> float:
    """Accuracy on ``test`` of logistic regression on the standardised outputs of ``model`` (n, w), fitted on ``train``.

    ``penalty`` > 0 is the weight of ||w||^2 / 2 against the summed loss. Convex: no seed. Raises InputError where
    ``train`` holds a single class.
    """
    for data in (train, test):
        check_inputs("linear_probe", data.x, data.y, data.bounds)
    if len(train.y.unique()) < 2 or not penalty > 0:
        raise InputError(
            f"linear_probe: {len(train.y.unique())} class, penalty={penalty}; expected two classes or more, penalty > 0"
        )
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=1000))
    fitted.fit(predict(model, train.x).numpy(), train.y.numpy())
    return float(fitted.score(predict(model, test.x).numpy(), test.y.numpy()))
