"""How adversarial error grows with the size of the perturbation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks.balls import Bounds, Linf
from assay.attacks.base import Goal, Targeted, Untargeted, check_outputs
from assay.attacks.fgsm import signs
from assay.attacks.pgd import PGD
from assay.attacks.power_law import PowerLaw, fit_power_law
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, batched, device_of, evaluating

ANYWHERE = (-math.inf, math.inf)
ATTACKS = ("fgsm", "step_ll", "pgd")
Mover = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True, eq=False)
class ScalingResult:
    """Predictions under attacks of growing size, and the power law that the error follows while it is small.

    eps (e,); predictions (e, n) and ``reference`` (n,) int64, what was predicted or right before; ``law``: the fit;
    ``stalled``: how many samples a one-step attack left in place as their gradient is 0 (0 for other attacks).
    """

    eps: Float[Tensor, " e"]
    predictions: Int[Tensor, "e n"]
    reference: Int[Tensor, " n"]
    law: PowerLaw
    stalled: int

    @property
    def error(self) -> Float[Tensor, " e"]:
        """The share of samples whose prediction changed, float64."""
        return (self.predictions != self.reference).double().mean(1)

    @property
    def exponent(self) -> float:
        """The power with which the error grows."""
        return self.law.exponent

    @property
    def exponent_ci(self) -> tuple[float, float]:
        """The 95% interval of ``exponent``."""
        return self.law.exponent_ci

    @property
    def prefactor(self) -> float:
        """The error at eps 1 to which the power law would lead."""
        return self.law.prefactor

    @property
    def mask(self) -> Bool[Tensor, " e"]:
        """The eps of the fit."""
        return self.law.mask


def adversarial_scaling(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"] | None = None,
    eps: Float[Tensor, " e"] | None = None,
    attack: Literal["fgsm", "step_ll", "pgd"] | Mover = "fgsm",
    reference: Literal["label", "prediction"] = "label",
    *,
    bounds: Bounds | None = (0.0, 1.0),
    bootstrap: int = 200,
    seed: int = 0,
    batch_size: int = BATCH,
) -> ScalingResult:
    """Adversarial error over l-infinity sizes ``eps`` (Cubuk et al., 2017, arXiv:1711.02846): a power law near 0.

    The error counts flips alone: of the samples that are right (``reference`` "label") the share that is no longer, or
    of all samples ("prediction") the share that is predicted otherwise. ``attack``: "fgsm"; "step_ll", one step
    toward the class that was least likely; "pgd", 10 projected steps of eps / 4; or a function (model, x, reference,
    eps) -> x_adv. ``eps`` None: 24 sizes from 1e-5 to 0.3. ``bounds`` None does not clip, which keeps dark pixels
    from blocking half of the signs: with it prefactors compare between data sets. Gradients are those of the log-odds,
    whose signs are those of cross-entropy where that does not round to 0. Below eps = 1e-4, give a model and x in
    float64. ``bootstrap``: see ``fit_power_law``. Raises InputError for unusable input, no sample that is right, and
    outputs that are not finite.
    """
    where = "adversarial_scaling"
    eps = torch.logspace(-5, math.log10(0.3), 24, dtype=torch.float64) if eps is None else eps
    _check(where, x, y, eps, attack, reference, bounds)
    with evaluating(model):
        logits = batched(model, x, batch_size=batch_size, device=device_of(model))
    predicted = logits.argmax(1)
    check_outputs(where, logits, Untargeted(predicted if y is None else y))
    goal: Goal = Targeted(logits.argmin(1)) if attack == "step_ll" else Untargeted(predicted)
    if reference == "label" and y is not None:
        right = predicted == y
        if not right.any():
            raise InputError(f"{where}: no sample is predicted right; expected one, or reference 'prediction'")
        x, predicted, goal = x[right], predicted[right], goal.select(right)
    limits = ANYWHERE if bounds is None else bounds
    stalled = 0
    if attack in ("fgsm", "step_ll"):
        way = signs(model, x, goal, batch_size=batch_size)
        stalled = int((way == 0).flatten(1).all(1).sum())
        moved = (_clipped(x + size * way, bounds) for size in eps.tolist())
    elif callable(attack):
        moved = (_clipped(_checked(where, attack(model, x, predicted, size), x), bounds) for size in eps.tolist())
    else:
        moved = (_projected(model, x, goal, size, limits, seed, batch_size) for size in eps.tolist())
    predictions = torch.stack([_decide(model, z, batch_size) for z in moved])
    law = fit_power_law(eps, predictions != predicted, bootstrap=bootstrap, seed=seed)
    return ScalingResult(eps, predictions, predicted, law, stalled)


def _check(
    where: str,
    x: Tensor,
    y: Tensor | None,
    eps: Tensor,
    attack: object,
    reference: str,
    bounds: Bounds | None,
) -> None:
    check_inputs(where, x, None, bounds)
    if y is not None:
        check_labels(where, y, len(x))
    if not isinstance(eps, Tensor) or eps.dim() != 1 or not len(eps) or not (eps > 0).all():
        raise InputError(f"{where}: eps is {eps!r}; expected a tensor (e,) of sizes above 0")
    if attack not in ATTACKS and not callable(attack):
        raise unknown(f"attack of {where}", str(attack), ATTACKS)
    if reference not in ("label", "prediction"):
        raise unknown(f"reference of {where}", reference, ("label", "prediction"))
    if reference == "label" and y is None:
        raise InputError(f"{where}: y is None; expected labels, or reference 'prediction'")


def _projected(
    model: nn.Module, x: Tensor, goal: Goal, eps: float, limits: Bounds, seed: int, batch_size: int
) -> Float[Tensor, "n ..."]:
    attack = PGD(ball=Linf(eps), steps=10, step_size=0.25, random_start=False, early_stop=False, bounds=limits)
    return attack.run(model, x, goal, seed=seed, batch_size=batch_size).x_adv


def _clipped(moved: Tensor, bounds: Bounds | None) -> Float[Tensor, "n ..."]:
    return moved if bounds is None else moved.clamp(*bounds)


def _checked(where: str, moved: Tensor, x: Tensor) -> Float[Tensor, "n ..."]:
    if moved.shape != x.shape or not torch.isfinite(moved).all():
        raise InputError(f"{where}: the attack gave {tuple(moved.shape)}; expected finite {tuple(x.shape)}")
    return moved


def _decide(model: nn.Module, x: Tensor, batch_size: int) -> Int[Tensor, " n"]:
    with evaluating(model):
        return batched(lambda z: model(z).argmax(1), x, batch_size=batch_size, device=device_of(model))
