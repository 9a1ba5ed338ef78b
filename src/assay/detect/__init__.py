"""Detectors of abnormal inputs: ``fit(model, data)`` gives an object with ``score(x)``, higher is more abnormal."""

from assay.detect.activation_clustering import ActivationClustering
from assay.detect.adaptive_beyond import BeyondAdaptiveAttack
from assay.detect.adaptive_pgd import DetectorAwarePGD
from assay.detect.beyond import BEYOND, robust_accuracy_with_rejection
from assay.detect.class_incremental import ClassIncrementalGDA
from assay.detect.conformal_backdoor import (
    ConformalDetector,
    FittedConformal,
    conformal_pvalues,
    conformal_rank,
    conformal_threshold,
    dkw_level,
)
from assay.detect.deep_kernel import DeepKernel, DeepKernelMMD
from assay.detect.energy import Energy
from assay.detect.eps import EPSAD, expected_perturbation_score
from assay.detect.exclusionary import exclusionary_reclassification, exclusionary_score
from assay.detect.fas_metrics import eer_threshold, fas_metrics
from assay.detect.feature_squeezing import FeatureSqueezing
from assay.detect.gaussian_power import lr_power, mahalanobis_power, optimal_lr_score
from assay.detect.hyp_oc import HypOC
from assay.detect.inspector import Inspection
from assay.detect.knn import KNN
from assay.detect.lid import LID
from assay.detect.mahalanobis import Mahalanobis
from assay.detect.mmd import mmd2, mmd_variance
from assay.detect.msp import MSP
from assay.detect.odin import ODIN
from assay.detect.one_class_svm import OneClassSVM
from assay.detect.orthogonal_pgd import OrthogonalPGD
from assay.detect.quant_audit import Disparity, FittedQuantizationAudit, QuantizationAudit
from assay.detect.score_norm import ScoreNorm
from assay.detect.shrunk_mahalanobis import ShrunkMahalanobis
from assay.detect.spectral_signatures import SpectralSignatures
from assay.detect.strip import STRIP

__all__ = [
    "ActivationClustering",
    "BEYOND",
    "BeyondAdaptiveAttack",
    "ClassIncrementalGDA",
    "ConformalDetector",
    "DeepKernel",
    "DeepKernelMMD",
    "DetectorAwarePGD",
    "Disparity",
    "EPSAD",
    "Energy",
    "FeatureSqueezing",
    "FittedConformal",
    "FittedQuantizationAudit",
    "HypOC",
    "Inspection",
    "KNN",
    "LID",
    "MSP",
    "Mahalanobis",
    "ODIN",
    "OneClassSVM",
    "OrthogonalPGD",
    "QuantizationAudit",
    "STRIP",
    "ScoreNorm",
    "ShrunkMahalanobis",
    "SpectralSignatures",
    "conformal_pvalues",
    "conformal_rank",
    "conformal_threshold",
    "dkw_level",
    "eer_threshold",
    "exclusionary_reclassification",
    "exclusionary_score",
    "expected_perturbation_score",
    "fas_metrics",
    "lr_power",
    "mahalanobis_power",
    "mmd2",
    "mmd_variance",
    "optimal_lr_score",
    "robust_accuracy_with_rejection",
]
