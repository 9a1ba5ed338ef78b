"""Unlearning: models that forget some of their training samples."""

from assay.unlearn.bad_teacher import BadTeacher
from assay.unlearn.base import Unlearner, forget_set
from assay.unlearn.boundary_shrink import BoundaryShrink
from assay.unlearn.finetune import FineTune
from assay.unlearn.fisher import FisherForgetting, fisher_diagonal
from assay.unlearn.influence import InfluenceUnlearn, fisher_solve, running_solve
from assay.unlearn.l1_sparse import L1SparseUnlearn, near_zero
from assay.unlearn.last_layers import CFk, EUk
from assay.unlearn.neg_grad import NegGrad
from assay.unlearn.neg_grad_plus import NegGradPlus
from assay.unlearn.prune_first import PruneFirstThenUnlearn, SparseForgotten
from assay.unlearn.random_label import RandomLabel
from assay.unlearn.retrain import Retrain
from assay.unlearn.scrub import SCRUB
from assay.unlearn.sisa import SISA
from assay.unlearn.sparse_bound import ErrorBound, masked_curvature, unlearning_error_bound
from assay.unlearn.ssd import SelectiveSynapticDampening, importances

__all__ = [
    "BadTeacher",
    "BoundaryShrink",
    "CFk",
    "EUk",
    "ErrorBound",
    "FineTune",
    "FisherForgetting",
    "InfluenceUnlearn",
    "L1SparseUnlearn",
    "NegGrad",
    "NegGradPlus",
    "PruneFirstThenUnlearn",
    "RandomLabel",
    "Retrain",
    "SCRUB",
    "SISA",
    "SelectiveSynapticDampening",
    "SparseForgotten",
    "Unlearner",
    "fisher_diagonal",
    "fisher_solve",
    "forget_set",
    "importances",
    "masked_curvature",
    "near_zero",
    "running_solve",
    "unlearning_error_bound",
]
