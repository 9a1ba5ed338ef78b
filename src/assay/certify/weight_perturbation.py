"""Bounds over perturbed weights, and training on them for flat minima."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.certify.bounds.engine import sweep
from assay.certify.bounds.graph import graph_of
from assay.certify.bounds.perturbation import LpBall
from assay.certify.certified_training import CertifiedTrainer
from assay.certify.loss_fusion import fused_loss
from assay.data import Batch
from assay.runtime.errors import InputError
from assay.training import State


def weight_balls(
    model: nn.Module, eps: float, norm: Literal["linf", "l2"] = "l2", relative: bool = False
) -> dict[str, LpBall]:
    """A ball of radius ``eps`` (``relative``: times the matrix's norm) around each weight of ``model``'s linear layers.

    Biases are exact, as in the released experiment.
    """
    order = 2.0 if norm == "l2" else float("inf")
    balls = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            size = layer.weight.detach().flatten().norm(p=order).item() if relative else 1.0
            balls[f"{name}.weight" if name else "weight"] = LpBall(order, eps * size)
    if not balls:
        raise InputError("weight perturbation: the model has no linear layer; expected at least one")
    return balls


def weight_loss_bound(
    model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], balls: dict[str, LpBall]
) -> Float[Tensor, " n"]:
    """Upper bounds of each sample's cross-entropy while every weight moves in its ball (Xu et al., 2020, section 3.4).

    CROWN-IBP with loss fusion, differentiable in the parameters; fully connected networks.
    """
    return fused_loss(sweep(graph_of(model, x), model, x, None, weights=balls), y)


@dataclass(frozen=True, kw_only=True)
class FlatTraining(CertifiedTrainer):
    """Minimise the bound on the loss over perturbed weights (Xu et al., 2020, arXiv:2002.12920, section 4.4).

    ``eps`` is the radius of the ball in ``norm`` around each weight matrix, absolute as released; ``relative`` (ours)
    takes it as a share of the matrix's norm. It grows linearly, as in the released experiment (whose ``lr`` is 1e-3 for
    150 epochs). Layers before the first perturbed matrix may be of any kind.
    """

    contract: ClassVar[bool] = False

    norm: Literal["linf", "l2"] = "l2"
    relative: bool = False
    ramp_start: float = 0.07
    ramp_end: float = 0.73
    ramp_middle: float = 0.0
    lr: float = 5e-3
    weight_decay: float = 0.01

    def bound_loss(self, model: nn.Module, batch: Batch, eps: float, state: State) -> Tensor:
        return weight_loss_bound(model, batch.x, batch.y, weight_balls(model, eps, self.norm, self.relative)).mean()


def worst_weight_loss(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    balls: dict[str, LpBall],
    draws: int,
    generator: torch.Generator,
) -> Float[Tensor, " n"]:
    """The largest cross-entropy of each sample over ``draws`` random points on the spheres of the balls."""
    worst = x.new_full((len(x),), -torch.inf)
    held = dict(model.named_parameters())
    with torch.no_grad():
        for _ in range(draws):
            moved = {}
            for name, ball in balls.items():
                step = torch.randn(held[name].shape, generator=generator, dtype=x.dtype)
                step = step.sign() if ball.norm == float("inf") else step / step.norm()
                moved[name] = held[name] + ball.eps * step
            logits = torch.func.functional_call(model, moved, (x,))
            worst = worst.maximum(F.cross_entropy(logits, y, reduction="none"))
    return worst
