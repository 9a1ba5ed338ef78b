"""Certified training by interval bounds up to a layer and an attack after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from assay.attacks import PGD, Toward
from assay.attacks.balls import Linf
from assay.certify.bounds import Interval, LpBall, graph_of
from assay.certify.bounds.engine import Sweep, sweep
from assay.certify.bounds.graph import Tail
from assay.certify.certified_training import margin_bounds
from assay.certify.sabr import SABR
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating


@dataclass(frozen=True, kw_only=True)
class TAPS(SABR):
    """Minimise the product of two losses: of interval bounds, and of an attack inside the box that they reach.

    Mao et al., 2023, "Connecting Certified and Adversarial Training", arXiv:2305.04574, section 3. Intervals go up to
    the split, which leaves the ``last`` operators that are not linear (activations, pooling) after it; 0 leaves linear
    layers alone, over which the attack finds what intervals do, and at least as many as there are the whole model. For
    every other class j a PGD run of its own seeks the largest z_j - z_y in the box at the split; TAPS' loss is the
    cross-entropy of these margins. Its gradient reaches the box by the rectified linear connector: a coordinate passes
    it to an end of its interval that lies nearer than ``soft`` of the width, the more the nearer (0: only to an end
    that it is at). The gradient of TAPS' loss in the product is multiplied by ``scale``. ``lam`` < 1 takes SABR's small
    boxes (STAPS). PGD takes ``attack_steps`` steps of ``step_size`` of the radius (the released code shortens some).
    Raises InputError where the split is not a layer that all paths take. Others: SABR.
    """

    lam: float = 1.0
    last: int = 1
    scale: float = 5.0
    soft: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last < 0 or not 0 <= self.soft <= 1 or not 0 < self.scale < math.inf:
            raise InputError(
                f"TAPS: last={self.last}, soft={self.soft}, scale={self.scale}; "
                "expected last >= 0, soft in [0, 1], a finite scale above 0"
            )

    def robust_loss(
        self,
        model: nn.Module,
        center: Float[Tensor, "n ..."],
        radius: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        *,
        seed: int = 0,
        index: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        attacked, bounded = self.terms(model, center, radius, y, seed=seed, index=index)
        scaled = self.scale * attacked - (self.scale - 1) * attacked.detach()
        return (scaled * bounded).mean()

    def terms(
        self,
        model: nn.Module,
        center: Float[Tensor, "n ..."],
        radius: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        *,
        seed: int = 0,
        index: Int[Tensor, " n"] | None = None,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Each sample's cross-entropy of the attacked margins, and of the interval bounds."""
        with evaluating(model):
            graph = graph_of(model, center)
        run = sweep(graph, model, center, LpBall(eps=radius))
        lower = margin_bounds(run, y)
        n, classes = lower.shape
        cut = self._split(run)
        tail, box = Tail(graph, model, cut), run.values[cut]
        others = torch.arange(classes - 1, device=y.device).expand(n, -1)
        others = others + (others >= y[:, None]).long()
        index = torch.arange(n, device=y.device) if index is None else index
        names = (index[:, None] * classes + others).flatten()
        each = Interval(*(t.repeat_interleave(classes - 1, 0) for t in (box.lower, box.upper)))
        goal = Toward(y.repeat_interleave(classes - 1), others.flatten())
        h = connected(self._worst(tail, each, goal, names, seed), each, self.soft)
        z = tail(h).unflatten(0, (n, classes - 1))
        gaps = z.gather(2, others[..., None])[..., 0] - z.gather(2, y[:, None, None].expand(-1, classes - 1, 1))[..., 0]
        attacked = torch.cat((torch.zeros_like(gaps[:, :1]), gaps), 1).logsumexp(1)
        return attacked, F.cross_entropy(-lower, y, reduction="none")

    def _split(self, run: Sweep) -> fx.Node:
        """The tensor at which bounds end and the attack begins."""
        bent = [node for node in run.graph.nodes if node in run.calls and not run.calls[node][0].exact]
        return bent[len(bent) - 1 - self.last] if self.last < len(bent) else run.graph.input

    def _worst(self, tail: nn.Module, box: Interval, goal: Toward, names: Tensor, seed: int) -> Tensor:
        """The points that PGD reaches in the boxes, each for a class of its own."""
        middle, radius = box.center.detach(), box.radius.detach()
        attack = PGD(
            ball=Linf(1.0),
            steps=self.attack_steps,
            step_size=self.step_size,
            early_stop=False,
            loss="margin",
            bounds=(-1.0, 1.0),
        )
        start = torch.zeros_like(middle)
        within = attack.run(Scaled(tail, middle, radius), start, goal, seed=seed, index=names, batch_size=len(start))
        return middle + radius * within.x_adv


class Scaled(nn.Module):
    """A model of the place in a box: t in [-1, 1] stands for middle + radius t."""

    def __init__(self, model: nn.Module, middle: Tensor, radius: Tensor) -> None:
        super().__init__()
        self.model, self.middle, self.radius = model, middle, radius

    def forward(self, t: Tensor) -> Tensor:
        """The model's outputs, for as many places as there are boxes."""
        out: Tensor = self.model(self.middle + self.radius * t)
        return out


def connected(points: Tensor, box: Interval, soft: float) -> Tensor:
    """The points, from which gradients reach the box's ends (the rectified linear connector; see TAPS).

    With p in [0, 1] a coordinate's place in its interval, the gradient is passed to the lower end with weight
    max(1 - p / soft, 0) and to the upper one with max(1 - (1 - p) / soft, 0); where the ends meet each takes half.
    """
    low, high = box.lower.detach(), box.upper.detach()
    width = high - low
    flat = width <= 1e-9
    p = ((points - low) / torch.where(flat, 1.0, width)).clamp(0, 1)
    reach = max(soft, 1e-5)
    to_low = torch.where(flat, 0.5, (1 - p / reach).clamp(min=0))
    to_high = torch.where(flat, 0.5, (1 - (1 - p) / reach).clamp(min=0))
    return points.detach() + to_low * (box.lower - low) + to_high * (box.upper - high)
