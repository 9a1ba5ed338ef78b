"""What training does: the geometry of the last layer and of linear boundaries, curvature, and large steps."""

from assay.dynamics.collapse import Collapse, head_inputs, neural_collapse
from assay.dynamics.etf_classifier import ETFClassifier, ETFNetwork, attach_etf
from assay.dynamics.fixed_etf import FixedETF
from assay.dynamics.hessian import Eigenvalue, Hessian, Trace
from assay.dynamics.large_step import ConvergenceWarning, LinearFit, LogisticGD, Separability, separability_report
from assay.dynamics.layer_peeled import LayerPeeledFit, LayerPeeledModel
from assay.dynamics.loss_surface import Barrier, linear_mode_barrier, ntk_submatrix_velocity
from assay.dynamics.perceptron import BatchPerceptron, Perceptron
from assay.dynamics.simplex_etf import simplex_etf
from assay.dynamics.tilting import (
    PathPoint,
    TiltingReport,
    adversarial_strength,
    centroid_classifier,
    deviation_angle,
    deviation_angle_net,
    flat_directions,
    midpoint_intercept,
    mirror,
    principal_directions,
    regularisation_path,
    tilt,
    type2_excess,
)

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
    "PathPoint",
    "Perceptron",
    "Separability",
    "TiltingReport",
    "Trace",
    "adversarial_strength",
    "attach_etf",
    "centroid_classifier",
    "deviation_angle",
    "deviation_angle_net",
    "flat_directions",
    "head_inputs",
    "linear_mode_barrier",
    "midpoint_intercept",
    "mirror",
    "neural_collapse",
    "ntk_submatrix_velocity",
    "principal_directions",
    "regularisation_path",
    "separability_report",
    "simplex_etf",
    "tilt",
    "type2_excess",
]
