"""What training does: the geometry of the last layer, the curvature of the loss, and large steps on a linear model."""

from assay.dynamics.collapse import Collapse, head_inputs, neural_collapse
from assay.dynamics.etf_classifier import ETFClassifier, ETFNetwork, attach_etf
from assay.dynamics.fixed_etf import FixedETF
from assay.dynamics.hessian import Eigenvalue, Hessian, Trace
from assay.dynamics.large_step import ConvergenceWarning, LinearFit, LogisticGD, Separability, separability_report
from assay.dynamics.layer_peeled import LayerPeeledFit, LayerPeeledModel
from assay.dynamics.loss_surface import Barrier, linear_mode_barrier, ntk_submatrix_velocity
from assay.dynamics.perceptron import BatchPerceptron, Perceptron
from assay.dynamics.simplex_etf import simplex_etf

__all__ = [
    "Barrier",
    "BatchPerceptron",
    "Collapse",
    "ConvergenceWarning",
    "ETFClassifier",
    "ETFNetwork",
    "Eigenvalue",
    "FixedETF",
    "Hessian",
    "LayerPeeledFit",
    "LayerPeeledModel",
    "LinearFit",
    "LogisticGD",
    "Perceptron",
    "Separability",
    "Trace",
    "attach_etf",
    "head_inputs",
    "linear_mode_barrier",
    "neural_collapse",
    "ntk_submatrix_velocity",
    "separability_report",
    "simplex_etf",
]
