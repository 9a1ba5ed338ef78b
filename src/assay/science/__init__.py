"""Models of science and statistics whose answers are known in closed form."""

from assay.science.gaussian_mixture import adversarial_separability, balance_price, imbalanced_gaussian_risk

__all__ = ["adversarial_separability", "balance_price", "imbalanced_gaussian_risk"]
