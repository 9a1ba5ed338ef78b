"""Detectors of abnormal inputs: ``fit(model, data)`` gives an object with ``score(x)``, higher is more abnormal."""

from assay.detect.adaptive_beyond import BeyondAdaptiveAttack
from assay.detect.adaptive_pgd import DetectorAwarePGD
from assay.detect.beyond import BEYOND, robust_accuracy_with_rejection
from assay.detect.class_incremental import ClassIncrementalGDA
from assay.detect.deep_kernel import DeepKernel, DeepKernelMMD
from assay.detect.energy import Energy
from assay.detect.eps import EPSAD, expected_perturbation_score
from assay.detect.fas_metrics import eer_threshold, fas_metrics
from assay.detect.hyp_oc import HypOC
from assay.detect.knn import KNN
from assay.detect.mahalanobis import Mahalanobis
from assay.detect.mmd import mmd2, mmd_variance
from assay.detect.msp import MSP
from assay.detect.one_class_svm import OneClassSVM
from assay.detect.orthogonal_pgd import OrthogonalPGD
from assay.detect.quant_audit import Disparity, FittedQuantizationAudit, QuantizationAudit
from assay.detect.score_norm import ScoreNorm

__all__ = [
    "BEYOND",
    "BeyondAdaptiveAttack",
    "ClassIncrementalGDA",
    "DeepKernel",
    "DeepKernelMMD",
    "DetectorAwarePGD",
    "Disparity",
    "Energy",
    "EPSAD",
    "FittedQuantizationAudit",
    "HypOC",
    "KNN",
    "Mahalanobis",
    "MSP",
    "OneClassSVM",
    "OrthogonalPGD",
    "QuantizationAudit",
    "ScoreNorm",
    "eer_threshold",
    "expected_perturbation_score",
    "fas_metrics",
    "mmd2",
    "mmd_variance",
    "robust_accuracy_with_rejection",
]
