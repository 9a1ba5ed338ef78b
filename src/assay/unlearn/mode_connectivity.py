"""A curve of models between two, bent through a third that is trained at one point of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from assay.data import Batch, Data
from assay.detect.layers import captured, chosen_layers, pooled
from assay.represent import Augmentation, mmcr_loss
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, predict
from assay.runtime.random import derive
from assay.subject import fresh
from assay.training import Plan, State, fit

LOSSES = ("predictions", "labels", "mmcr")
VIEWS = Augmentation(scale=(0.8, 1.0), ratio=1.0, rotation=15.0, flip=False, jitter=0.0, grayscale=0.0)


def bezier(t: float) -> tuple[float, float, float]:
    """The weights (1 - t)^2, 2 t (1 - t), t^2 of start, control point and end; InputError for t outside [0, 1]."""
    if not 0 <= t <= 1:
        raise InputError(f"mode connectivity: t={t}; expected 0 <= t <= 1")
    return (1 - t) ** 2, 2 * t * (1 - t), t**2


def mixed(models: Sequence[nn.Module], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of the models' parameters, by name; gradients pass."""
    named = [dict(m.named_parameters()) for m in models]
    return {name: sum((w * p[name] for w, p in zip(weights, named, strict=True)), torch.zeros(())) for name in named[0]}


class _Bent(nn.Module):
    """The model at one point of the curve; only the control point is trained."""

    def __init__(self, start: nn.Module, control: nn.Module, end: nn.Module, t: float) -> None:
        super().__init__()
        self.start, self.end = (copy.deepcopy(m).requires_grad_(False) for m in (start, end))
        self.control, self.t = copy.deepcopy(control).requires_grad_(True), t

    def forward(self, x: Tensor) -> Tensor:
        weights = mixed((self.start, self.control, self.end), bezier(self.t))
        return functional_call(self.control, weights, (x,))


@dataclass(frozen=True)
class Curve:
    """``at(t)`` gives the model at t: ``start`` at 0, ``end`` at 1, between them bent towards ``control_``.

    Running statistics of batch norm between the ends are those of ``data``, which the control point was trained on.
    """

    start: nn.Module
    control_: nn.Module
    end: nn.Module
    data: Data

    def at(self, t: float) -> nn.Module:
        """(1 - t)^2 start + 2 t (1 - t) control + t^2 end, a new model in evaluation mode."""
        weights = bezier(t)
        if t in (0, 1):
            return copy.deepcopy(self.start if t == 0 else self.end).eval()
        model = copy.deepcopy(self.control_).eval()
        with torch.no_grad():
            for name, p in mixed((self.start, self.control_, self.end), weights).items():
                model.get_parameter(name).copy_(p)
        return restandardised(model, self.data.x)

    def loss_along(self, ts: Sequence[float]) -> list[float]:
        """Mean cross-entropy on the data, in nats, towards what the end predicts, at each t."""
        goal = predict(self.end, self.data.x).argmax(1)
        return [float(F.cross_entropy(predict(self.at(t), self.data.x), goal)) for t in ts]


def restandardised(model: nn.Module, x: Tensor) -> nn.Module:
    """``model`` itself, with the running statistics of its batch norms taken anew from one pass over ``x``.

    Raises InputError where a norm reads a single value a channel.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return model
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # an average over batches
        norm.train()
    try:
        with torch.no_grad():
            model(x.to(device_of(model)))
    except ValueError as error:
        raise InputError(
            f"mode connectivity: a batch norm reads one value a channel of {len(x)} samples; expected more of them"
        ) from error
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model


@dataclass(frozen=True, kw_only=True)
class SelfModeConnectivity:
    """``fit(start, end, data, seed=) -> Curve``: a quadratic Bezier curve between two models, of which only the control
    point is trained, on ``data``, at the fixed point ``t`` (Wang et al., 2026, arXiv:2605.22871; the curve is that of
    Garipov et al., 2018, arXiv:1802.10026, where t is drawn at random).

    The control point starts as new weights (or as ``control``) and makes ``steps`` steps of Adam; both ends are fixed,
    and at t = 1/2 together weigh as much as it does. What it is trained on is not stated in the paper as far as we
    could read it: ``loss`` "predictions" is cross-entropy towards the classes that the end predicts, "labels" towards
    the data's labels, "mmcr" adds mmcr_loss x ``mmcr`` of two views by ``augment`` at the layer ``feature`` to the
    first. 0 steps leave the control point as it is. Raises InputError for t outside [0, 1], models whose parameters
    differ in name or shape, and data that cannot be used.
    """

    kind: ClassVar[str] = "function"

    t: float = 0.5
    steps: int = 100
    lr: float = 1e-3
    batch_size: int = 64
    loss: Literal["predictions", "labels", "mmcr"] = "predictions"
    mmcr: float = 1e-3
    feature: str = "penultimate"
    augment: Augmentation = VIEWS

    def __post_init__(self) -> None:
        bezier(self.t)
        if self.loss not in LOSSES:
            raise unknown("loss of SelfModeConnectivity", str(self.loss), LOSSES)
        self.plan()

    def plan(self) -> Plan:
        """Adam at a constant rate."""
        return Plan(steps=self.steps, batch_size=self.batch_size, lr=self.lr, schedule="constant")

    def fit(
        self, start: nn.Module, end: nn.Module, data: Data, *, seed: int, control: nn.Module | None = None
    ) -> Curve:
        """The curve from ``start`` to ``end``; both are untouched."""
        check_inputs("SelfModeConnectivity", data.x, data.y, data.bounds)
        control = fresh(end, seed=derive(seed, "control")) if control is None else control
        shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (start, control, end)]
        if shapes[0] != shapes[1] or shapes[1] != shapes[2]:
            raise InputError("SelfModeConnectivity: the models differ in their parameters; expected one architecture")
        bent = _Bent(start, control, end, self.t)
        goals = data if self.loss == "labels" else data.with_y(predict(end, data.x).argmax(1))
        layer = chosen_layers(end, self.feature, data.x[:16])[0] if self.loss == "mmcr" else ""

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            loss = F.cross_entropy(model(batch.x), batch.y)
            return loss + self.mmcr * self._spread(model, layer, batch, state) if layer else loss

        trained = fit(bent, goals, objective, self.plan(), seed=seed)
        found = trained.get_submodule("control").requires_grad_(True)
        return Curve(start, found, end, data)

    def _spread(self, model: nn.Module, layer: str, batch: Batch, state: State) -> Tensor:
        views = torch.cat([self.augment(batch.x, state.draws(name, batch.index)) for name in ("one", "two")])
        with captured(model, [f"control.{layer}"]) as caught:
            model(views)
        return mmcr_loss(torch.stack(pooled(caught[f"control.{layer}"]).chunk(2), 1))
