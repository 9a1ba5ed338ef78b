"""What a model gives away: about its training data (membership inference), and itself (extraction)."""

from assay.privacy.base import Reference
from assay.privacy.calibrated_loss import CalibratedLoss
from assay.privacy.class_loss import ClassLoss
from assay.privacy.extraction import (
    DFME,
    CaBaGe,
    CloneEnsemble,
    DataFreeExtractor,
    DisGUIDE,
    ExtractionResult,
    Extractor,
    GeneratorEnsemble,
    GrowingClassifier,
    HardSampleReplay,
    ImageGenerator,
    NoiseQueries,
    SelectiveQuery,
    agreement,
    balance_loss,
    difficulty,
    disagreement_loss,
)
from assay.privacy.lira import LiRA
from assay.privacy.loss_threshold import LossThreshold
from assay.privacy.shadows import Shadows, train_shadows

__all__ = [
    "CaBaGe",
    "CalibratedLoss",
    "ClassLoss",
    "CloneEnsemble",
    "DFME",
    "DataFreeExtractor",
    "DisGUIDE",
    "ExtractionResult",
    "Extractor",
    "GeneratorEnsemble",
    "GrowingClassifier",
    "HardSampleReplay",
    "ImageGenerator",
    "LiRA",
    "LossThreshold",
    "NoiseQueries",
    "Reference",
    "SelectiveQuery",
    "Shadows",
    "agreement",
    "balance_loss",
    "difficulty",
    "disagreement_loss",
    "train_shadows",
]
