"""Self-supervised dataset distillation: a few images with target features, from which networks learn to see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.curate.model_pool import ModelPool, squared, targeted
from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating, predict
from assay.runtime.random import derive, torch_rng
from assay.subject import fresh
from assay.training import Plan, State, fit
from assay.training.engine import Augment


def krr_predict(
    k_ss: Float[Tensor, "m m"], k_ts: Float[Tensor, "n m"], y: Float[Tensor, "m d"], reg: float
) -> Float[Tensor, "n d"]:
    """K_ts (K_ss + lambda I)^-1 Y with lambda = ``reg`` trace(K_ss), detached: kernel ridge regression (Lee et al.,
    2023, arXiv:2310.06511, eq. 6), by Cholesky. Raises InputError where the matrix is singular.
    """
    m = len(y)
    if k_ss.shape != (m, m) or k_ts.dim() != 2 or k_ts.shape[1] != m or not (math.isfinite(reg) and reg >= 0):
        raise InputError(
            f"krr_predict: {tuple(k_ss.shape)}, {tuple(k_ts.shape)}, {tuple(y.shape)}, reg={reg}; expected (m, m), "
            "(n, m), (m, d), reg >= 0"
        )
    shift = reg * k_ss.detach().trace() * torch.eye(m, dtype=k_ss.dtype, device=k_ss.device)
    factor, info = torch.linalg.cholesky_ex(k_ss + shift)
    if int(info) > 0:
        raise InputError(f"krr_predict: the kernel of {m} images is singular at reg={reg}; expected a larger reg")
    return k_ts @ torch.cholesky_solve(y, factor)


@dataclass(frozen=True)
class TargetSet:
    """Distilled images x_syn_ (m, ...), not bound to the range of images, and their targets y_syn_ (m, d); history_
    (iterations,), the outer loss."""

    x_syn_: Float[Tensor, "m ..."]
    y_syn_: Float[Tensor, "m d"]
    history_: Float[Tensor, " i"]

    def pretrain(
        self,
        model: nn.Module,
        *,
        seed: int,
        epochs: int = 1000,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
        batch_size: int = 256,
    ) -> nn.Module:
        """A new network of ``model``'s architecture, trained by SGD on the mean squared error to the targets."""
        plan = Plan(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=lambda p: torch.optim.SGD(p, lr, momentum, weight_decay=weight_decay),
            schedule="constant",
        )
        return fit(fresh(model, seed=seed), targeted(self), squared, plan, seed=seed)


class _Learned(nn.Module):
    """What is learned: images and targets."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.x, self.y = nn.Parameter(x.clone()), nn.Parameter(y.clone())


@dataclass(frozen=True, kw_only=True)
class _Falling(Plan):
    """A rate that falls linearly to a thousandth."""

    def factor(self, step: int, total: int) -> float:
        return 1 - (1 - 1e-3) * step / max(total, 1)


def embedding(model: nn.Module, x: Tensor) -> Float[Tensor, "n k"]:
    """The network's features with a column of ones, in double precision: the kernel is nearly singular."""
    found: Tensor = model.embed(x)  # type: ignore[operator]
    return torch.cat([found, found.new_ones(len(found), 1)], 1).double()


