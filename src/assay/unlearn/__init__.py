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
from assay.unlearn.advunlearn import AdvUnlearn
from assay.unlearn.bad_teacher import BadTeacher
from assay.unlearn.base import Unlearner, forget_set
from assay.unlearn.blindspot import BlindspotUnlearn, attention_distance
from assay.unlearn.boundary_shrink import BoundaryShrink
from assay.unlearn.capped_simplex import project_capped_simplex
from assay.unlearn.corrective import CorrectiveBenchmark, Manipulated, corrective_report, manipulate
from assay.unlearn.datamodel import datamodel_logits
from assay.unlearn.datamodel_direct import DatamodelDirect
from assay.unlearn.datamodel_matching import DatamodelMatching
from assay.unlearn.esd import ESD, esd_loss, esd_target
from assay.unlearn.evaluation import Evaluation, evaluate
from assay.unlearn.evaluation_relearn import relearn_steps
from assay.unlearn.evaluation_rows import forgetting, mia_efficacy
from assay.unlearn.finetune import FineTune
from assay.unlearn.fisher import FisherForgetting, fisher_diagonal
from assay.unlearn.forget_sets import field_set, random_set, sub_class_set, sub_classes
from assay.unlearn.gaussian_amnesiac import GaussianAmnesiac
from assay.unlearn.influence import InfluenceUnlearn, fisher_solve, running_solve
from assay.unlearn.klom import klom, margins
from assay.unlearn.l1_sparse import L1SparseUnlearn, near_zero
from assay.unlearn.laf import LAF, laf_alignment_loss, laf_extractor_loss, supervised_repair
from assay.unlearn.last_layers import CFk, EUk
from assay.unlearn.manif_smc import ManifoldForgotten, ManiFSMC
from assay.unlearn.mode_connectivity import Curve, SelfModeConnectivity
from assay.unlearn.modhifi import ModHiFiU
from assay.unlearn.neg_grad import NegGrad
from assay.unlearn.neg_grad_plus import NegGradPlus
from assay.unlearn.neighbourhoods import Neighbourhoods, manifold_triplet_loss
from assay.unlearn.oracle_matching import OracleMatching
from assay.unlearn.prune_first import PruneFirstThenUnlearn, SparseForgotten
from assay.unlearn.random_label import RandomLabel
from assay.unlearn.references import trained
from assay.unlearn.regression import (
    anamnesis_index,
    attack_probability,
    prediction_wasserstein,
    regression_unlearning_report,
)
from assay.unlearn.representation_vae import RepresentationVAE
from assay.unlearn.retrain import Retrain
from assay.unlearn.saliency import weight_saliency_mask
from assay.unlearn.salun import Salient, SalUn
from assay.unlearn.salun_diffusion import SalUnDiffusion
from assay.unlearn.scrub import SCRUB
from assay.unlearn.sign_sgd import SignSGD
from assay.unlearn.sisa import SISA
from assay.unlearn.soft_salun import SoftSalUn
from assay.unlearn.sparse_bound import ErrorBound, masked_curvature, unlearning_error_bound
from assay.unlearn.ssd import SelectiveSynapticDampening, importances
from assay.unlearn.ulira import ULiRAResult, ulira
from assay.unlearn.worst_case import ForgetSet, WorstCaseForgetSet, random_forget_sets, stress_test

__all__ = [
    "AdaptThenUnlearn",
    "AdvUnlearn",
    "BadTeacher",
    "BlindspotUnlearn",
    "BoundaryShrink",
    "CFk",
    "CorrectiveBenchmark",
    "Curve",
    "DatamodelDirect",
    "DatamodelMatching",
    "ESD",
    "EUk",
    "ErrorBound",
    "Evaluation",
    "FineTune",
    "FisherForgetting",
    "ForgetSet",
    "GaussianAmnesiac",
    "InfluenceUnlearn",
    "L1SparseUnlearn",
    "LAF",
    "ManiFSMC",
    "ManifoldForgotten",
    "Manipulated",
    "ModHiFiU",
    "NegGrad",
    "NegGradPlus",
    "Neighbourhoods",
    "OracleMatching",
    "PruneFirstThenUnlearn",
    "RandomLabel",
    "RepresentationVAE",
    "Retrain",
    "SCRUB",
    "SISA",
    "SalUn",
    "SalUnDiffusion",
    "Salient",
    "SelectiveSynapticDampening",
    "SelfModeConnectivity",
    "SignSGD",
    "SoftSalUn",
    "SparseForgotten",
    "ULiRAResult",
    "Unlearner",
    "WorstCaseForgetSet",
    "anamnesis_index",
    "attack_probability",
    "attention_distance",
    "collect_feedback",
    "corrective_report",
    "datamodel_logits",
    "esd_loss",
    "esd_target",
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
    "laf_alignment_loss",
    "laf_extractor_loss",
    "manifold_triplet_loss",
    "manipulate",
    "margins",
    "masked_curvature",
    "mia_efficacy",
    "near_zero",
    "percent_unlearned",
    "prediction_wasserstein",
    "project_capped_simplex",
    "random_forget_sets",
    "random_set",
    "regression_unlearning_report",
    "relearn_steps",
    "repulsion",
    "running_solve",
    "score_fisher",
    "stress_test",
    "sub_class_set",
    "sub_classes",
    "supervised_repair",
    "trained",
    "ulira",
    "unlearning_error_bound",
    "weight_distance",
    "weight_saliency_mask",
]
