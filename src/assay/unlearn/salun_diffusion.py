"""Unlearning of a condition in a diffusion model, in the weights that matter for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from assay.compress.pruning import Masks
from assay.data import Batch, Data
from assay.generate import DiscreteSchedule
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import Draws, derive
from assay.training import Plan, State, fit
from assay.unlearn.passes import cycled
from assay.unlearn.random_label import random_labels
from assay.unlearn.saliency import held, saliency, salient

Condition = Callable[[Tensor | None], Mapping[str, Any]]
Network = Callable[..., Any]


def class_labels(y: Tensor | None) -> Mapping[str, Any]:
    """The condition of a diffusers UNet2DModel."""
    return {"class_labels": y}


@dataclass(frozen=True)
class Noised:
    """Data under noise: ``x`` (n, ...), the integer ``step`` (n,), the ``noise`` in it, the labels ``y``."""

    x: Tensor
    step: Tensor
    noise: Tensor
    y: Tensor


def noised(batch: Batch, bounds: tuple[float, float], schedule: DiscreteSchedule, draws: Draws) -> Noised:
    """A batch, scaled to [-1, 1], at random steps: those of the second half mirror those of the first."""
    low, high = bounds
    x, n = (batch.x - low) / (high - low) * 2 - 1, len(batch.x)
    steps, half = len(schedule.alphas_bar), -(-n // 2)
    first = draws.integers(steps, 1)[:half, 0]
    step, noise = torch.cat([first, steps - 1 - first])[:n], draws.normal(*x.shape[1:])
    bar = schedule.alphas_bar.to(x)[step].reshape(-1, *[1] * (x.dim() - 1))
    return Noised(bar.sqrt() * x + (1 - bar).sqrt() * noise, step, noise, batch.y)


def predicted(net: Network, x: Tensor, step: Int[Tensor, " n"], condition: Mapping[str, Any]) -> Tensor:
    """The noise that ``net(x, step, **condition)`` sees: a tensor like x, or an object that holds it as ``sample``."""
    out = net(x, step, **condition)
    found: Tensor = out if isinstance(out, Tensor) else out.sample
    if found.shape != x.shape:
        raise InputError(f"diffusion network: gives {tuple(found.shape)}; expected {tuple(x.shape)}, as its input")
    return found


def noise_loss(net: Network, part: Noised, encode: Condition) -> Float[Tensor, ""]:
    """Squared error of the predicted noise, summed over a sample's entries, averaged over samples."""
    error = predicted(net, part.x, part.step, encode(part.y)) - part.noise
    return error.square().flatten(1).sum(1).mean()


