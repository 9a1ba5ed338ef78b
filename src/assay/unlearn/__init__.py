"""Unlearning: models that forget some of their training samples."""

from assay.unlearn.base import Unlearner, forget_set
from assay.unlearn.finetune import FineTune
from assay.unlearn.influence import InfluenceUnlearn, fisher_solve, running_solve
from assay.unlearn.l1_sparse import L1SparseUnlearn, near_zero
from assay.unlearn.neg_grad import NegGrad
from assay.unlearn.prune_first import PruneFirstThenUnlearn, SparseForgotten
from assay.unlearn.retrain import Retrain
from assay.unlearn.sparse_bound import ErrorBound, masked_curvature, unlearning_error_bound

__all__ = [
    "ErrorBound",
    "FineTune",
    "InfluenceUnlearn",
    "L1SparseUnlearn",
    "NegGrad",
    "PruneFirstThenUnlearn",
    "Retrain",
    "SparseForgotten",
    "Unlearner",
    "fisher_solve",
    "forget_set",
    "masked_curvature",
    "near_zero",
    "running_solve",
    "unlearning_error_bound",
]
