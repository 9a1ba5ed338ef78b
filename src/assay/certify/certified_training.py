"""Training against bounds: the schedule of the radius, the base of the trainers, and CROWN-IBP with loss fusion."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.certify.bounds.engine import Sweep, sweep
from assay.certify.bounds.graph import graph_of
from assay.certify.bounds.module import REFINE, Method, lower_of, margins
from assay.certify.bounds.perturbation import LpBall
from assay.certify.loss_fusion import fused_loss
from assay.data import Batch
from assay.runtime.errors import InputError
from assay.training import Plan, State, Supervised, Trainer
from assay.training.trainer import PLAN_FIELDS


@dataclass(frozen=True, kw_only=True)
class EpsScheduler:
    """The "smoothed" schedule: a t^4 up to ``middle`` of the ramp, then linear to ``eps`` (Xu et al., 2020, appendix).

    The ramp takes the steps ``start`` to ``start + length``; 0 before, ``eps`` after. The slopes agree where the two
    parts meet: with m = middle * length, a = eps / (4 m^3 (length - m) + m^4). ``middle`` 0: linear.
    """

    eps: float
    start: float = 0.0
    length: float = 1.0
    middle: float = 0.4

    def __post_init__(self) -> None:
        if not (self.eps >= 0 and self.length > 0 and 0 <= self.middle <= 1):
            raise InputError(
                f"EpsScheduler: eps={self.eps}, length={self.length}, middle={self.middle}; "
                "expected eps >= 0, length > 0, 0 <= middle <= 1"
            )

    def __call__(self, step: float) -> float:
        """The radius at a step."""
        t, m = step - self.start, self.middle * self.length
        if t <= 0:
            return 0.0
        if t >= self.length:
            return self.eps
        if m == 0:
            return self.eps * t / self.length
        a = self.eps / (4 * m**3 * (self.length - m) + m**4)
        return a * t**4 if t <= m else a * (m**4 + 4 * m**3 * (t - m))


@dataclass(frozen=True, kw_only=True)
class ClippedSupervised(Supervised):
    """Cross-entropy with the gradient's norm bounded by ``clip``: the control of certified trainers."""

    clip: float | None = None

    def plan(self) -> Plan:
        """The training plan, with the gradient's norm bounded."""
        return replace(super().plan(), clip=self.clip)


@dataclass(frozen=True, kw_only=True)
class CertifiedTrainer(Trainer):
    """Minimise cross-entropy on lower bounds of the margins over an linf ball cut to the data's bounds.

    ``eps`` is in the data's units; it grows from 0 between the shares ``ramp_start`` and ``ramp_end`` of the steps
    (EpsScheduler with ``ramp_middle``); before, training is plain. ``clip`` bounds the gradient's norm. A subclass
    states ``bound_loss``.
    """

    contract: ClassVar[bool] = False

    eps: float = 0.1
    ramp_start: float = 0.0
    ramp_end: float = 0.6
    ramp_middle: float = 0.4
    clip: float | None = 8.0
    lr: float = 5e-4

    def __post_init__(self) -> None:
        if not 0 < self.eps < float("inf") or not 0 <= self.ramp_start < self.ramp_end <= 1:
            raise InputError(
                f"{type(self).__name__}: eps={self.eps}, ramp {self.ramp_start} to {self.ramp_end}; "
                "expected eps > 0 and 0 <= start < end <= 1"
            )

    def plan(self) -> Plan:
        """The training plan, with the gradient's norm bounded."""
        return replace(super().plan(), clip=self.clip)

    def plain(self) -> Trainer:
        """Plain supervised training with the same plan, bounded gradients included."""
        return ClippedSupervised(clip=self.clip, **{n: getattr(self, n) for n in PLAN_FIELDS})

    def radius(self, state: State) -> float:
        """The radius at this step."""
        start, end = self.ramp_start * state.total, self.ramp_end * state.total
        return EpsScheduler(eps=self.eps, start=start, length=end - start, middle=self.ramp_middle)(state.step + 1)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """Cross-entropy while the radius is 0, the loss on bounds after."""
        eps = self.radius(state)
        return self.bound_loss(model, batch, eps, state) if eps > 0 else F.cross_entropy(model(batch.x), batch.y)

    @abstractmethod
    def bound_loss(self, model: nn.Module, batch: Batch, eps: float, state: State) -> Tensor:
        """The loss at a radius > 0, a scalar that is differentiable in the parameters."""


def bounded(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    eps: float | Tensor,
    limits: tuple[float, float] | None,
    method: Method = "IBP",
) -> Sweep:
    """Differentiable bounds inside ``model`` over the linf ball around x cut to ``limits``, in x's precision."""
    low, high = limits if limits is not None else (None, None)
    return sweep(graph_of(model, x), model, x, LpBall(eps=eps, low=low, high=high), refine=REFINE[method])


def margin_bounds(run: Sweep, y: Int[Tensor, " n"], method: Method = "IBP") -> Float[Tensor, "n c"]:
    """Lower bounds of z_y - z_j for every class j, 0 at j = y; the last linear layer is merged with the margins."""
    x, classes = run.values[run.graph.output].lower, run.values[run.graph.output].lower.shape[1]
    found = lower_of(run, margins(y, classes, x), method)
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y[:, None]).long()
    return found.new_zeros(len(y), classes).scatter(1, others, found)


def robust_cross_entropy(margins: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Tensor:
    """Mean cross-entropy of the logits -margins: an upper bound of the loss of any input in the set."""
    return F.cross_entropy(-margins, y)


@dataclass(frozen=True, kw_only=True)
class CROWNIBPTraining(CertifiedTrainer):
    """Certified training by CROWN-IBP with loss fusion (Xu et al., 2020, arXiv:2002.12920, sections 3.3 and 4.2).

    While the radius grows the bound is a mixture, (eps_max - eps) / eps_max of it backward and the rest interval
    bounds, as in the released trainer (``mixed``; Zhang et al., 2020, arXiv:1906.06316). ``fused`` False bounds each
    margin and takes cross-entropy of the bounds. The paper's CIFAR-10 models take 2000 epochs at ``lr`` 5e-4, the ramp
    from 0.05 to 0.45 of them.
    """

    eps: float = 8 / 255
    ramp_start: float = 0.1
    ramp_end: float = 0.8
    lr: float = 2e-3
    fused: bool = True
    mixed: bool = True

    def bound_loss(self, model: nn.Module, batch: Batch, eps: float, state: State) -> Tensor:
        run = bounded(model, batch.x, eps, state.data.bounds, "CROWN-IBP")
        share = 1 - eps / self.eps if self.mixed else 1.0
        if self.fused:
            return fused_loss(run, batch.y, share).mean()
        bound = batch.x.new_zeros(())
        if share > 0:
            bound = bound + share * margin_bounds(run, batch.y, "CROWN-IBP")
        if share < 1:
            bound = bound + (1 - share) * margin_bounds(run, batch.y, "IBP")
        return robust_cross_entropy(bound, batch.y)
