"""Attributions: how much each input element mattered for a class, and how faithful such a map is."""

from assay.explain.base import Explainer, GradientExplainer
from assay.explain.faithfulness import Curve, deletion, insertion
from assay.explain.gradient import Gradient
from assay.explain.gradient_input import GradientInput
from assay.explain.integrated_gradients import IntegratedGradients
from assay.explain.lfa import LocalFunctionApproximation, Neighbourhood
from assay.explain.random_ranking import RandomAttribution
from assay.explain.similarity import AttributionSimilarity, attribution_iou, attribution_similarity
from assay.explain.smooth_grad import SmoothGrad
from assay.runtime.saliency import cam, gradient_saliency

__all__ = [
    "AttributionSimilarity",
    "Curve",
    "Explainer",
    "Gradient",
    "GradientExplainer",
    "GradientInput",
    "IntegratedGradients",
    "LocalFunctionApproximation",
    "Neighbourhood",
    "RandomAttribution",
    "SmoothGrad",
    "attribution_iou",
    "attribution_similarity",
    "cam",
    "deletion",
    "gradient_saliency",
    "insertion",
]
