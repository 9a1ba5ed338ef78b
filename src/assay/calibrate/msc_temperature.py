"""Class-wise temperatures from class-wise miscalibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.calibrate.base import CalibrationMap, Calibrator, Outputs
from assay.calibrate.measures import top
from assay.calibrate.miscalibration import signed_gaps
from assay.runtime.errors import InputError, unknown
from assay.runtime.spec import rebuildable

CHUNK = 32  # settings that are evaluated at once
WIDEST = 64.0  # temperatures are sought in [1 / WIDEST, WIDEST] at most


@rebuildable
class ClassTemperatures(CalibrationMap):
    """Logit k divided by T_k > 0, ``temperatures_`` (c,); with ``preserve`` a row by the T of its largest logit."""

    temperatures_: Tensor

    def __init__(self, classes: int, preserve: bool = False) -> None:
        super().__init__()
        self.preserve = preserve
        self.register_buffer("temperatures_", torch.ones(classes, dtype=torch.float64))

    @property
    def classes(self) -> int:
        """The number of classes c."""
        return len(self.temperatures_)

    def forward(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Calibrated logits, in float64."""
        return scaled(logits.double(), self.temperatures_, self.preserve)


def scaled(logits: Float[Tensor, "n c"], t: Float[Tensor, "... c"], preserve: bool) -> Float[Tensor, "... n c"]:
    """Logits divided by each temperature vector."""
    return logits / (t[..., logits.argmax(1), None] if preserve else t[..., None, :])


@dataclass(frozen=True, kw_only=True)
class MSCTemperatureScaling(Calibrator):
    """T_k = T* (1 + gamma m_k), T* the temperature of least ECE (MSC-TS; Ao et al., 2023, UAI; the official code).

    T* comes from a grid over [``lowest``, ``highest``] by ``step``. The class-wise miscalibration after T*, by true
    class, is drawn in to [q1 - 1.5 IQR, q3 + 1.5 IQR] and normalised by ``norm``: divided by its largest value
    ("max"), brought to [0, 1] ("min_max"), or left ("none"); this is m. gamma has the least ECE over a grid of
    ``gammas`` values in [-2, 2] for which all T_k > 0. Different temperatures may change the largest logit;
    ``preserve_accuracy`` divides each row by the T of its predicted class instead. Not of the code: T = 1 and gamma = 0
    are always tried, so that ECE on the fitting samples never rises, and a T* on the edge widens the grid.
    """

    objective: ClassVar[str] = "ece"

    norm: Literal["max", "min_max", "none"] = "max"
    lowest: float = 0.5
    highest: float = 2.0
    step: float = 0.01
    gammas: int = 4001
    n_bins: int = 15
    preserve_accuracy: bool = False

    def __post_init__(self) -> None:
        if self.norm not in ("max", "min_max", "none"):
            raise unknown("norm of MSCTemperatureScaling", self.norm, ("max", "min_max", "none"))
        if not 0 < self.lowest <= 1 <= self.highest or not self.step > 0 or self.gammas < 1 or self.n_bins < 1:
            given = f"range [{self.lowest}, {self.highest}], step={self.step}, gammas={self.gammas}, {self.n_bins} bins"
            raise InputError(
                f"MSCTemperatureScaling: {given}; expected 0 < lowest <= 1 <= highest, step > 0, counts >= 1"
            )

    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> ClassTemperatures:
        logits = outputs.logits.double()
        best = self.temperature(logits, y)
        m = torch.from_numpy(self.normalised(self.scores((logits / best).softmax(1).numpy(), y.numpy())))
        gamma = torch.cat((torch.zeros(1, dtype=torch.float64), torch.linspace(-2, 2, self.gammas).double()))
        t = best * (1 + gamma[:, None] * m)
        t = t[(t > 0).all(1)]
        fitted = ClassTemperatures(outputs.classes, self.preserve_accuracy)
        fitted.temperatures_.copy_(t[int(self._errors(logits, y, t).argmin())])
        return fitted

    def scores(self, p: Float[np.ndarray, "n c"], y: Int[np.ndarray, " n"]) -> Float[np.ndarray, " c"]:
        """Class-wise miscalibration by true class; 0 for a class without samples."""
        return signed_gaps(top(p, y), y, p.shape[1], self.n_bins)

    def normalised(self, scores: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
        """m: the scores winsorised, then normalised; all 0 where that has no meaning."""
        low, high = np.percentile(scores, [25, 75], method="midpoint")
        scores = scores.clip(low - 1.5 * (high - low), high + 1.5 * (high - low))
        if self.norm == "none":
            return scores
        shift = scores.min() if self.norm == "min_max" else 0.0
        size = scores.max() - shift
        return (scores - shift) / size if abs(size) > 1e-12 else np.zeros_like(scores)

    def temperature(self, logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> float:
        """T*, the temperature of the least ECE on float64 logits; 1 where it is as good as the best."""
        low, high = self.lowest, self.highest
        while True:
            step = min(self.step, low)
            grid = torch.cat((torch.ones(1), torch.arange(low, high + step / 2, step))).double()
            best = float(grid[int(self._errors(logits, y, grid[:, None].expand(-1, logits.shape[1])).argmin())])
            if best <= low + step / 2 < 1 and low / 2 > 1 / WIDEST:
                low /= 2
            elif best >= high - step / 2 > 1 and high * 2 <= WIDEST:
                high *= 2
            else:
                return best

    def _errors(
        self, logits: Float[Tensor, "n c"], y: Int[Tensor, " n"], t: Float[Tensor, "g c"]
    ) -> Float[Tensor, " g"]:
        """ECE under each temperature vector."""
        found = []
        for part in t.split(CHUNK):
            p, guess = scaled(logits, part, self.preserve_accuracy).softmax(2).max(2)
            which = (p * self.n_bins).ceil().long().sub(1).clamp(0, self.n_bins - 1)
            gap = p - (guess == y).double()
            found.append(p.new_zeros(len(part), self.n_bins).scatter_add(1, which, gap).abs().sum(1) / len(y))
        return torch.cat(found)
