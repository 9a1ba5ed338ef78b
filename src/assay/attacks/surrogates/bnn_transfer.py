"""Gradient attacks on networks sampled from a posterior, made to transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.engine import Climb
from assay.attacks.mifgsm import MIFGSM
from assay.attacks.surrogates.base import Surrogates
from assay.runtime.random import torch_rng


@dataclass(frozen=True, kw_only=True)
class BNNTransferAttack(MIFGSM):
    """Iterations on one network at a time, or on all (Gubri et al., 2022, arXiv:2011.05074, algorithm 1).

    On Surrogates with networks 1..S, "light" takes the gradient at iteration t of network pi(t mod S) alone, pi an
    order that is ``shuffle``d once an attack: as many gradients as against one network. "full" follows the mean of
    all logits, S gradients an iteration. Any other network is a surrogate by itself. ``momentum`` = 0 is I-FG(S)M,
    more MI-FG(S)M; with ``random_start`` and ``restarts`` (5 in the paper) it is PGD. Steps are of eps / 10. Whether
    the goal is met is told by the mean of the logits; ``early_stop`` needs "full". Shapes, ranges and errors: see
    Attack; options: GradientAttack.
    """

    steps: int = 50
    step_size: float | None = 0.1
    momentum: float = 0.0
    mode: Literal["light", "full"] = "light"
    shuffle: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("light", "full"):
            self.refuse("mode", repr(self.mode), "'light' or 'full'")
        if self.mode == "light" and self.early_stop:
            self.refuse("early_stop", True, "False with mode 'light', where one network is no judge of all")

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        if self.mode == "light" and isinstance(run.model, Surrogates):
            turns = torch.arange(len(run.model.samples))
            if self.shuffle:
                # The key follows from seed and restart alone: all samples of all batches meet the same order.
                turns = torch.randperm(len(turns), generator=torch_rng(run.draws.key[0], "turns"))
            run.model = _Turns(run.model, turns.tolist(), 0 if self.steps else None)
        return super().begin(run)

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        if isinstance(run.model, _Turns):
            run.model.step = run.step + 1 if run.step + 1 < self.steps else None
        return super().move(run)


class _Turns(nn.Module):
    """Surrogates that answer one at a time; past the last step (``step`` None) all together."""

    def __init__(self, whole: Surrogates, order: list[int], step: int | None) -> None:
        super().__init__()
        self.whole, self.order, self.step = whole, order, step

    def forward(self, x: Tensor) -> Tensor:
        if self.step is None:
            return self.whole(x)
        return self.whole.samples[self.order[self.step % len(self.order)]](x)
