"""Detectors of abnormal inputs: ``fit(model, data)`` gives an object with ``score(x)``, higher is more abnormal."""

from assay.detect.class_incremental import ClassIncrementalGDA
from assay.detect.energy import Energy
from assay.detect.mahalanobis import Mahalanobis
from assay.detect.msp import MSP
from assay.detect.quant_audit import Disparity, FittedQuantizationAudit, QuantizationAudit

__all__ = [
    "ClassIncrementalGDA",
    "Disparity",
    "Energy",
    "FittedQuantizationAudit",
    "MSP",
    "Mahalanobis",
    "QuantizationAudit",
]
