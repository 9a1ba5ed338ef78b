"""What adversarial accuracy goes with, over architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.balls import Linf
from assay.attacks.base import Attack, Untargeted
from assay.attacks.fgsm import FGSM
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, predict


@dataclass(frozen=True, eq=False)
class ArchitectureSensitivity:
    """For m models, by ``names``: parameters (m,), clean and adversarial accuracy (m,) in [0, 1]; and the correlations
    of adversarial accuracy with clean accuracy and with the logarithm of the number of parameters, in [-1, 1], NaN
    where one side does not vary."""

    names: tuple[str, ...]
    parameters: Int[np.ndarray, " m"]
    clean: Float[np.ndarray, " m"]
    adversarial: Float[np.ndarray, " m"]
    with_clean: float
    with_size: float


def architecture_sensitivity(
    models: Mapping[str, nn.Module],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    attack: Attack | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
) -> ArchitectureSensitivity:
    """Whether architectures with higher clean accuracy, or more parameters, withstand ``attack`` better.

    Cubuk et al. (2017, arXiv:1711.02846) find over architectures from a search that adversarial accuracy goes with
    clean accuracy and hardly with size. ``attack`` None: FGSM of eps 8/255. Raises InputError for fewer than three
    models and for unusable input.
    """
    if len(models) < 3:
        raise InputError(f"architecture_sensitivity: {len(models)} models; expected at least three")
    attack = FGSM(ball=Linf(8 / 255)) if attack is None else attack
    clean, adversarial = [], []
    for model in models.values():
        result = attack.run(model, x, Untargeted(y), seed=seed, batch_size=batch_size)
        adversarial.append(1 - float(result.success.float().mean()))
        clean.append(float((predict(model, x, batch_size=batch_size).argmax(1) == y).float().mean()))
    sizes = np.array([sum(p.numel() for p in m.parameters()) for m in models.values()])
    a, b = np.array(clean), np.array(adversarial)
    return ArchitectureSensitivity(tuple(models), sizes, a, b, _correlation(a, b), _correlation(np.log1p(sizes), b))


def _correlation(a: Float[np.ndarray, " m"], b: Float[np.ndarray, " m"]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")
