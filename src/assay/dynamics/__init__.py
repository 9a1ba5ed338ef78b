"""What training does: the geometry of the last layer, the curvature of the loss, and large steps on a linear model."""

from assay.dynamics.collapse import Collapse, head_inputs, neural_collapse
from assay.dynamics.hessian import Eigenvalue, Hessian, Trace
from assay.dynamics.large_step import ConvergenceWarning, LinearFit, LogisticGD, Separability, separability_report
from assay.dynamics.perceptron import BatchPerceptron, Perceptron

__all__ = [
    "BatchPerceptron",
    "Collapse",
    "ConvergenceWarning",
    "Eigenvalue",
    "Hessian",
    "LinearFit",
    "LogisticGD",
    "Perceptron",
    "Separability",
    "Trace",
    "head_inputs",
    "neural_collapse",
    "separability_report",
]
