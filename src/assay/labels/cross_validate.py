"""Out-of-sample probabilities by cross-validation."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import derive, torch_rng
from assay.subject.subject import fresh
from assay.training import Trainer


def stratified_folds(y: Int[Tensor, " n"], folds: int, *, seed: int) -> Int[Tensor, " n"]:
    """The fold of each sample, at random, each class spread evenly."""
    order = torch.randperm(len(y), generator=torch_rng(seed, "folds"))
    order = order[torch.argsort(y[order], stable=True)]
    fold = torch.empty(len(y), dtype=torch.int64)
    fold[order] = torch.arange(len(y)) % folds
    return fold


def cross_probabilities(
    model: nn.Module, recipe: Trainer, data: Data, *, folds: int = 5, seed: int
) -> Float[Tensor, "n c"]:
    """Probabilities (n, c) of each sample of ``data`` from a model that did not see it.

    Each of the ``folds`` models has the architecture of ``model`` and fresh weights, and is trained by ``recipe`` on
    the other folds. Raises InputError unless 2 <= folds <= n.
    """
    if not 2 <= folds <= len(data):
        raise InputError(f"cross-validation: {folds} folds of {len(data)} samples; expected 2 <= folds <= n")
    fold = stratified_folds(data.y, folds, seed=seed)
    probs = torch.empty(len(data), len(data.classes))
    for k in range(folds):
        child = derive(seed, "fold", k)
        trained = recipe.fit(fresh(model, seed=child), data[fold != k], seed=child)
        probs[fold == k] = predict(trained, data.x[fold == k]).softmax(1)
    return probs
