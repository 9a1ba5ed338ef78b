"""FreeMatch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from assay.labels.semi_supervised import Consistency, Unlabelled, decayed
from assay.runtime.errors import InputError
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class FreeMatch(Consistency):
    """Thresholds that follow the model's own confidence (Wang et al., 2023, arXiv:2205.07246, eq. 5-12).

    Running averages of decay ``decay``, all from 1/C: the mean confidence t, the mean prediction p (C,) and the
    share h (C,) of each predicted class; the threshold of class c is t p(c) / max p, this batch included. ``fairness``
    weighs the self-adaptive term sum_c SumNorm(p / h) log SumNorm(m / g), with m the mean prediction and g the
    predicted shares on the strong views of certain samples; a class that is not predicted there counts 0 and 1e-12 is
    under the logarithm, as in the authors' code. Its gradient is at the mean prediction alone. 0.01 is the paper's
    default (0.001 on CIFAR-10 with 10 labels). InputError for other options.
    """

    decay: float = 0.999
    fairness: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1 or not 0 <= self.fairness < float("inf"):
            raise InputError(
                f"FreeMatch: decay={self.decay}, fairness={self.fairness}; expected a decay in [0, 1), "
                "a finite weight >= 0"
            )

    def certain(self, q: Float[Tensor, "b c"], unlabelled: Unlabelled, state: State) -> Bool[Tensor, " b"]:
        highest, label = q.max(1)
        uniform = torch.full_like(q[0], 1 / q.shape[1])
        t = decayed(state, "freematch/confidence", highest.mean(), uniform[0], self.decay)
        p = decayed(state, "freematch/prediction", q.mean(0), uniform, self.decay)
        decayed(state, "freematch/share", _shares(label, q), uniform, self.decay)
        return highest >= (t * p / p.max())[label]

    def further(
        self, q: Tensor, certain: Tensor, strong: Tensor, extra: Tensor, unlabelled: Unlabelled, state: State
    ) -> Float[Tensor, ""]:
        if not certain.any():
            return strong.new_zeros(())
        prediction, share = (state.memory[f"freematch/{name}"] for name in ("prediction", "share"))
        return self.fairness * fairness(strong[certain], prediction, share)


def fairness(
    logits: Float[Tensor, "b c"], prediction: Float[Tensor, " c"], share: Float[Tensor, " c"]
) -> Float[Tensor, ""]:
    """Minus the cross-entropy of the normalised mean prediction of ``logits`` under the running one's."""
    p = logits.softmax(1)
    there, here = _ratio(prediction, share), _ratio(p.mean(0), _shares(p.argmax(1), p))
    return (there * (here + 1e-12).log()).sum()


def _shares(label: Tensor, like: Float[Tensor, "b c"]) -> Float[Tensor, " c"]:
    return torch.bincount(label, minlength=like.shape[1]).to(like) / len(label)


def _ratio(mean: Float[Tensor, " c"], share: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    """SumNorm(mean / share), 0 where the share is."""
    return F.normalize(torch.where(share > 0, mean / share.clamp_min(1e-12), 0.0), p=1, dim=0)
