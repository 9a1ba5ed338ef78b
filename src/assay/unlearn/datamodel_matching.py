"""Unlearning by matching what a datamodel predicts of the retrained model."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.subject import Subject
from assay.unlearn.datamodel import Attributed, datamodel_logits, less
from assay.unlearn.oracle_matching import OutputMatching


@dataclass(frozen=True, kw_only=True)
class DatamodelMatching(Attributed, OutputMatching):
    """Fine-tune towards the outputs that a datamodel predicts for the model without the forget set (Georgiev et al.,
    2024, arXiv:2410.23232, section 4.2, "DMM").

    The targets on D_ft are f_x(theta_0) - ``multiplier`` times the sum of beta_i(x) over ``forget``, for every logit.
    ``attribution`` may be beta itself, (|forget|, |D_ft|, c): rows in the order of ``forget``, columns in that of
    ``chosen(forget, retain, seed=seed)``. Other options: see Attributed and OutputMatching.
    """

    def __post_init__(self) -> None:
        Attributed.__post_init__(self)
        OutputMatching.__post_init__(self)

    def targets(self, subject: Subject, forget: Data, retain: Data, at: Data, *, seed: int) -> Float[Tensor, "m *k c"]:
        """The predicted outputs."""
        logits = predict(subject.model, at.x)
        if not isinstance(self.attribution, Tensor):
            return less(logits, predict(self.change(subject, forget, retain, seed=seed), at.x), self.multiplier)
        if len(self.attribution) != len(forget):
            raise InputError(
                f"DatamodelMatching: {len(self.attribution)} rows of beta; expected {len(forget)}, one a sample to "
                "forget"
            )
        return datamodel_logits(logits, self.attribution, self.multiplier)
