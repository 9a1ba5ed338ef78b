"""Detectors of abnormal inputs: ``fit(model, data)`` gives an object with ``score(x)``, higher is more abnormal.

Inspectors judge the training samples themselves: ``inspect(model, data, *, seed)``.
"""

from assay.detect.activation_clustering import ActivationClustering
from assay.detect.class_incremental import ClassIncrementalGDA
from assay.detect.conformal_backdoor import (
    ConformalDetector,
    FittedConformal,
    conformal_pvalues,
    conformal_rank,
    conformal_threshold,
    dkw_level,
)
from assay.detect.energy import Energy
from assay.detect.exclusionary import exclusionary_reclassification, exclusionary_score
from assay.detect.feature_squeezing import FeatureSqueezing
from assay.detect.gaussian_power import lr_power, mahalanobis_power, optimal_lr_score
from assay.detect.inspector import Inspection
from assay.detect.knn import KNN
from assay.detect.lid import LID
from assay.detect.mahalanobis import Mahalanobis
from assay.detect.msp import MSP
from assay.detect.odin import ODIN
from assay.detect.quant_audit import Disparity, FittedQuantizationAudit, QuantizationAudit
from assay.detect.shrunk_mahalanobis import ShrunkMahalanobis
from assay.detect.spectral_signatures import SpectralSignatures
from assay.detect.strip import STRIP

__all__ = [
    "ActivationClustering",
    "ClassIncrementalGDA",
    "ConformalDetector",
    "Disparity",
    "Energy",
    "FeatureSqueezing",
    "FittedConformal",
    "FittedQuantizationAudit",
    "Inspection",
    "KNN",
    "LID",
    "MSP",
    "Mahalanobis",
    "ODIN",
    "QuantizationAudit",
    "STRIP",
    "ShrunkMahalanobis",
    "SpectralSignatures",
    "conformal_pvalues",
    "conformal_rank",
    "conformal_threshold",
    "dkw_level",
    "exclusionary_reclassification",
    "exclusionary_score",
    "lr_power",
    "mahalanobis_power",
    "optimal_lr_score",
]
