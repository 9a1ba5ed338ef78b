"""Unlearning without new weights: what is served is corrected by a datamodel."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.errors import InputError
from assay.subject import Subject
from assay.unlearn.datamodel import Attributed, less


class CorrectedModel(nn.Module):
    """Logits of ``model`` less ``multiplier`` times those of ``change``."""

    def __init__(self, model: nn.Module, change: nn.Module, multiplier: float) -> None:
        super().__init__()
        self.model, self.change, self.multiplier = model, change, multiplier

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return less(self.model(x), self.change(x), self.multiplier)


@dataclass(frozen=True, kw_only=True)
class DatamodelDirect(Attributed):
    """Serve f_x(theta_0) - ``multiplier`` times the sum of beta_i(x) over ``forget`` (Georgiev et al., 2024,
    arXiv:2410.23232, section 4.2, "DM-Direct").

    The weights stay as they are: the served model still holds what it should forget, and every query costs a pass
    through each network of the datamodel. For a fixed table of beta see ``datamodel_logits``. ``control`` serves the
    same networks with multiplier 0. Other options: see Attributed; a table of beta raises InputError.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.attribution, Tensor):
            raise InputError(
                "DatamodelDirect: attribution is a table; expected 'trak' or 'regression', which know beta of any query"
            )

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The corrected model."""
        return self._serve(subject, forget, retain, self.multiplier, seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The model as it was, at the same cost a query."""
        return self._serve(subject, forget, retain, 0.0, seed)

    def _serve(self, subject: Subject, forget: Data, retain: Data, multiplier: float, seed: int) -> nn.Module:
        change = self.change(subject, forget, retain, seed=seed)
        return CorrectedModel(copy.deepcopy(subject.model), copy.deepcopy(change), multiplier).eval()
