"""Models of science and statistics whose answers are known in closed form."""

from assay.science.gaussian_mixture import adversarial_separability, balance_price, imbalanced_gaussian_risk
from assay.science.shifted_mixture import ShiftedMixture, linear_accuracy, shifted_gmm

__all__ = [
    "ShiftedMixture",
    "adversarial_separability",
    "balance_price",
    "imbalanced_gaussian_risk",
    "linear_accuracy",
    "shifted_gmm",
]
