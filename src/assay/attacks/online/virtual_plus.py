"""Virtual+."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from assay.attacks.online.base import OnlinePicker, Stream


@dataclass(frozen=True, kw_only=True)
class VirtualPlus(OnlinePicker):
    """Pick what exceeds the k-th largest value seen so far (Mladenovic et al., 2021, arXiv:2103.02014, "Virtual+").

    Virtual without its condition that the k-th value was sampled. Its exact competitive ratio is
    ``virtual_plus_ratio``; ``optimal_threshold`` gives the best t for n and k. The default is n / e. The released code
    samples one item more for the same threshold. Shapes, ties, errors: see OnlinePicker.
    """

    def wants(self, stream: Stream, values: Float[Tensor, " runs"]) -> Bool[Tensor, " runs"]:
        return values > stream.best[:, -1]