@dataclass(frozen=True, kw_only=True)
class SalUnDiffusion:
    """Answer a forgotten condition as if it were another one, in the most salient weights alone (Fan et al., 2024,
    arXiv:2310.12508; numbers and details of the official code for DDPM).

    Minimises the mean of |net(x_t, c) - stop(net(x_t, c'))|^2 over entries, on noised samples x_t of ``forget``, plus
    ``alpha`` times ``noise_loss`` on ``retain``, both at antithetic steps, by Adam at ``lr`` for ``iterations`` of
    ``batch_size``, gradients clipped to the norm ``clip``. c' is the class after c ("next", cyclic) or a random other
    one ("random"). The mask is the ``sparsity`` of all weights (of those that ``params`` find in their names: "attn2"
    is the cross-attention of diffusers) whose gradient of the noise loss on ``forget``, clipped batch by batch, is
    largest; with ``guidance`` w > 0 of (1 + w) net(c) - w net(no condition). For Stable Diffusion the paper has rate
    1e-5, alpha 0.5.
    """

    kind: ClassVar[str] = "function"

    iterations: int = 1000
    lr: float = 1e-4
    batch_size: int = 128
    alpha: float = 1e-3
    clip: float = 1.0
    sparsity: float = 0.5
    guidance: float = 0.0
    relabel: Literal["next", "random"] = "next"
    params: str = ""
    mask: Masks | None = None

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and self.clip > 0 and 0 < self.sparsity <= 1 and self.guidance >= 0):
            raise InputError(
                f"SalUnDiffusion: alpha={self.alpha}, clip={self.clip}, sparsity={self.sparsity}, "
                f"guidance={self.guidance}; expected alpha, guidance >= 0, clip > 0, a share in (0, 1]"
            )
        if self.relabel not in ("next", "random"):
            raise unknown("relabel of SalUnDiffusion", str(self.relabel), ("next", "random"))
        self.plan()

    def plan(self) -> Plan:
        """The training plan."""
        return Plan(steps=self.iterations, batch_size=self.batch_size, lr=self.lr, schedule="constant", clip=self.clip)

    def forget(
        self,
        net: nn.Module,
        forget: Data,
        retain: Data,
        schedule: DiscreteSchedule,
        encode: Condition = class_labels,
        *,
        seed: int,
    ) -> nn.Module:
        """A copy of ``net`` that should not know what the labels of ``forget`` look like.

        ``net(x_t, step, **encode(y))`` predicts the noise in x_t; ``encode`` turns labels (n,) into its condition, and
        None into that of no condition, for guidance. ``schedule``: ``DiscreteSchedule(scheduler.alphas_cumprod)`` for a
        diffusers scheduler. Raises InputError for unusable data, common samples or classes, and names without weights.
        """
        check(forget, retain)
        if self.mask is not None:
            mask = self.mask
        else:
            mask = self.saliency_mask(net, forget, schedule, encode, seed=derive(seed, "mask"))
        other = derive(seed, "retain")

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            beside = cycled(retain, self.batch_size, state.step, seed=other).to(batch.x.device)
            lost = noised(batch, forget.bounds, schedule, state.draws("forget", batch.index))
            kept = noised(beside, retain.bounds, schedule, state.draws("retain", beside.index))
            with torch.no_grad():
                wrong = self.others(lost.y, len(forget.classes), state.draws("labels", batch.index))
                aim = predicted(model, lost.x, lost.step, encode(wrong))
            moved = F.mse_loss(predicted(model, lost.x, lost.step, encode(lost.y)), aim)
            return moved + self.alpha * noise_loss(model, kept, encode)

        return fit(net, forget, objective, self.plan(), seed=seed, hooks=[held(mask, net)])

    def others(self, y: Int[Tensor, " n"], classes: int, draws: Draws) -> Int[Tensor, " n"]:
        """The condition c' that stands in for each label."""
        return (y + 1) % classes if self.relabel == "next" else random_labels(y, classes, draws, "exclude")

    def saliency_mask(
        self, net: nn.Module, forget: Data, schedule: DiscreteSchedule, encode: Condition = class_labels, *, seed: int
    ) -> Masks:
        """Which weights may move."""

        def loss(weights: dict[str, Tensor], batch: Batch) -> Tensor:
            def guided(x: Tensor, step: Tensor, **condition: Any) -> Tensor:
                own = predicted(lambda *a, **k: functional_call(net, weights, a, k), x, step, condition)
                if self.guidance == 0:
                    return own
                free = predicted(lambda *a, **k: functional_call(net, weights, a, k), x, step, encode(None))
                return (1 + self.guidance) * own - self.guidance * free

            return noise_loss(guided, noised(batch, forget.bounds, schedule, Draws(seed, "mask", batch.index)), encode)

        found = saliency(net, forget.batches(self.batch_size), loss, self.clip)
        return salient(found, self.sparsity, params=[k for k in found if self.params in k])


def check(forget: Data, retain: Data) -> None:
    """InputError unless both sets can be used and share neither samples nor classes."""
    for name, part in (("forget", forget), ("retain", retain)):
        check_inputs(f"SalUnDiffusion: {name}", part.x, part.y, part.bounds)
    for what, a, b in (("samples", forget.index, retain.index), ("classes", forget.y, retain.y)):
        if both := int(torch.isin(a, b).sum()):
            raise InputError(f"SalUnDiffusion: {both} samples to forget have {what} of retain; expected none in common")
