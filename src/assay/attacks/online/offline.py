"""The optimum with hindsight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.attacks.online.base import Picker


@dataclass(frozen=True, kw_only=True)
class OfflineTopK(Picker):
    """The k largest values of the whole stream: what competitive ratios compare with. Of equal values, the earlier."""

    def pick(self, values: Float[Tensor, "*runs n"]) -> Bool[Tensor, "*runs n"]:
        top = self.checked(values).argsort(dim=1, descending=True, stable=True)[:, : self.k]
        mask = torch.zeros(len(top), self.n, dtype=torch.bool).scatter_(1, top, True)
        return mask.reshape(values.shape)
