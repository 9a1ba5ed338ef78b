"""Statistics that are differentially private, and what privacy and robustness say of each other."""

from assay.privacy.differential.aggregate_laplace import AggregateLaplace, BagSize, optimal_bag_size
from assay.privacy.differential.dp_audit import dp_audit_exact
from assay.privacy.differential.inverse_sensitivity import (
    InverseSensitivity,
    laplace_mean,
    private_median,
    private_quantile,
    private_trimmed_mean,
)
from assay.privacy.differential.path_length import ClippedMean, OrderStatistic, Quantile, TrimmedMean, WinsorisedMean
from assay.privacy.differential.piecewise_constant import PiecewiseConstant
from assay.privacy.differential.robust_to_private import (
    PrivateEstimate,
    RobustToPrivate,
    predicted_error,
    robustness_from_privacy,
)
from assay.privacy.differential.truncated_sensitivity import TruncatedSensitivity
from assay.privacy.differential.tukey_mechanism import TukeyDepth, TukeyMechanism

__all__ = [
    "AggregateLaplace",
    "BagSize",
    "ClippedMean",
    "TukeyDepth",
    "InverseSensitivity",
    "OrderStatistic",
    "PiecewiseConstant",
    "PrivateEstimate",
    "Quantile",
    "RobustToPrivate",
    "TrimmedMean",
    "TruncatedSensitivity",
    "TukeyMechanism",
    "WinsorisedMean",
    "dp_audit_exact",
    "laplace_mean",
    "optimal_bag_size",
    "predicted_error",
    "private_median",
    "private_quantile",
    "private_trimmed_mean",
    "robustness_from_privacy",
]
