"""A guard in front of a model: it answers where its risk is bounded, and says why where it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.calibrate import Outputs, ece, miscalibration_score
from assay.calibrate.measures import top
from assay.calibrate.miscalibration import signed_gaps
from assay.certify.smoothing import lower_bound
from assay.decide.scores import SCORES, energy
from assay.decide.selective import _checked, aurc, e_auopt_rc, trust_index
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError, unknown

ACCEPTED, UNCERTAIN, FOREIGN = "accepted", "uncertain", "foreign"


@dataclass(frozen=True)
class Decisions:
    """``accept`` (n,), and for each sample the ``reason``: accepted, uncertain (its score is above the threshold) or
    foreign (its energy is above that of nearly all validation samples)."""

    accept: Bool[np.ndarray, " n"]
    reason: tuple[str, ...]


@dataclass(frozen=True)
class FittedSafeguard:
    """``threshold_``: samples of an uncertainty up to it are answered (-inf: none); ``coverage_`` their share and
    ``bound_`` the upper bound of their risk, on validation; ``foreign_`` the energy above which an input is foreign;
    ``score_`` names the uncertainty; ``miscalibration_`` (c,) the signed miscalibration by predicted class."""

    threshold_: float
    coverage_: float
    bound_: float
    foreign_: float
    score_: str
    miscalibration_: Float[np.ndarray, " c"]

    def decide(self, logits: Float[Tensor, "n c"]) -> Decisions:
        """Answer or not, sample by sample. InputError for another number of classes."""
        outputs = Outputs(logits)
        if outputs.classes != len(self.miscalibration_):
            raise InputError(f"Safeguard: {outputs.classes} logits; expected {len(self.miscalibration_)}, as fitted")
        logits = logits.detach()
        foreign = (energy(logits) > self.foreign_).numpy()
        unsure = (SCORES[self.score_](logits) > self.threshold_).numpy()
        reason = np.select([foreign, unsure], [FOREIGN, UNCERTAIN], ACCEPTED)
        return Decisions(~(foreign | unsure), tuple(reason.tolist()))

    def report(self, logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> dict[str, float]:
        """Accuracy, ECE, signed miscalibration, AURC, E-AUoptRC and trust index on labelled samples, and the share and
        the risk of those that are answered (NaN where none is)."""
        outputs = Outputs(logits)
        check_labels("Safeguard.report", y, len(logits), outputs.classes)
        right, u = (logits.argmax(1) == y).numpy(), SCORES[self.score_](logits.detach()).numpy()
        accept = self.decide(logits).accept
        p = outputs.probabilities
        return {
            "accuracy": float(right.mean()),
            "ece": ece(p, y),
            "miscalibration": miscalibration_score(p, y),
            "aurc": aurc(right, u),
            "e_auopt_rc": e_auopt_rc(right, u),
            "trust": trust_index(right, u),
            "answered": float(accept.mean()),
            "risk": float(1 - right[accept].mean()) if accept.any() else math.nan,
        }


@dataclass(frozen=True, kw_only=True)
class Safeguard:
    """``fit(outputs, y) -> FittedSafeguard``: the four requirements of a guard (Ao, 2023, arXiv:2308.03176): when to
    reject, what is foreign, over- and under-confidence, and trust at the best operating point.

    The thesis plan states no algorithm. Here the risk of what is answered is at most ``risk`` at the confidence
    ``level``: the threshold is that of full coverage where this meets the promise, else the largest that a binary
    search below it finds (Geifman & El-Yaniv, 2017, arXiv:1705.08500, algorithm 1). Each of at most 1 + ceil(log2 n)
    steps takes a Clopper-Pearson bound at its share of 1 - level, so that all hold for samples of the same
    distribution.
    ``score`` is "msp", "entropy" or "energy"; inputs above the energy of a share 1 - ``fpr`` of the validation samples
    are foreign. Answers of any kind (captions, say) have ``threshold``, which takes uncertainty and correctness alone.
    InputError for other options, labels and arrays.
    """

    kind: ClassVar[str] = "function"

    risk: float = 0.05
    level: float = 0.95
    score: Literal["msp", "entropy", "energy"] = "msp"
    fpr: float = 0.01

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise unknown("score of Safeguard", self.score, SCORES)
        if not (0 < self.risk < 1 and 0 < self.level < 1 and 0 < self.fpr < 1):
            given = f"risk={self.risk}, level={self.level}, fpr={self.fpr}"
            raise InputError(f"Safeguard: {given}; expected numbers in (0, 1)")

    def fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> FittedSafeguard:
        """Thresholds from validation outputs and labels."""
        check_labels("Safeguard", y, len(outputs.logits), outputs.classes)
        outputs = outputs.detached()
        logits, p = outputs.logits, outputs.probabilities.numpy()
        threshold, bound = self.threshold(logits.argmax(1) == y, SCORES[self.score](logits))
        foreign = float(np.quantile(energy(logits).numpy(), 1 - self.fpr, method="higher"))
        scores = signed_gaps(top(p, y.numpy()), p.argmax(1), outputs.classes, 15)
        covered = float((SCORES[self.score](logits) <= threshold).double().mean())
        return FittedSafeguard(threshold, covered, bound, foreign, self.score, scores)

    def threshold(self, correct: Any, uncertainty: Any) -> tuple[float, float]:
        """The uncertainty up to which samples are answered, and the bound of their risk; (-inf, 0) where none is."""
        right, u = _checked("Safeguard.threshold", torch.as_tensor(correct), torch.as_tensor(uncertainty))
        levels = np.unique(u)
        steps = 1 + math.ceil(math.log2(len(levels)))
        low, middle, high, found = 0, len(levels) - 1, len(levels) - 1, (-math.inf, 0.0)
        while low <= high:
            kept = u <= levels[middle]
            hits = torch.tensor([int(right[kept].sum())])
            bound = 1 - float(lower_bound(hits, int(kept.sum()), (1 - self.level) / steps))
            if bound <= self.risk:
                found, low = (float(levels[middle]), bound), middle + 1
            else:
                high = middle - 1
            middle = (low + high) // 2
        return found
