"""Stealing a model through its answers, without data."""

from assay.privacy.extraction.base import CloneEnsemble, ExtractionResult, Extractor, agreement
from assay.privacy.extraction.cabage import CaBaGe
from assay.privacy.extraction.dfme import DFME
from assay.privacy.extraction.disguide import DisGUIDE
from assay.privacy.extraction.fine_tune_extractor import FineTuneExtractor, extraction_rates
from assay.privacy.extraction.game import DataFreeExtractor
from assay.privacy.extraction.generator_ensemble import (
    GeneratorEnsemble,
    ImageGenerator,
    balance_loss,
    disagreement_loss,
)
from assay.privacy.extraction.growing_classifier import GrowingClassifier
from assay.privacy.extraction.hard_sample_replay import HardSampleReplay
from assay.privacy.extraction.noise_queries import NoiseQueries
from assay.privacy.extraction.selective_query import SelectiveQuery, difficulty

__all__ = [
    "CaBaGe",
    "CloneEnsemble",
    "DFME",
    "DataFreeExtractor",
    "DisGUIDE",
    "ExtractionResult",
    "Extractor",
    "FineTuneExtractor",
    "GeneratorEnsemble",
    "GrowingClassifier",
    "HardSampleReplay",
    "ImageGenerator",
    "NoiseQueries",
    "SelectiveQuery",
    "agreement",
    "balance_loss",
    "difficulty",
    "disagreement_loss",
    "extraction_rates",
]
