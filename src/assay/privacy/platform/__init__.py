"""On which hardware, in which number format and with which software a model is served, from its outputs alone."""

from assay.privacy.platform.base import Identifier
from assay.privacy.platform.border_inputs import BorderInputs, FittedBorderInputs
from assay.privacy.platform.float_bits import float_bits, split_float
from assay.privacy.platform.logit_fingerprint import FittedLogitFingerprint, LogitFingerprint
from assay.privacy.platform.simulate import Platform, simulate_platform

__all__ = [
    "BorderInputs",
    "FittedBorderInputs",
    "FittedLogitFingerprint",
    "Identifier",
    "LogitFingerprint",
    "Platform",
    "float_bits",
    "simulate_platform",
    "split_float",
]
