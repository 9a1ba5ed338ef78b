"""Explanations as local function approximation: eight methods, one engine, and which of them to choose."""

from assay.explain.lfa.approximation import LinearExplanation, LocalFunctionApproximation
from assay.explain.lfa.choice import choose_explanation, faithfulness, in_units_of, perturbation_test
from assay.explain.lfa.named import (
    c_lime,
    gradient_input,
    integrated_gradients,
    kernel_shap,
    lime,
    occlusion,
    smoothgrad,
    vanilla_gradient,
)
from assay.explain.lfa.neighbourhood import Bernoulli, Gaussian, Neighbourhood, OneHot, Path, Shapley

__all__ = [
    "Bernoulli",
    "Gaussian",
    "LinearExplanation",
    "LocalFunctionApproximation",
    "Neighbourhood",
    "OneHot",
    "Path",
    "Shapley",
    "c_lime",
    "choose_explanation",
    "faithfulness",
    "gradient_input",
    "in_units_of",
    "integrated_gradients",
    "kernel_shap",
    "lime",
    "occlusion",
    "perturbation_test",
    "smoothgrad",
    "vanilla_gradient",
]
