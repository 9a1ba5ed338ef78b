"""What a quadratic network learns of common features, rare features and noise, as training goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Data
from assay.dynamics.feature_noise import COMMON, RARE, FeatureNoiseModel
from assay.dynamics.quadratic_cnn import QuadraticCNN
from assay.runtime.errors import InputError
from assay.training import State, Trainer


@dataclass(frozen=True, eq=False)
class FeatureDynamics:
    """Measurements after some steps of training, and the trained model.

    ``common`` and ``rare`` (t, 2) are sum_r <w_kr, f_k>^2 for the class's common and rare feature f_k, ``memorised``
    (t, 2) is the mean over the class's rare training samples of sum over r and p of <w_kr, xi^(p)>^2, xi the noise of
    the sample (NaN for a class that has none). Accuracies (t,) on the training samples, and on the common and the rare
    ones among fresh samples (NaN where there are none).
    """

    steps: Int[np.ndarray, " t"]
    common: Float[np.ndarray, "t 2"]
    rare: Float[np.ndarray, "t 2"]
    memorised: Float[np.ndarray, "t 2"]
    train_accuracy: Float[np.ndarray, " t"]
    common_accuracy: Float[np.ndarray, " t"]
    rare_accuracy: Float[np.ndarray, " t"]
    model: QuadraticCNN


@torch.no_grad()
def feature_energy(model: QuadraticCNN, directions: Float[Tensor, "2 d"]) -> Float[Tensor, " 2"]:
    """sum_r <w_kr, f_k>^2 of each class's filters along its own direction f_k."""
    return model.energy(directions[:, None])[:, 0].diagonal()


@torch.no_grad()
def memorisation(model: QuadraticCNN, problem: FeatureNoiseModel, train: Data) -> Float[Tensor, " 2"]:
    """The mean over each class's rare samples of sum over r and p of <w_kr, xi^(p)>^2; NaN for a class with none."""
    rare = train[train.fields["is_rare"]] if train.fields["is_rare"].any() else None
    if rare is None:
        return torch.full((2,), torch.nan)
    own = model(problem.noise(rare.x)).gather(1, rare.y[:, None])[:, 0]
    return torch.stack([own[rare.y == k].mean() for k in (0, 1)])


def train_feature_model(
    trainer: Trainer,
    model: QuadraticCNN,
    problem: FeatureNoiseModel,
    train: Data,
    test: Data,
    *,
    every: int = 50,
    seed: int,
) -> FeatureDynamics:
    """Train a copy of ``model`` by ``trainer`` on samples of ``problem`` and measure at the start and after every
    ``every`` steps and the last one.

    The paper's training is full-batch gradient descent at a constant rate: ``optimizer`` "sgd", ``momentum`` 0,
    ``batch_size`` at least n, ``schedule`` "constant"; with ``training.Supervised`` its standard training, with
    ``labels.Mixup`` of a fixed lambda its Mixup. InputError for every < 1, and for data that did not come from a
    ``FeatureNoiseModel`` or have another d than ``problem`` or ``model``.
    """
    for data in (train, test):
        if "is_rare" not in data.fields:
            raise InputError(f"train_feature_model: data {data.name!r} has no field 'is_rare'; expected samples of one")
        if data.shape[1:] != (problem.d,) or model.weight.shape[2] != problem.d:
            given = f"data {tuple(data.shape)}, model d={model.weight.shape[2]}"
            raise InputError(f"train_feature_model: {given}; expected vectors of the problem's d={problem.d}")
    if every < 1:
        raise InputError(f"train_feature_model: every={every}; expected at least 1")
    rows: list[tuple[Tensor, ...]] = []

    def measure(models: Mapping[str, nn.Module], state: State) -> None:
        if state.step % every == 0 or state.step == state.total:
            rows.append((torch.tensor(state.step), *_measured(models["model"], problem, train, test)))

    rows.append((torch.tensor(0), *_measured(model, problem, train, test)))
    trained = trainer.fit(model, train, seed=seed, hooks=[measure])
    assert isinstance(trained, QuadraticCNN)
    names = ("steps", "common", "rare", "memorised", "train_accuracy", "common_accuracy", "rare_accuracy")
    columns = [torch.stack(column).numpy() for column in zip(*rows, strict=True)]
    return FeatureDynamics(model=trained, **dict(zip(names, columns, strict=True)))


@torch.no_grad()
def _measured(model: nn.Module, problem: FeatureNoiseModel, train: Data, test: Data) -> tuple[Tensor, ...]:
    assert isinstance(model, QuadraticCNN)
    right, known = (model(data.x).argmax(1) == data.y for data in (test, train))
    rare = test.fields["is_rare"]
    return (
        feature_energy(model, problem.basis[COMMON]),
        feature_energy(model, problem.basis[RARE]),
        memorisation(model, problem, train),
        known.float().mean(),
        right[~rare].float().mean(),
        right[rare].float().mean(),
    )
