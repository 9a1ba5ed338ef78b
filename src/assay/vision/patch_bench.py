"""The patch benchmark: what a detector misses once a patch is on the signs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.attacks.patch import Detector
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, device_of, evaluating
from assay.vision.detection import (
    Found,
    Matches,
    attack_success_rate,
    average_precision,
    f1_threshold,
    fnr_threshold,
    match,
)
from assay.vision.scenes import Scenes


@dataclass(frozen=True)
class PatchScore:
    """fnr, asr and ap of one class, in [0, 1]; ``signs`` that count, and how many were ``detected`` without a patch."""

    fnr: float
    asr: float
    ap: float
    signs: int
    detected: int


@dataclass(frozen=True)
class PatchReport:
    """Means over classes, and over signs (``weighted_``; asr by signs that were detected), and each class's own."""

    fnr: float
    asr: float
    ap: float
    weighted_fnr: float
    weighted_asr: float
    per_class: Mapping[int, PatchScore]


@dataclass(frozen=True, kw_only=True)
class PatchBenchmark:
    """Judges patches on signs (Hingun et al., 2022, arXiv:2212.05680).

    ``fit`` sets a threshold for each class once, on clean images: where F1 is largest or, with ``clean_fnr``, the
    highest score that misses no larger share of the signs. A sign is detected where a prediction of its class with at
    least that score overlaps it by ``iou``. Signs whose box is smaller than ``min_area`` pixels do not count. Judge on
    images that no patch was made on.
    """

    kind: ClassVar[str] = "function"

    iou: float = 0.5
    min_area: float = 1600.0
    clean_fnr: float | None = None
    batch_size: int = BATCH

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1 or self.min_area < 0 or self.batch_size < 1:
            given = f"iou={self.iou}, min_area={self.min_area}, batch_size={self.batch_size}"
            raise InputError(f"PatchBenchmark: {given}; expected iou in (0, 1], min_area >= 0, batch_size >= 1")
        if self.clean_fnr is not None and not 0 <= self.clean_fnr < 1:
            raise InputError(f"PatchBenchmark: clean_fnr={self.clean_fnr}; expected a share in [0, 1), or None")

    def fit(self, detector: Detector, scenes: Scenes) -> FittedPatchBenchmark:
        """Thresholds, and what is detected, on the clean images of ``scenes``."""
        counts = (scenes.boxes[:, 2:] - scenes.boxes[:, :2]).prod(1) >= self.min_area
        if not counts.any():
            raise InputError(f"PatchBenchmark: no sign of {self.min_area} pixels or more; expected at least one")
        classes = scenes.labels[counts].unique().tolist()
        matches = _by_class(self, _predictions(detector, scenes.images, self.batch_size), scenes, counts, classes)
        thresholds = {
            c: f1_threshold(m) if self.clean_fnr is None else fnr_threshold(m, self.clean_fnr)
            for c, m in matches.items()
        }
        clean = {c: m.sign_scores >= thresholds[c] for c, m in matches.items()}
        return FittedPatchBenchmark(self, detector, scenes, counts, thresholds, clean)


@dataclass(frozen=True)
class FittedPatchBenchmark:
    """thresholds_ and, of the signs that count, clean_: which are detected without a patch, by class."""

    benchmark: PatchBenchmark
    detector: Detector
    scenes: Scenes
    counts_: Bool[Tensor, " m"]
    thresholds_: Mapping[int, float]
    clean_: Mapping[int, Bool[Tensor, " k"]]

    def run(self, patch: Float[Tensor, "3 h w"] | None = None) -> PatchReport:
        """The report with ``patch`` on all signs of the scenes, or without any."""
        images = self.scenes.images if patch is None else self._rendered(patch)
        found = _predictions(self.detector, images, self.benchmark.batch_size)
        matches = _by_class(self.benchmark, found, self.scenes, self.counts_, list(self.clean_))
        per_class = {}
        for c, m in matches.items():
            seen, clean = m.sign_scores >= self.thresholds_[c], self.clean_[c]
            rates = 1 - float(seen.float().mean()), attack_success_rate(clean, seen), average_precision(m)
            per_class[c] = PatchScore(*rates, len(seen), int(clean.sum()))
        return _report(per_class)

    def _rendered(self, patch: Tensor) -> Tensor:
        size = self.benchmark.batch_size
        with torch.no_grad():
            rows = torch.arange(len(self.scenes)).split(size)
            return torch.cat([self.scenes.select(r).render(patch.to(self.scenes.images)) for r in rows])


def _report(per_class: Mapping[int, PatchScore]) -> PatchReport:
    scores = list(per_class.values())
    known = [s for s in scores if s.detected]

    def mean(values: list[float], weights: list[int]) -> float:
        return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights) if sum(weights) else math.nan

    fnr, asr = [s.fnr for s in scores], [s.asr for s in known]
    return PatchReport(
        mean(fnr, [1] * len(fnr)), mean(asr, [1] * len(asr)), mean([s.ap for s in scores], [1] * len(scores)),
        mean(fnr, [s.signs for s in scores]), mean(asr, [s.detected for s in known]), per_class,
    )  # fmt: skip


def _predictions(detector: Detector, images: Tensor, size: int) -> list[Found]:
    model = cast(nn.Module, detector)
    device = device_of(model)
    with evaluating(model), torch.no_grad():
        return [found for part in images.split(size) for found in detector.predict(part.to(device))]


def _by_class(
    benchmark: PatchBenchmark, found: list[Found], scenes: Scenes, counts: Tensor, classes: list[int]
) -> dict[int, Matches]:
    matches = {}
    for c in classes:
        own = scenes.labels == c
        matches[c] = match(found, scenes.boxes[own], scenes.obj_to_img[own], c, iou=benchmark.iou, counts=counts[own])
    return matches
