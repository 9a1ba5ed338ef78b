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
from assay.privacy.platform import (
    BorderInputs,
    Identifier,
    LogitFingerprint,
    float_bits,
    simulate_platform,
    split_float,
)
from assay.privacy.shadows import Shadows, train_shadows

__all__ = [
    "BorderInputs",
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
    "Identifier",
    "ImageGenerator",
    "LiRA",
    "LogitFingerprint",
    "LossThreshold",
    "NoiseQueries",
    "Reference",
    "SelectiveQuery",
    "Shadows",
    "agreement",
    "balance_loss",
    "difficulty",
    "disagreement_loss",
    "float_bits",
    "simulate_platform",
    "split_float",
    "train_shadows",
]
