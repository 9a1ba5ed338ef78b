"""Unlearning where the targets are numbers: what is common to the methods, and measures against a retrained model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import wasserstein_distance
from sklearn.svm import SVC
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.training import Plan, State, fit

TARGET = "target"
MOST = 2000


def targets(data: Data | Batch, who: str) -> Float[Tensor, "n k"]:
    """The field "target" of regression data, (n,) or (n, k), as (n, k). InputError where there is none of floats."""
    found = data.fields.get(TARGET)
    if found is None or not found.is_floating_point() or found.dim() not in (1, 2):
        kind = "no field 'target'" if found is None else f"targets {found.dtype} of shape {tuple(found.shape)}"
        raise InputError(f"{who}: {kind}; expected floats (n,) or (n, k) there (for classes: BadTeacher, RandomLabel)")
    if not torch.isfinite(found).all():
        raise InputError(f"{who}: targets with NaN or infinite values; expected finite ones")
    return found.reshape(len(found), -1)


def distance(outputs: Float[Tensor, "n ..."], aims: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """The mean absolute difference of a network's outputs (n,) or (n, k) from ``aims``; 0 where there are no rows."""
    if outputs.numel() != aims.numel():
        raise InputError(f"regression: outputs {tuple(outputs.shape)}, targets {tuple(aims.shape)}; expected the same")
    gaps = (outputs.reshape(aims.shape) - aims.to(outputs)).abs()
    return gaps.mean() if len(aims) else gaps.sum()


def errors(model: nn.Module, data: Data) -> Float[Tensor, " n"]:
    """The mean absolute error of each sample."""
    aims = targets(data, "errors")
    return (predict(model, data.x).reshape(aims.shape) - aims).abs().mean(1)


def prediction_wasserstein(a: Float[Tensor, " n"], b: Float[Tensor, " m"]) -> float:
    """Wasserstein-1 distance between two samples of predictions, in their unit."""
    for name, each in (("a", a), ("b", b)):
        if each.numel() == 0 or not torch.isfinite(each).all():
            raise InputError(f"prediction_wasserstein: {name} has {each.numel()} values; expected finite ones, n >= 1")
    return float(wasserstein_distance(a.flatten().numpy(), b.flatten().numpy()))


def attack_probability(model: nn.Module, train: Data, test: Data, asked: Data) -> float:
    """The share of ``asked`` that an attack calls members (Tarun et al., 2022, arXiv:2210.08196, section 5).

    A support vector machine (RBF, C = 3, gamma "auto") on the absolute error learns to tell training from test samples,
    as many of each, at most 2000.
    """
    n = min(len(train), len(test), MOST)
    inside, outside, own = (errors(model, d).numpy()[:, None] for d in (train.limit(n), test.limit(n), asked))
    judge = SVC(C=3, gamma="auto").fit(np.concatenate([inside, outside]), np.repeat([1, 0], n))
    return float((judge.predict(own) == 1).mean())


class _Reached(Exception):
    """Relearning has come to its goal."""


def relearn_batches(
    model: nn.Module, train: Data, known: Data, goal: float, *, lr: float, epochs: int, batch_size: int, seed: int
) -> int:
    """Mini-batches of ``train`` until the mean absolute error on ``known`` is ``goal`` or less; all of ``epochs`` where
    it never is. Looked at after every batch, so at least 1."""
    plan = Plan(epochs=epochs, batch_size=batch_size, lr=lr, schedule="constant")
    made = 0

    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        return distance(model(batch.x), targets(batch, "relearning"))

    def look(models: Mapping[str, nn.Module], state: State) -> None:
        nonlocal made
        made = state.step
        if float(errors(models["model"], known).mean()) <= goal:
            raise _Reached

    try:
        fit(model, train, objective, plan, seed=seed, hooks=[look])
    except _Reached:
        return made
    return made


def anamnesis_index(
    unlearned: nn.Module,
    gold: nn.Module,
    original: nn.Module,
    train: Data,
    known: Data,
    *,
    alpha: float = 0.05,
    lr: float = 0.01,
    max_epochs: int = 10,
    batch_size: int = 256,
    seed: int = 0,
) -> float:
    """How many times as many batches as ``gold`` (retrained without them) a model needs to learn what it was made to
    forget (Tarun et al., 2022, arXiv:2210.08196, "AIN"; Chundawat et al., 2023, arXiv:2201.05629).

    Both are trained on ``train`` by Adam at ``lr`` until their mean absolute error on ``known``, held-out samples of
    the forgotten kind, is at most 1 + ``alpha`` times that of ``original``; ``max_epochs`` where that never happens.
    1 is ideal, far below: it was not forgotten, far above: it shows that it was. Raises InputError for alpha < 0,
    max_epochs < 1 and targets that are not floats.
    """
    if not alpha >= 0 or max_epochs < 1:
        raise InputError(f"anamnesis_index: alpha={alpha}, max_epochs={max_epochs}; expected alpha >= 0, epochs >= 1")
    goal = (1 + alpha) * float(errors(original, known).mean())
    options = {"lr": lr, "epochs": max_epochs, "batch_size": batch_size, "seed": seed}
    spent = [relearn_batches(m, train, known, goal, **options) for m in (unlearned, gold)]  # type: ignore[arg-type]
    return spent[0] / spent[1]


def regression_unlearning_report(
    model: nn.Module, gold: nn.Module, forget: Data, retain: Data, test_forget: Data, test_retain: Data
) -> dict[str, float]:
    """What a model still knows of ``forget``, beside ``gold``, which was trained without it.

    "retain" and "forget": mean absolute errors on test samples like the retained and like the forgotten ones; "seen":
    that on ``forget``; "w1": the Wasserstein distance of the predictions on ``forget`` from those of ``gold``; all in
    the targets' unit. "attack": see attack_probability.
    """
    return {
        "retain": float(errors(model, test_retain).mean()),
        "forget": float(errors(model, test_forget).mean()),
        "seen": float(errors(model, forget).mean()),
        "w1": prediction_wasserstein(predict(model, forget.x), predict(gold, forget.x)),
        "attack": attack_probability(model, retain, test_retain, forget),
    }
