"""Expert trajectories: the weights of networks after every epoch of their training on real data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import derive
from assay.subject import fresh
from assay.training import Plan, State, fit
from assay.training.engine import Augment

NORMS = ("image", "channel")


def flat(model: nn.Module) -> Float[Tensor, " p"]:
    """All parameters in the order of ``named_parameters``, without gradient, on the CPU."""
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


@dataclass(frozen=True)
class Trajectories:
    """``params_`` (experts, epochs + 1, p): the flat weights before training and after every epoch. ``model`` is the
    architecture that they fill."""

    params_: Float[Tensor, "e t p"]
    model: nn.Module

    def __post_init__(self) -> None:
        size = sum(p.numel() for p in self.model.parameters())
        if self.params_.dim() != 3 or self.params_.shape[2] != size or not torch.isfinite(self.params_).all():
            raise InputError(
                f"trajectories: {tuple(self.params_.shape)} for a network of {size} parameters; expected finite "
                f"(experts, epochs + 1, {size})"
            )

    @property
    def epochs(self) -> int:
        """How many epochs were saved."""
        return self.params_.shape[1] - 1

    def unflat(self, theta: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """Flat weights as named views."""
        shapes = {k: p.shape for k, p in self.model.named_parameters()}
        parts = theta.split([math.prod(s) for s in shapes.values()])
        return {k: v.view(s) for (k, s), v in zip(shapes.items(), parts, strict=True)}

    def logits(self, theta: Float[Tensor, " p"], x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        """The network's outputs with flat weights ``theta``, with gradients to both."""
        return functional_call(self.model, self.unflat(theta), (x,))

    def smoothness(self) -> Float[Tensor, " t"]:
        """||theta_{t+1} - theta_t|| / ||theta_t|| of each epoch, mean over experts: smaller is smoother."""
        before = self.params_[:, :-1]
        return ((self.params_[:, 1:] - before).norm(dim=2) / before.norm(dim=2)).mean(0)

    def save(self, path: str | Path) -> None:
        """Write the weights to a safetensors file; the architecture is not in it."""
        save_file({"params": self.params_.contiguous()}, Path(path))

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> Trajectories:
        """The trajectories of ``save``, for the same architecture. InputError where the file is none."""
        try:
            found = load_file(Path(path))
        except (OSError, SafetensorError) as error:
            raise InputError(f"trajectories {path}: cannot be read ({type(error).__name__})") from error
        if "params" not in found:
            raise InputError(f"trajectories {path}: no tensor 'params'; expected a file of Trajectories.save")
        return cls(found["params"], model)


@dataclass(frozen=True, kw_only=True)
class ExpertTrajectories:
    """``fit(model, data, *, seed)`` -> Trajectories of ``n`` networks (Shen et al., 2023, arXiv:2310.10541, section
    3.2: strong experts whose weights move smoothly; with ``clip_schedule`` None and ``gp_weight`` 0 those of MTT).

    SGD with heavy-ball ``momentum`` from new weights of ``model``'s architecture, on cross-entropy. ``clip_schedule``
    (first, last, epochs) multiplies the loss of the first epochs by evenly spaced factors, the paper's 0.5 to 0.95 over
    ten. The gradient penalty adds ``gp_weight`` times the mean of (||grad_x sum_c f_c(x)|| - 1)^2 on images as they
    are: the norm over a whole "image", or as the official code takes it over each pixel's "channel"s. After epochs // 2
    + 2 epochs the rate falls to ``decay`` times itself and the momentum starts anew, as in that code. ``augment`` is
    for the cross-entropy. Raises InputError for options out of range and for networks with buffers (batch norm), which
    flat weights do not hold.
    """

    kind: ClassVar[str] = "function"

    n: int = 100
    epochs: int = 50
    batch_size: int = 256
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-3
    decay: float = 0.6
    clip_schedule: tuple[float, float, int] | None = (0.5, 0.95, 10)
    gp_weight: float = 2.0
    gp_norm: Literal["image", "channel"] = "image"
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if self.gp_norm not in NORMS:
            raise unknown("gp_norm", str(self.gp_norm), NORMS)
        first, last, epochs = self.clip_schedule or (1.0, 1.0, 1)
        sizes = min(self.n, self.epochs, self.batch_size) >= 1 and min(self.lr, self.decay) > 0
        if not (sizes and min(first, last) > 0 and epochs >= 1 and 0 <= self.momentum < 1):
            raise InputError(
                f"ExpertTrajectories: n={self.n}, epochs={self.epochs}, batch_size={self.batch_size}, lr={self.lr}, "
                f"decay={self.decay}, momentum={self.momentum}, clip_schedule={self.clip_schedule}; expected numbers "
                "> 0 and a momentum in [0, 1)"
            )
        if not (self.gp_weight >= 0 and self.weight_decay >= 0):
            raise InputError(f"ExpertTrajectories: gp_weight={self.gp_weight}; expected weights >= 0")

    def fit(self, model: nn.Module, data: Data, *, seed: int) -> Trajectories:
        """The trajectories of new networks on ``data``."""
        check_inputs("ExpertTrajectories", data.x, None, data.bounds)
        check_labels("ExpertTrajectories", data.y, len(data), len(data.classes))
        if any(True for _ in model.buffers()):
            raise InputError("ExpertTrajectories: the network has buffers; expected instance or group norm")
        found = [self._one(fresh(model, seed=derive(seed, k)), data, derive(seed, "fit", k)) for k in range(self.n)]
        return Trajectories(torch.stack(found), fresh(model, seed=seed))

    def _one(self, model: nn.Module, data: Data, seed: int) -> Float[Tensor, "t p"]:
        """One expert; its second half has an optimiser of its own."""
        kept, each = [flat(model)], -(-len(data) // self.batch_size)
        early = min(self.epochs // 2 + 2, self.epochs)

        def keep(models: Mapping[str, nn.Module], state: State) -> None:
            if state.step % each == 0:
                kept.append(flat(models["model"]))

        for begin, end, lr in ((0, early, self.lr), (early, self.epochs, self.lr * self.decay)):
            optimizer = partial(torch.optim.SGD, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)
            plan = Plan(epochs=end - begin, batch_size=self.batch_size, optimizer=optimizer, schedule="constant")

            def objective(model: nn.Module, batch: Batch, state: State, begin: int = begin) -> Tensor:
                return self.objective(model, batch, state, begin + state.epoch)

            model = fit(model, data, objective, plan, seed=derive(seed, begin), hooks=[keep])
        return torch.stack(kept)

    def factor(self, epoch: int) -> float:
        """What the cross-entropy is multiplied by in an epoch, counted from 0."""
        if self.clip_schedule is None or epoch >= self.clip_schedule[2]:
            return 1.0
        first, last, epochs = self.clip_schedule
        return first + (last - first) * epoch / max(epochs - 1, 1)

    def objective(self, model: nn.Module, batch: Batch, state: State, epoch: int) -> Tensor:
        """Clipped cross-entropy and gradient penalty of a batch."""
        x = batch.x if self.augment is None else self.augment(batch.x, state.draws("augment", batch.index))
        loss = self.factor(epoch) * F.cross_entropy(model(x), batch.y)
        return loss + self.gp_weight * self.penalty(model, batch.x) if self.gp_weight else loss

    def penalty(self, model: nn.Module, x: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
        """Mean of (||grad_x sum_c f_c(x)||_2 - 1)^2 over images, or over their pixels."""
        x = x.detach().clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        norm = slope.flatten(1).norm(dim=1) if self.gp_norm == "image" else slope.norm(dim=1)
        return (norm - 1).square().mean()
