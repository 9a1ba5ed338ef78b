"""Training for small robust prediction sets."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import seeded
from assay.training import Player, State, Trainer, fit_players

CLIP = 1e-7
LOSSES = ("rct", "ce")


def rct_loss(
    logits: Float[Tensor, "b m c"],
    y: Int[Tensor, " b"],
    *,
    alpha: float = 0.1,
    shift: float = 0.5,
    temperature: float = 0.1,
    size_weight: float = 1.0,
    target_size: float = 1.0,
    loss_matrix: Float[Tensor, "c c"] | None = None,
) -> Float[Tensor, ""]:
    """log(L_class + size_weight * L_size): soft robust sets of one half of a batch, calibrated on the other half.

    Yan et al., 2024, arXiv:2404.19651, section 4.2, on conformal training (Stutz et al., 2022, arXiv:2110.09192,
    section 3). ``logits`` of m noisy copies; u = Phi^-1 of their mean probability (clipped by 1e-7). The threshold is
    the alpha-quantile of u_y on the first half, less ``shift`` = eps / sigma; soft sets are sigmoid((u - threshold) /
    temperature). L_class is 1 - the set's value at y, weighted by the diagonal of ``loss_matrix``, plus its values
    elsewhere weighted by row y; without a matrix (the identity) only the first part remains. L_size is the mean excess
    of the set's size over ``target_size``. The paper's soft sort (Blondel et al., 2020, arXiv:2002.08871, l2, strength
    0.1) equals the sort, gradients included, unless two neighbours lie more than 10 apart; the clipped u span 10.4, so
    the sort is used. Raises InputError unless b >= 2 and shapes and labels agree.
    """
    if logits.dim() != 3 or len(logits) < 2:
        raise InputError(f"rct_loss: logits have shape {tuple(logits.shape)}; expected (b, m, c) with b >= 2")
    check_labels("rct_loss", y, len(logits), logits.shape[2])
    p = logits.double().softmax(2).mean(1)
    u = torch.special.ndtri(p.clamp(CLIP, 1 - CLIP))
    half = len(u) // 2
    own = u[:half].gather(1, y[:half, None])[:, 0].sort().values
    threshold = own[max(int(alpha * (1 + 1 / half) * half) - 1, 0)] - shift
    sets = torch.sigmoid((u[half:] - threshold) / temperature)
    one_hot = F.one_hot(y[half:], sets.shape[1])
    weights = torch.eye(sets.shape[1]).to(sets) if loss_matrix is None else loss_matrix.to(sets)
    missed = ((1 - sets) * one_hot + sets * (1 - one_hot)) * weights[y[half:]]
    size = (sets.sum(1) - target_size).clamp_min(0).mean()
    return (missed.sum(1).mean() + size_weight * size + 1e-8).log()


@dataclass(frozen=True, kw_only=True)
class RobustConformalTraining(Trainer):
    """RCT: train the last linear layer anew, and it alone, on ``rct_loss`` of noisy copies.

    Yan et al., 2024, arXiv:2404.19651, section 4.2; the values here are those for CIFAR-10 (CIFAR-100: lr
    0.005, batch 100, temperature 1, size_weight 0.01). Everything below the layer is frozen and stays in evaluation
    mode, batch norm included. ``head`` is the layer's dotted name (None: the last nn.Linear); without ``reinitialise``
    it starts from its present weights, which short runs need: from new weights all soft sets are full and flat.
    ``n_samples`` noisy copies (``sigma``) of each image are drawn at every step. ``loss`` "ce" is the control:
    cross-entropy of the same copies' mean probabilities. Raises InputError where there is no such layer and on options
    out of range.
    """

    epochs: int = 150
    batch_size: int = 500
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.05
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "onecycle", "linear", "multistep"] = "multistep"

    sigma: float = 0.25
    eps: float = 0.125
    n_samples: int = 8
    alpha: float = 0.1
    temperature: float = 0.1
    size_weight: float = 1.0
    target_size: float = 1.0
    head: str | None = None
    reinitialise: bool = True
    loss: Literal["rct", "ce"] = "rct"

    def __post_init__(self) -> None:
        positive = {"sigma": self.sigma, "temperature": self.temperature, "n_samples": self.n_samples}
        least = {"eps": self.eps, "size_weight": self.size_weight, "target_size": self.target_size}
        for name, value in {**positive, **least}.items():
            if not (math.isfinite(value) and value >= 0) or (name in positive and value == 0):
                low = "above" if name in positive else "of at least"
                raise InputError(f"RobustConformalTraining: {name} is {value}; expected a finite number {low} 0")
        if not 0 < self.alpha < 1:
            raise InputError(f"RobustConformalTraining: alpha is {self.alpha}; expected 0 < alpha < 1")
        if self.loss not in LOSSES:
            raise unknown("loss of RobustConformalTraining", str(self.loss), LOSSES)

    def plain(self) -> Trainer:
        """The same layer trained on the same copies with cross-entropy."""
        return RobustConformalTraining(**{**vars(self), "loss": "ce"})

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        check_inputs("RobustConformalTraining", data.x, data.y, data.bounds)
        if len(data) < 2 or self.batch_size < 2:
            raise InputError(f"RobustConformalTraining: {len(data)} samples; expected two or more, and in a batch")
        name, start = self._head(model), copy.deepcopy(model)
        layer = start.get_submodule(name)
        layer.requires_grad_(True)
        if self.reinitialise:
            with seeded(seed, "head"):
                layer.reset_parameters()  # type: ignore[operator]
        player = Player(
            model=start,
            objective=lambda models, batch, state: self.objective(models["model"], batch, state),
            plan=self.plan(),
            parameters=lambda m: list(m.get_submodule(name).parameters()),
        )
        trained = fit_players({"model": player}, data, seed=seed, **options)["model"]
        for after, before in zip(trained.parameters(), model.parameters(), strict=True):
            after.requires_grad_(before.requires_grad)
        return trained

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        layer = model.get_submodule(self._head(model))
        copies = batch.x.repeat_interleave(self.n_samples, 0)
        # The engine seeds torch's generator for every epoch: these draws depend on the run's seed alone.
        hidden = _inputs_of(layer, model, copies + self.sigma * torch.randn_like(copies))
        logits = layer(hidden).reshape(len(batch.x), self.n_samples, -1)
        if self.loss == "ce" or len(batch.x) < 2:  # a last batch of one sample has no halves
            return F.nll_loss(logits.softmax(2).mean(1).clamp_min(CLIP).log(), batch.y)
        return rct_loss(
            logits,
            batch.y,
            alpha=self.alpha,
            shift=self.eps / self.sigma,
            temperature=self.temperature,
            size_weight=self.size_weight,
            target_size=self.target_size,
        )

    def _head(self, model: nn.Module) -> str:
        linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
        if not linear or (self.head is not None and self.head not in linear):
            raise InputError(
                f"RobustConformalTraining: {type(model).__name__} has no linear layer {self.head or ''!r}; "
                f"expected one of {', '.join(linear) or 'them'}"
            )
        return self.head or linear[-1]


def _inputs_of(layer: nn.Module, model: nn.Module, x: Tensor) -> Tensor:
    """What reaches ``layer`` for ``x``, with the model in evaluation mode and without a graph."""
    caught: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _m, args: caught.append(args[0]))
    try:
        with evaluating(model), torch.no_grad():
            model(x.to(device_of(model)))
    finally:
        handle.remove()
    return caught[0]
