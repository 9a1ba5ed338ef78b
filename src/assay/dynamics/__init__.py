"""What training does: the geometry of the last layer, of boundaries and level sets, curvature, and large steps."""

from assay.dynamics.blind_spots import BlindSpotReport, blind_spot_report, other_class
from assay.dynamics.catastrophic_overfitting import AAEMonitor, overfits_catastrophically
from assay.dynamics.collapse import Collapse, head_inputs, neural_collapse
from assay.dynamics.early_learning import EarlyLearning, early_learning_curve
from assay.dynamics.energy import EnergyTracker, energy_gap, joint_energy, marginal_energy
from assay.dynamics.etf_classifier import ETFClassifier, ETFNetwork, attach_etf
from assay.dynamics.feature_dynamics import FeatureDynamics, feature_energy, memorisation, train_feature_model
from assay.dynamics.feature_noise import FeatureNoiseModel
from assay.dynamics.feature_separability import FeatureSeparability, feature_separability
from assay.dynamics.fixed_etf import FixedETF
from assay.dynamics.hessian import Eigenvalue, Hessian, Trace
from assay.dynamics.large_step import ConvergenceWarning, LinearFit, LogisticGD, Separability, separability_report
from assay.dynamics.layer_peeled import LayerPeeledFit, LayerPeeledModel
from assay.dynamics.level_sets import LevelSetTraversal, LSTResult
from assay.dynamics.long_tail import (
    LongTailProblem,
    LongTailSample,
    excess_error_of_not_fitting,
    lookup_learner,
    tail_weight,
    tau,
)
from assay.dynamics.loss_surface import Barrier, linear_mode_barrier, ntk_submatrix_velocity
from assay.dynamics.memorization_tracker import MemorizationTracker
from assay.dynamics.over_param import TwoLayerReLU, margin, separability, separable_sphere
from assay.dynamics.perceptron import BatchPerceptron, Perceptron
from assay.dynamics.quadratic_cnn import QuadraticCNN
from assay.dynamics.similarity import structural_similarity
from assay.dynamics.simplex_etf import simplex_etf
from assay.dynamics.star_shape import TriangleConfidence, linear_path_confidence, path_width, triangle_confidence
from assay.dynamics.straight_line import StraightLine, straight_line
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
    "AAEMonitor",
    "Barrier",
    "BatchPerceptron",
    "BlindSpotReport",
    "Collapse",
    "ConvergenceWarning",
    "ETFClassifier",
    "ETFNetwork",
    "EarlyLearning",
    "Eigenvalue",
    "EnergyTracker",
    "FeatureDynamics",
    "FeatureNoiseModel",
    "FeatureSeparability",
    "FixedETF",
    "Hessian",
    "LSTResult",
    "LayerPeeledFit",
    "LayerPeeledModel",
    "LevelSetTraversal",
    "LinearFit",
    "LogisticGD",
    "LongTailProblem",
    "LongTailSample",
    "MemorizationTracker",
    "PathPoint",
    "Perceptron",
    "QuadraticCNN",
    "Separability",
    "StraightLine",
    "TiltingReport",
    "Trace",
    "TriangleConfidence",
    "TwoLayerReLU",
    "adversarial_strength",
    "attach_etf",
    "blind_spot_report",
    "centroid_classifier",
    "deviation_angle",
    "deviation_angle_net",
    "early_learning_curve",
    "energy_gap",
    "excess_error_of_not_fitting",
    "feature_energy",
    "feature_separability",
    "flat_directions",
    "head_inputs",
    "joint_energy",
    "linear_mode_barrier",
    "linear_path_confidence",
    "lookup_learner",
    "margin",
    "marginal_energy",
    "memorisation",
    "midpoint_intercept",
    "mirror",
    "neural_collapse",
    "ntk_submatrix_velocity",
    "other_class",
    "overfits_catastrophically",
    "path_width",
    "principal_directions",
    "regularisation_path",
    "separability",
    "separability_report",
    "separable_sphere",
    "simplex_etf",
    "straight_line",
    "structural_similarity",
    "tail_weight",
    "tau",
    "tilt",
    "train_feature_model",
    "triangle_confidence",
    "type2_excess",
]
