"""Co-teaching+."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from assay.labels.co_teaching import CoTeaching
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CoTeachingPlus(CoTeaching):
    """Co-teaching among the samples on which the two networks disagree (Yu et al., 2019, arXiv:1901.04215, Alg. 1).

    From epoch ``warm`` on, the rows of a batch for which both predict the same class are left out before either
    network names its easy ones; a batch of agreement alone teaches nothing. Before, it is Co-teaching, as in the
    authors' code. Other parameters and errors are CoTeaching's.
    """

    warm: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warm < 0:
            raise InputError(f"CoTeachingPlus: warm={self.warm}; expected an epoch >= 0")

    def exchanged(
        self, first: Float[Tensor, "b c"], second: Float[Tensor, "b c"], y: Int[Tensor, " b"], epoch: int
    ) -> Float[Tensor, ""]:
        if epoch < self.warm:
            return super().exchanged(first, second, y, epoch)
        apart = first.argmax(1) != second.argmax(1)
        if not apart.any():
            return 0 * (first.sum() + second.sum())
        return super().exchanged(first[apart], second[apart], y[apart], epoch)
