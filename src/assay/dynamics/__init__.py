"""What training does: the geometry of the last layer, the curvature of the loss, and large steps on a linear model."""

from assay.dynamics.collapse import Collapse, head_inputs, neural_collapse
from assay.dynamics.hessian import Eigenvalue, Hessian, Trace
from assay.dynamics.large_step import ConvergenceWarning, LinearFit, LogisticGD, Separability, separability_report
from assay.dynamics.loss_surface import Barrier, linear_mode_barrier, ntk_submatrix_velocity
from assay.dynamics.perceptron import BatchPerceptron, Perceptron

__all__ = [
    "Barrier",
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
    "linear_mode_barrier",
    "neural_collapse",
    "ntk_submatrix_velocity",
    "separability_report",
]
