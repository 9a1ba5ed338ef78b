"""Universal perturbations: one displacement for all inputs, and the engine of those that need no data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.conv_stages import ConvStages, Stages
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating, ordinary, predict, traceable
from assay.runtime.random import derive, torch_rng
from assay.subject.access import Access

PRIORS = ("none", "range", "data")


@dataclass(frozen=True)
class Progress:
    """What a check saw: the iteration, the objective, the share of saturated entries, and what picks the best."""

    iteration: int
    objective: float
    saturation: float
    score: float


@dataclass(frozen=True)
class Perturbation:
    """One displacement for all inputs: delta_ (1, ...) within eps, and the checks it was chosen from."""

    delta_: Float[Tensor, "1 ..."]
    bounds: tuple[float, float]
    history_: tuple[Progress, ...]

    def __call__(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """``x`` (n, ...) displaced and clipped to the bounds."""
        check_inputs("perturbation", x, None, self.bounds)
        if x.shape[1:] != self.delta_.shape[1:]:
            expected = tuple(self.delta_.shape[1:])
            raise InputError(f"perturbation: samples of shape {tuple(x.shape[1:])}; expected {expected}")
        return (x + self.delta_.to(x)).clamp(*self.bounds)


def fooling_rate(model: nn.Module, x: Float[Tensor, "n ..."], perturb: Callable[[Tensor], Tensor]) -> float:
    """The share of ``x`` whose predicted class ``perturb`` changes; labels play no part."""
    return float((predict(model, x).argmax(1) != predict(model, perturb(x)).argmax(1)).float().mean())


def generalized_fooling_rate(
    metric: Callable[[Tensor, Tensor], float], clean: Tensor, perturbed: Tensor, metric_range: float
) -> float:
    """(R - M(perturbed, clean)) / R for a metric M of range R that is R where both outputs agree.

    Mopuri et al. (2018, arXiv:1801.08092): the outputs on clean inputs take
    the place of the truth. With the share of equal classes as M and R = 1 it is the fooling rate.
    """
    if not (math.isfinite(metric_range) and metric_range > 0):
        raise InputError(f"generalized fooling rate: metric_range is {metric_range}; expected a finite number above 0")
    return (metric_range - float(metric(perturbed, clean))) / metric_range


def augmented(x: Float[Tensor, "n ch h w"], generator: torch.Generator) -> Float[Tensor, "n ch h w"]:
    """Each image at random mirrored, turned by up to 10 degrees, scaled by 0.8 to 1.2, shifted by a tenth, blurred."""
    u = torch.rand(6, len(x), generator=generator).to(x)
    angle, size = (u[0] - 0.5) * math.pi / 9, 0.8 + 0.4 * u[1]
    mirror = torch.where(u[2] < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() / size, angle.sin() / size
    shift = 0.2 * (u[3:5] - 0.5)
    rows = (torch.stack((cos * mirror, -sin, shift[0]), 1), torch.stack((sin * mirror, cos, shift[1]), 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    soft = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), "replicate"), 3, 1)
    return torch.where((u[5] < 0.5)[:, None, None, None], soft, moved)


@dataclass(frozen=True, kw_only=True)
class ActivationAttack:
    """``attack.fit(model, shape, data=None, seed=0) -> Perturbation``: activations made large by one displacement.

    Adam ascends ``objective`` of the convolutional stages (see ConvStages) at d + delta, delta clipped to [-eps, eps]
    after every step (Mopuri et al., 2018, arXiv:1801.08092, section 3). ``prior`` says what d is: "none", one input
    of the value ``mean`` (None: 0, as if the mean was subtracted; else per channel); "range", Gaussian noise with the
    data's ``mean`` and ``std`` per channel (None: the middle of the bounds and a quarter of their width), clipped to
    the bounds; "data", drawn rows of ``data``. Noise and data are ``augment``-ed where they are images. Where the share
    of saturated entries |delta| = eps is above ``sat_threshold`` and changed by less than ``sat_rate``, delta is
    halved. A check comes every ``check_every`` iterations, and before a halving at half of that: it scores the fooling
    rate on ``val``, unlabelled inputs of any origin, or the objective without them. The best delta counts; ``patience``
    checks without a better one end the search. The authors keep an unclipped variable behind a clipped delta; here
    delta itself is clipped. ``lr`` None is eps / 100. Raises InputError for unusable options, shapes and data.
    """

    kind: ClassVar[str] = "universal"
    contract: ClassVar[bool] = True
    access: ClassVar[Access] = Access.WEIGHTS

    eps: float = 10 / 255
    bounds: tuple[float, float] = (0.0, 1.0)
    lr: float | None = None
    prior: Literal["none", "range", "data"] = "none"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layers: tuple[str, ...] | None = None
    max_iter: int = 40_000
    batch_size: int = 25
    check_every: int = 400
    patience: int = 10
    sat_threshold: float = 0.5
    sat_rate: float = 1e-5
    augment: bool = True

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise InputError(f"{where}: eps is {self.eps}; expected a finite number above 0")
        if self.prior not in PRIORS:
            raise InputError(f"{where}: prior is {self.prior!r}; expected one of {', '.join(PRIORS)}")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"{where}: lr is {self.lr}; expected a finite number above 0")
        if min(self.max_iter, self.batch_size, self.check_every, self.patience) < 1:
            raise InputError(f"{where}: expected max_iter, batch_size, check_every and patience of at least 1")
        if len(self.bounds) != 2 or not self.bounds[0] < self.bounds[1]:
            raise InputError(f"{where}: bounds are {self.bounds}; expected (low, high) with low < high")

    def objective(self, stages: list[Tensor]) -> Tensor:
        """What is made large, a scalar function of the stages' outputs."""
        raise TypeError(f"{type(self).__name__} states no objective")

    def gradient(self, value: Tensor, delta: Tensor) -> Tensor:
        """The direction of ascent for ``delta``."""
        return torch.autograd.grad(value, delta)[0]

    def fit(
        self,
        model: nn.Module,
        shape: tuple[int, ...],
        data: Float[Tensor, "n ..."] | None = None,
        *,
        seed: int,
        val: Float[Tensor, "m ..."] | None = None,
    ) -> Perturbation:
        """A displacement for samples of ``shape``; ``data`` serves the prior "data", ``val`` the choice of the best."""
        where = type(self).__name__
        if not shape or any(s < 1 for s in shape):
            raise InputError(f"{where}: shape is {shape}; expected the shape of one sample")
        if (data is None) == (self.prior == "data"):
            given = "no data" if data is None else "data"
            raise InputError(f"{where}: prior {self.prior!r} with {given}; expected data with the prior 'data' only")
        for name, x in (("data", data), ("val", val)):
            if x is not None:
                check_inputs(f"{where}: {name}", x, None, self.bounds)
                if tuple(x.shape[1:]) != tuple(shape):
                    raise InputError(f"{where}: {name} has shape {tuple(x.shape)}; expected (n, *{tuple(shape)})")
        for values in (self.mean, self.std):
            if values is not None and len(values) not in (1, shape[0]):
                raise InputError(
                    f"{where}: mean or std has {len(values)} values; expected 1 or {shape[0]}, one a channel"
                )
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        blank = torch.zeros(1, *shape, device=device_of(model), dtype=dtype)
        with traceable(where, model, blank), evaluating(model), torch.enable_grad():
            blank = ordinary(blank)
            return self._ascend(model, ConvStages(model, blank, self.layers), blank, data, val, seed)

    def inputs(self, blank: Tensor, data: Tensor | None, generator: torch.Generator) -> Float[Tensor, "b ..."]:
        """What the displacement is added to at one iteration; ``blank`` is one input of zeros."""
        column = (-1,) + (1,) * (blank.dim() - 2)
        low, high = self.bounds
        if self.prior == "none":
            return blank if self.mean is None else blank + blank.new_tensor(self.mean).reshape(column)
        if self.prior == "data":
            assert data is not None
            rows = torch.randint(len(data), (self.batch_size,), generator=generator)
            x = data[rows].to(blank)
        else:
            mean = blank.new_tensor(self.mean or ((low + high) / 2,)).reshape(column)
            std = blank.new_tensor(self.std or ((high - low) / 4,)).reshape(column)
            noise = torch.randn(self.batch_size, *blank.shape[1:], generator=generator).to(blank)
            x = (mean + std * noise).clamp(low, high)
        return augmented(x, generator) if self.augment and x.dim() == 4 else x

    def _ascend(
        self, model: nn.Module, stages: Stages, blank: Tensor, data: Tensor | None, val: Tensor | None, seed: int
    ) -> Perturbation:
        generator = torch_rng(derive(seed, type(self).__name__), "inputs")
        delta = ((2 * torch.rand(blank.shape, generator=generator) - 1) * self.eps).to(blank).requires_grad_()
        optimiser = torch.optim.Adam([delta], lr=self.eps / 100 if self.lr is None else self.lr)
        best, history, share = delta.detach().clone(), [], 0.0
        checked = top = 0
        for step in range(1, self.max_iter + 1):
            x = self.inputs(blank, data, generator)
            value = self.objective(stages(x + delta))
            delta.grad = -self.gradient(value, delta)
            optimiser.step()
            with torch.no_grad():
                delta.clamp_(-self.eps, self.eps)
            before, share = share, float((delta.detach().abs() >= self.eps * (1 - 1e-6)).float().mean())
            still = abs(share - before) < self.sat_rate and share > self.sat_threshold
            since = step - checked
            if since >= self.check_every or step == self.max_iter or (still and since > self.check_every / 2):
                checked = step
                found = Perturbation(delta.detach().cpu().clone(), self.bounds, ())
                with torch.no_grad():
                    reached = float(self.objective(stages(x + delta)))
                score = reached if val is None else fooling_rate(model, val, found)
                history.append(Progress(step, reached, share, score))
                if len(history) == 1 or score > history[top].score:
                    best, top = found.delta_, len(history) - 1
                if len(history) - 1 - top >= self.patience:
                    break
            if still:
                with torch.no_grad():
                    delta.mul_(0.5)
        return Perturbation(best, self.bounds, tuple(history))
