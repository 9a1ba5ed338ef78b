"""The adversarial loss of an attack that has no labels: away from one's own embedding, toward dissimilar ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from assay.attacks.base import Goal, Untargeted
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class Dissimilar(Goal):
    """Features less similar to the own clean ones, ``references[:, 0]``, than to another of ``references`` (n, k, d).

    ``frames`` (n,) and ``moved`` (n, ...) go with the samples: see FittedNoBox.
    """

    references: Float[Tensor, "n k d"]
    frames: Tensor
    moved: Tensor

    def labels(self) -> Tensor:
        """The place of the own features among the references: first."""
        return torch.zeros(len(self.references), dtype=torch.int64, device=self.references.device)

    def similarities(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """The cosine of ``features`` with each reference."""
        return F.cosine_similarity(features[:, None], self.references.to(features), dim=2, eps=1e-12)

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        return Untargeted(self.labels()).met(self.similarities(outputs))

    def margin(self, logits: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return Untargeted(self.labels()).margin(self.similarities(logits))

    def likelihood(self, logits: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return Untargeted(self.labels()).likelihood(self.similarities(logits))


@dataclass(frozen=True, kw_only=True)
class NoBoxLoss:
    """L = -CE(s / ``temperature``, 0), s the cosines of h(x') with its own clean features, with others, with centres.

    Lu et al. (2023, arXiv:2308.05681). Descending L moves x' away from its own clean embedding and toward the others:
    the embeddings of other samples, and the centres of k-means but for the ``exclude_nearest`` that are closest to the
    clean features, which are likely of the same action. All features are scaled to length 1.
    """

    exclude_nearest: int = 10
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.exclude_nearest < 0 or not self.temperature > 0:
            raise InputError(
                f"NoBoxLoss: exclude_nearest={self.exclude_nearest}, temperature={self.temperature}; expected >= 0, > 0"
            )

    def references(
        self, clean: Float[Tensor, "n d"], others: Float[Tensor, "n m d"], centres: Float[Tensor, "k d"]
    ) -> Float[Tensor, "n 1+m+k-x d"]:
        """What h(x') is compared with: the clean features first, the ``others`` of each sample, and the far centres.

        InputError unless there are more centres than are left out.
        """
        if len(centres) <= self.exclude_nearest:
            raise InputError(
                f"NoBoxLoss: {len(centres)} centres; expected more than exclude_nearest, {self.exclude_nearest}"
            )
        own = F.normalize(clean, dim=1)
        far = torch.cdist(own, centres.to(own)).argsort(1)[:, self.exclude_nearest :]
        return torch.cat((own[:, None], F.normalize(others, dim=2).to(own), centres.to(own)[far]), 1)

    def __call__(
        self,
        features: Float[Tensor, "n d"],
        clean: Float[Tensor, "n d"],
        others: Float[Tensor, "n m d"],
        centres: Float[Tensor, "k d"],
    ) -> Float[Tensor, " n"]:
        """The loss of each sample, which an attack descends."""
        n = len(features)
        goal = Dissimilar(self.references(clean, others, centres), torch.zeros(n), torch.zeros(n))
        return self.of(features, goal)

    def of(self, features: Float[Tensor, "n d"], goal: Dissimilar) -> Float[Tensor, " n"]:
        """The loss against references that are known."""
        return -F.cross_entropy(goal.similarities(features) / self.temperature, goal.labels(), reduction="none")
