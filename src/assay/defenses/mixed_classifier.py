"""The mixture of an accurate and a robust classifier with one weight for all inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks.base import Attack
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict
from assay.runtime.spec import rebuildable


def log_mixture(
    log_g: Float[Tensor, "n c"], log_h: Float[Tensor, "n c"], log_rest: Tensor | float, log_alpha: Tensor | float
) -> Float[Tensor, "n c"]:
    """log((1 - alpha) g + alpha h) from logarithms: nothing is added to a probability to keep its logarithm finite."""
    if log_g.shape != log_h.shape:
        raise InputError(
            f"mixture: the models give {log_g.shape[1]} and {log_h.shape[1]} classes; expected equally many"
        )
    return torch.logaddexp(log_rest + log_g, log_alpha + log_h)


def check_frozen(std_model: nn.Module, robust_model: nn.Module) -> None:
    """InputError where a base model is in training mode."""
    for name, model in (("std_model", std_model), ("robust_model", robust_model)):
        if model.training:
            raise InputError(f"mixture: {name} is in training mode; expected evaluation mode")


@dataclass(frozen=True)
class MixtureScan:
    """Which of n samples each of k mixtures gets right, untouched (``clean``) and under attack (``robust``)."""

    alphas: tuple[float, ...]
    clean: Bool[Tensor, "k n"]
    robust: Bool[Tensor, "k n"]

    def table(self) -> list[dict[str, float]]:
        """One row a weight: ``alpha``, and the accuracies ``clean`` and ``robust``."""
        rates = zip(
            self.alphas, self.clean.double().mean(1).tolist(), self.robust.double().mean(1).tolist(), strict=True
        )
        return [{"alpha": a, "clean": c, "robust": r} for a, c, r in rates]


@rebuildable
class MixedClassifier(nn.Module):
    """f_i(x) = log((1 - alpha) softmax(s_g g(x))_i + alpha softmax(s_h h(x))_i) (Bai et al., 2023, arXiv:2301.12554,
    eq. 3): log-probabilities (n, c) of the accurate ``std_model`` g and the robust ``robust_model`` h.

    ``alpha`` in [0, 1]; at 0 and at 1 only one of the models is asked. ``std_scale`` and ``robust_scale`` above 0
    multiply the logits. Probabilities are mixed since a robust model's margins are large where it is right, attacked or
    not: where h's margin is at least (1 - alpha) / alpha, g cannot change the answer. ``space`` "logit" mixes the
    scaled logits instead, the alternative that the paper compares with. InputError for other numbers, base models in
    training mode, and unequal numbers of classes.
    """

    def __init__(
        self,
        std_model: nn.Module,
        robust_model: nn.Module,
        alpha: float = 0.5,
        std_scale: float = 1.0,
        robust_scale: float = 1.0,
        space: Literal["probability", "logit"] = "probability",
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise InputError(f"MixedClassifier: alpha is {alpha}; expected a weight in [0, 1]")
        if not (0 < std_scale < math.inf and 0 < robust_scale < math.inf):
            raise InputError(f"MixedClassifier: scales {std_scale}, {robust_scale}; expected both above 0 and finite")
        if space not in ("probability", "logit"):
            raise unknown("space of MixedClassifier", str(space), ("probability", "logit"))
        self.std_model, self.robust_model = std_model, robust_model
        self.alpha, self.std_scale, self.robust_scale, self.space = alpha, std_scale, robust_scale, space

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        check_frozen(self.std_model, self.robust_model)
        if self.alpha == 0:
            return (self.std_scale * self.std_model(x)).log_softmax(1)
        if self.alpha == 1:
            return (self.robust_scale * self.robust_model(x)).log_softmax(1)
        g, h = self.std_scale * self.std_model(x), self.robust_scale * self.robust_model(x)
        if self.space == "logit":
            return ((1 - self.alpha) * g + self.alpha * h).log_softmax(1)
        return log_mixture(g.log_softmax(1), h.log_softmax(1), math.log1p(-self.alpha), math.log(self.alpha))

    def at(self, alpha: float) -> MixedClassifier:
        """The same models under another weight."""
        scales = self.std_scale, self.robust_scale
        other = MixedClassifier(self.std_model, self.robust_model, alpha, *scales, self.space)
        other.training = self.training  # not train(): the models are shared, and keep their mode
        return other

    def scan(
        self, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], alphas: Sequence[float], attack: Attack, *, seed: int
    ) -> MixtureScan:
        """Each weight's mixture on ``x``, untouched and under ``attack`` on that mixture's own output."""
        check_inputs("MixedClassifier.scan", x, y, attack.bounds)
        alphas = [float(a) for a in alphas]
        if not alphas:
            raise InputError("MixedClassifier.scan: no weights; expected at least one")
        mixtures = [self.at(a).eval() for a in alphas]
        clean = [predict(m, x).argmax(1) == y for m in mixtures]
        robust = [predict(m, attack(m, x, y, seed=seed)).argmax(1) == y for m in mixtures]
        # A perturbation never helps the defender: what is wrong untouched counts as wrong.
        return MixtureScan(tuple(alphas), torch.stack(clean), torch.stack(clean) & torch.stack(robust))
