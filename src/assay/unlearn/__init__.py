"""Unlearning: models that forget some of their training samples."""

from assay.unlearn.adapt_unlearn import (
    AdaptThenUnlearn,
    collect_feedback,
    ewc_penalty,
    extrapolated,
    fid,
    percent_unlearned,
    repulsion,
    score_fisher,
    weight_distance,
)
from assay.unlearn.bad_teacher import BadTeacher
from assay.unlearn.base import Unlearner, forget_set
from assay.unlearn.boundary_shrink import BoundaryShrink
from assay.unlearn.corrective import CorrectiveBenchmark, Manipulated, corrective_report, manipulate
from assay.unlearn.evaluation import Evaluation, evaluate
from assay.unlearn.evaluation_relearn import relearn_steps
from assay.unlearn.evaluation_rows import forgetting, mia_efficacy
from assay.unlearn.finetune import FineTune
from assay.unlearn.fisher import FisherForgetting, fisher_diagonal
from assay.unlearn.forget_sets import field_set, random_set, sub_class_set, sub_classes
from assay.unlearn.influence import InfluenceUnlearn, fisher_solve, running_solve
from assay.unlearn.klom import klom, margins
from assay.unlearn.l1_sparse import L1SparseUnlearn, near_zero
from assay.unlearn.last_layers import CFk, EUk
from assay.unlearn.modhifi import ModHiFiU
from assay.unlearn.neg_grad import NegGrad
from assay.unlearn.neg_grad_plus import NegGradPlus
from assay.unlearn.prune_first import PruneFirstThenUnlearn, SparseForgotten
from assay.unlearn.random_label import RandomLabel
from assay.unlearn.references import trained
from assay.unlearn.retrain import Retrain
from assay.unlearn.scrub import SCRUB
from assay.unlearn.sisa import SISA
from assay.unlearn.sparse_bound import ErrorBound, masked_curvature, unlearning_error_bound
from assay.unlearn.ssd import SelectiveSynapticDampening, importances
from assay.unlearn.ulira import ULiRAResult, ulira

__all__ = [
    "AdaptThenUnlearn",
    "BadTeacher",
    "BoundaryShrink",
    "CFk",
    "CorrectiveBenchmark",
    "EUk",
    "ErrorBound",
    "Evaluation",
    "FineTune",
    "FisherForgetting",
    "InfluenceUnlearn",
    "L1SparseUnlearn",
    "Manipulated",
    "ModHiFiU",
    "NegGrad",
    "NegGradPlus",
    "PruneFirstThenUnlearn",
    "RandomLabel",
    "Retrain",
    "SCRUB",
    "SISA",
    "SelectiveSynapticDampening",
    "SparseForgotten",
    "ULiRAResult",
    "Unlearner",
    "collect_feedback",
    "corrective_report",
    "evaluate",
    "ewc_penalty",
    "extrapolated",
    "fid",
    "field_set",
    "fisher_diagonal",
    "fisher_solve",
    "forget_set",
    "forgetting",
    "importances",
    "klom",
    "manipulate",
    "margins",
    "masked_curvature",
    "mia_efficacy",
    "near_zero",
    "percent_unlearned",
    "random_set",
    "relearn_steps",
    "repulsion",
    "running_solve",
    "score_fisher",
    "sub_class_set",
    "sub_classes",
    "trained",
    "ulira",
    "unlearning_error_bound",
    "weight_distance",
]
