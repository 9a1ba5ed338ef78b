"""Structured pruning by subset fidelity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from jaxtyping import Float
from torch import Tensor, nn

from assay.compress.channel_graph import Space
from assay.compress.channel_pruning import Calibration, ChannelPruning, group_scores
from assay.compress.subset_fidelity import Ranking
from assay.runtime.errors import unknown


@dataclass(frozen=True, kw_only=True)
class ModHiFiP(ChannelPruning):
    """Keep the channels of highest fidelity and fold delta* into them (Kashyap et al., 2025, arXiv:2511.19566,
    "ModHiFi-P").

    ``method`` "naive" is the paper's: the singleton fidelity, optimal where components are uncorrelated. "raw" leaves
    its scale out and "greedy" adds the channel that raises the joint fidelity most; both are ours. The scores of the
    outputs are weighted by their energy (or equally, ``aggregate``): the paper's weighting is not known to us. Other
    fields, ranges and errors: see ChannelPruning.
    """

    method: Ranking = "naive"
    compensate: bool = True
    recalibrate_bn: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in get_args(Ranking):
            raise unknown("method of ModHiFiP", str(self.method), get_args(Ranking))

    def scores(self, model: nn.Module, space: Space, given: Calibration) -> Float[Tensor, " c"]:
        """The fidelities of the channels."""
        return group_scores(space, given.fidelity, self.method)