@dataclass(frozen=True, kw_only=True)
class KRRST:
    """``fit(extractor, target, data, *, seed)`` -> TargetSet (Lee et al., 2023, arXiv:2310.06511, algorithm 1,
    "KRR-ST").

    ``target`` (n, d) is a network trained without labels; ``extractor`` an architecture with the same outputs whose
    method ``embed`` gives the features under its linear head. Starting from ``n_images`` random images and their
    targets, every iteration takes an extractor from a pool (see ModelPool: ``pool_size``, ``online_iters``,
    ``online_lr``, ``online_weight_decay``), solves only the head on the synthetic set by kernel ridge regression
    (``reg``), and descends its mean squared error to the target on a ``batch`` of ``data`` in images and targets, by
    AdamW at ``outer_lr`` falling linearly to a thousandth. No augmentation in the inner loss, which would bias the
    gradient (theorem 1); ``augment`` is for the real batch, whose target is that of the same view. ``clip`` bounds the
    norms of both gradients (0: not). The labels of ``data`` are never read. Raises InputError for networks without
    ``embed``, unlike outputs, more images than ``data`` has, and one image under a batch norm that reads one value.
    """

    kind: ClassVar[str] = "function"

    n_images: int = 1000
    pool_size: int = 10
    online_iters: int = 1000
    online_lr: float = 0.1
    online_weight_decay: float = 1e-3
    outer_lr: float = 1e-4
    outer_iters: int = 160_000
    batch: int = 1024
    reg: float = 1e-6
    clip: float = 0.0
    augment: Augment | None = None

    def __post_init__(self) -> None:
        counts = {k: getattr(self, k) for k in ("n_images", "pool_size", "outer_iters", "batch")}
        good = min(counts.values()) >= 1 and self.online_iters >= 2 and min(self.online_lr, self.outer_lr) > 0
        if not (good and self.reg >= 0 and self.clip >= 0 and self.online_weight_decay >= 0):
            raise InputError(
                f"KRRST: {counts}, online_iters={self.online_iters}, online_lr={self.online_lr}, outer_lr="
                f"{self.outer_lr}, reg={self.reg}, clip={self.clip}; expected counts >= 1, online_iters >= 2, rates > "
                "0, reg, clip >= 0"
            )

    def fit(self, extractor: nn.Module, target: nn.Module, data: Data, *, seed: int) -> TargetSet:
        """The distilled images and targets."""
        start = self.initial(extractor, target, data, seed=seed)
        pool = ModelPool.trained(
            extractor,
            start,
            size=self.pool_size,
            online_iters=self.online_iters,
            lr=self.online_lr,
            weight_decay=self.online_weight_decay,
            seed=derive(seed, "pool"),
        )
        history: list[float] = []

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            assert isinstance(model, _Learned)
            return self.objective(pool.models[pool.drawn(state.step)], target, model.x, model.y, batch, state)

        def move(models: Mapping[str, nn.Module], state: State) -> None:
            learned = models["model"]
            assert isinstance(learned, _Learned)
            history.append(state.log[-1]["model"])
            pool.update(pool.drawn(state.step - 1), learned.x.detach(), learned.y.detach())

        options: dict[str, Any] = {"optimizer": "adamw", "lr": self.outer_lr, "clip": self.clip or None}
        plan = _Falling(steps=self.outer_iters, batch_size=min(self.batch, len(data)), drop_last=True, **options)
        # The labels go nowhere: what is drawn from is images.
        unlabelled = replace(data, y=torch.zeros_like(data.y), fields={})
        learned = fit(_Learned(start.x_syn_, start.y_syn_), unlabelled, objective, plan, seed=seed, hooks=[move])
        assert isinstance(learned, _Learned)
        return TargetSet(learned.x.detach(), learned.y.detach(), torch.tensor(history))

    def initial(self, extractor: nn.Module, target: nn.Module, data: Data, *, seed: int) -> TargetSet:
        """Random real images with their targets."""
        check_inputs("KRRST", data.x, None, data.bounds)
        if self.n_images > len(data):
            raise InputError(f"KRRST: {self.n_images} images of {len(data)}; expected at most as many")
        if not callable(getattr(extractor, "embed", None)):
            raise InputError(f"KRRST: {type(extractor).__name__} has no method embed; expected one that gives features")
        rows = torch.randperm(len(data), generator=torch_rng(seed, "images"))[: self.n_images]
        y = predict(target, data.x[rows])
        width = predict(extractor, data.x[:1]).shape[1]
        if y.shape[1] != width:
            raise InputError(f"KRRST: targets of {y.shape[1]} dimensions, a head of {width}; expected the same")
        return TargetSet(data.x[rows], y, torch.zeros(0))

    def objective(
        self, model: nn.Module, target: nn.Module, x: Tensor, y: Tensor, batch: Batch, state: State
    ) -> Float[Tensor, ""]:
        """The outer loss of one iteration (eq. 7), with gradients to x and y."""
        real = batch.x if self.augment is None else self.augment(batch.x, state.draws("augment", batch.index))
        with evaluating(model), evaluating(target):
            with torch.no_grad():
                goal = self.goal(target, real, state)
                f_t = embedding(model, real)
            f_s = embedding(model, x)
        return F.mse_loss(krr_predict(f_s @ f_s.T, f_t @ f_s.T, y.double(), self.reg), goal.double())

    def goal(self, target: nn.Module, x: Tensor, state: State) -> Float[Tensor, "n d"]:
        """The target's representation of the real batch."""
        found: Tensor = target(x)
        return found
