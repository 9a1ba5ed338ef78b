"""What can be guaranteed: bounds, certified radii, prediction sets."""

from assay.certify.aps import APS
from assay.certify.base import Bounder, Certificate, Certifier, FittedSets, Region, SetPredictor
from assay.certify.ibp import IBP
from assay.certify.intervals import Intervals
from assay.certify.lac import LAC
from assay.certify.smoothing import RandomizedSmoothing

__all__ = [
    "APS",
    "IBP",
    "LAC",
    "Bounder",
    "Certificate",
    "Certifier",
    "FittedSets",
    "Intervals",
    "RandomizedSmoothing",
    "Region",
    "SetPredictor",
]
