"""ShrinkMatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.labels.fixmatch import FixMatch
from assay.labels.rcal import read
from assay.labels.semi_supervised import Unlabelled, decayed
from assay.losses import ShrinkLoss, ShrinkResult, shrink_targets
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import seeded
from assay.training import State

EPOCH = 1024  # steps of the authors' epoch


@dataclass(frozen=True, kw_only=True)
class ShrinkMatch(FixMatch):
    """FixMatch that also learns from uncertain samples, inside a class space shrunk until they are certain (Yang et
    al., 2023, arXiv:2308.06777, section 3).

    L = L_FixMatch + r ShrinkLoss: q of an uncertain weak view gives the space (see shrink_targets), the strong view's
    logits of an auxiliary head, two hidden layers of a quarter of the width of the linear layer named ``layer``, are
    read inside it, and each sample weighs max q where the space suffices for ``tau``. r, the share of certain samples,
    is a running average of decay ``decay`` that begins at the first batch's; ``reset_each_epoch`` begins it anew
    every 1,024 steps, as the authors' code does. ``head="main"`` applies the loss with the main head (an ablation). The
    targets q are soft and aligned, as theirs; the head sees the strong views alone and is dropped in the end. Theirs
    copies buffers into the weight average, the plan averages them. InputError for a model without such a layer.
    """

    soft: bool = True
    align: bool = True
    head: Literal["aux", "main"] = "aux"
    decay: float = 0.999
    reset_each_epoch: bool = False
    layer: str = "head"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head not in ("aux", "main"):
            raise unknown("head of ShrinkMatch", self.head, ("aux", "main"))
        if not 0 <= self.decay < 1:
            raise InputError(f"ShrinkMatch: decay={self.decay}; expected a decay in [0, 1)")

    def space(self, q: Float[Tensor, "b c"], state: State) -> ShrinkResult:
        """The shrunk class space of each prediction."""
        return shrink_targets(q, self.tau)

    def stage(self, share: Tensor, state: State) -> Float[Tensor, ""]:
        """r, the running share of certain samples."""
        if self.reset_each_epoch and state.step % EPOCH == 0:
            state.memory.pop("shrinkmatch", None)
        return decayed(state, "shrinkmatch", share, share, self.decay)

    def start(self, model: nn.Module, data: Data, seed: int) -> nn.Module:
        last = dict(model.named_modules()).get(self.layer)
        if not isinstance(last, nn.Linear):
            raise InputError(
                f"ShrinkMatch: layer {self.layer!r} is {type(last).__name__}; expected the name of a linear layer"
            )
        with seeded(seed, "auxiliary head"):
            head = auxiliary_head(last.in_features, last.out_features).to(last.weight)
            return WithAuxiliary(model, head, self.layer)

    def finish(self, trained: nn.Module) -> nn.Module:
        assert isinstance(trained, WithAuxiliary)
        return trained.model

    def outputs(self, model: nn.Module, x: Tensor, strong: int) -> tuple[Tensor, Tensor]:
        assert isinstance(model, WithAuxiliary)
        if self.head == "main":
            return super().outputs(model, x, strong)
        return model.both(x, strong)

    def further(
        self, q: Tensor, certain: Tensor, strong: Tensor, extra: Tensor, unlabelled: Unlabelled, state: State
    ) -> Float[Tensor, ""]:
        space = self.space(q, state)
        state.log.append({"step": state.step, **_counts(space, certain, unlabelled)})
        return self.stage(certain.float().mean(), state) * ShrinkLoss(self.tau).inside(extra, q, space)


class WithAuxiliary(nn.Module):
    """A classifier with a second head on what enters its layer named ``layer``; calls give the classifier's logits."""

    def __init__(self, model: nn.Module, auxiliary: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.auxiliary, self.layer = model, auxiliary, layer

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return self.model(x)

    def both(self, x: Float[Tensor, "n ..."], last: int) -> tuple[Float[Tensor, "n c"], Float[Tensor, "last c"]]:
        """The logits of all inputs, and the second head's of the ``last`` ones."""
        logits, z = read(self.model, x, self.layer)
        return logits, self.auxiliary(z[-last:])


def auxiliary_head(width: int, classes: int) -> nn.Sequential:
    """Two hidden layers of a quarter of ``width``, with batch norm and leaky ReLU, and a linear one."""
    narrow = max(width // 4, 1)
    layers: list[nn.Module] = []
    for inputs in (width, narrow):
        layers += [nn.Linear(inputs, narrow), nn.BatchNorm1d(narrow), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.Linear(narrow, classes))


def _counts(space: ShrinkResult, certain: Tensor, unlabelled: Unlabelled) -> dict[str, float]:
    """Of the uncertain samples: how many, in how many the space suffices, the classes removed from these, and, where
    the truth is known, how often it is the top-1 class, and how often that or a removed one.
    """
    unsure = ~certain
    used = unsure & space.satisfied
    found = {"uncertain": unsure, "shrunk": used, "removed": used * space.removed}
    if unlabelled.truth is not None:
        right = space.top1 == unlabelled.truth
        known = unlabelled.truth >= 0
        gone = known & ~space.keep.gather(1, unlabelled.truth.clamp_min(0)[:, None])[:, 0]
        found |= {"uncertain_right": unsure & right, "shrunk_right": used & right, "contained": used & (right | gone)}
    return {name: float(value.sum()) for name, value in found.items()}
