"""Local intrinsic dimensionality of a network's representations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector
from assay.detect.joined import FittedJoined
from assay.detect.layers import captured, chosen_layers, pooled
from assay.detect.mahalanobis import PROBE
from assay.runtime.errors import InputError
from assay.runtime.inference import features

SELF = 1e-4  # of the distance to the farthest reference: as near as this lies only the input itself
STEEPEST = -1e-6  # the mean log ratio of equal distances, whose dimension would be infinite


def local_dimension(f: Float[Tensor, "n d"], references: Float[Tensor, "m d"], k: int) -> Float[Tensor, " n"]:
    """-(mean_i log(r_i / r_k))^{-1} over the distances r_1 <= ... <= r_k to the k nearest references (eq. 4).

    A reference that is the input itself is left out; 0 where none is left.
    """
    distance = torch.cdist(f, references, compute_mode="donot_use_mm_for_euclid_dist")
    itself = distance <= SELF * distance.detach().amax(1, keepdim=True)
    near = distance.masked_fill(itself, torch.inf).topk(k, largest=False).values
    there = near.isfinite()
    last = near.masked_fill(~there, 0.0).amax(1, keepdim=True)
    logs = torch.where(there, near, last).clamp_min(1e-300).log() - last.clamp_min(1e-300).log()
    mean = logs.sum(1) / there.sum(1).clamp_min(1)
    return torch.where(there.any(1), -1 / mean.clamp_max(STEEPEST), torch.zeros_like(mean))


@dataclass(kw_only=True)
class FittedLID(FittedJoined):
    """Score = sum_l weight_l (LID_l - centre_l) / scale_l + bias.

    ``with_out`` makes it the paper's detector, ``inside`` being normal and noisy inputs, ``outside`` adversarial ones
    (algorithm 1).
    """

    k: int = 20
    references_: dict[str, Tensor] = field(default_factory=dict)

    def layer_scores(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n l"]:
        """The dimension at every layer, float64 on the CPU."""
        found = features(self.model, x, self.layers_, batch_size=self.batch_size)
        return torch.stack([self._dimension(found[name], name) for name in self.layers_], 1)

    def _dimension(self, f: Tensor, name: str) -> Tensor:
        parts = f.double().cpu().split(self.batch_size)
        return torch.cat([local_dimension(part, self.references_[name], self.k) for part in parts])

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        with captured(self.model, self.layers_) as caught:
            self.model(x)
        return self.join(torch.stack([self._dimension(pooled(caught[name]), name) for name in self.layers_], 1))


@dataclass(frozen=True, kw_only=True)
class LID(Detector):
    """Local intrinsic dimensionality (Ma et al., 2018, arXiv:1801.02613, eq. 4 and algorithm 1): adversarial inputs lie
    where the data about them have more dimensions.

    ``k`` nearest among ``references`` samples of the fit data, which ``seed`` draws (the paper: 20 in minibatches of
    100), at ``layers``, as in Mahalanobis. Without attacks to learn from, the layers' dimensions are standardised on
    the fit data and added up; ``FittedLID.with_out`` gives the paper's weights. Shapes and errors: see Detector; also
    InputError where there are fewer than ``k`` + 1 references.
    """

    finds: ClassVar[tuple[str, ...]] = ("attacks",)

    k: int = 20
    references: int = 100
    layers: str = "all"
    seed: int = 0

    def learn(self, model: nn.Module, data: Data) -> FittedLID:
        drawn = data.limit(self.references, seed=self.seed)
        if not 2 <= self.k < len(drawn):
            raise InputError(f"LID: k={self.k} among {len(drawn)} references; expected 2 to {len(drawn) - 1}")
        layers = chosen_layers(model, self.layers, data.x[:PROBE])
        found = features(model, drawn.x, layers, batch_size=self.batch_size)
        fitted = FittedLID(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            k=self.k,
            layers_=layers,
            references_={name: f.double() for name, f in found.items()},
        )
        columns = fitted.layer_scores(data.x).numpy()
        fitted.standardise(columns, "sum of dimensions standardised on the fit data")
        return fitted
