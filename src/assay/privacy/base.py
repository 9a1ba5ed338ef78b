"""The contract of membership inference: ``fit(reference, seed=) -> fitted`` with ``score(model, data)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, predict
from assay.training import Trainer


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the adversary has besides the target: data, and where shadow models are trained, how.

    data: samples from the same population; shadow models train on random halves of it. model: the architecture (its
    weights are not read). recipe: how the target was trained. population: samples of the same population that neither
    the target nor a shadow model trained on, where an attack compares with such.
    """

    data: Data
    model: nn.Module | None = None
    recipe: Trainer | None = None
    population: Data | None = None


class FittedInference(Protocol):
    """What ``Inference.fit`` returns."""

    def score(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """How likely each sample was in the model's training data: (n,) float64 on the CPU, higher is more likely."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """A membership-inference attack. A subclass states ``fit``."""

    kind: ClassVar[str] = "inference"

    batch_size: int = BATCH

    def fit(self, reference: Reference | None = None, *, seed: int = 0) -> FittedInference:
        """Learn what the attack needs from the adversary's own data and models."""
        raise TypeError(f"{type(self).__name__} states no fit")

    def given(self, reference: Reference | None) -> Reference:
        """The reference, or InputError where the attack was given none."""
        if reference is None:
            raise InputError(f"{type(self).__name__}.fit: no reference; expected Reference(data=...)")
        return reference


def outputs(where: str, model: nn.Module, data: Data, batch_size: int) -> Float[Tensor, "n c"]:
    """Checked float64 logits."""
    check_inputs(where, data.x, data.y, data.bounds)
    logits = predict(model, data.x, batch_size=batch_size).double()
    if logits.dim() != 2:
        raise InputError(f"{where}: the model gives outputs of shape {tuple(logits.shape)}; expected (n, classes)")
    check_labels(where, data.y, len(data), logits.shape[1])
    return logits


def losses(where: str, model: nn.Module, data: Data, batch_size: int) -> Float[Tensor, " n"]:
    """Cross-entropy of each sample, in nats."""
    return F.cross_entropy(outputs(where, model, data, batch_size), data.y, reduction="none")


def logit_confidence(where: str, model: nn.Module, data: Data, batch_size: int) -> Float[Tensor, " n"]:
    """log p_y / (1 - p_y) (Carlini et al., 2022, arXiv:2112.03570), from the logits, so without overflow."""
    logits, y = outputs(where, model, data, batch_size), data.y[:, None]
    return logits.gather(1, y)[:, 0] - logits.scatter(1, y, -torch.inf).logsumexp(1)
