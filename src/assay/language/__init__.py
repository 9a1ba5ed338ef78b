"""Text as it is seen: characters that look alike, words perturbed by them, and how legible those are."""

from assay.language.cadv_ipo import CAdvIPO, preference_loss
from assay.language.cadv_ul import CAdvUL
from assay.language.embedding_attack import EmbeddingAttack
from assay.language.gcg import GCG
from assay.language.grad_ascent import GradAscent
from assay.language.grad_diff import GradDiff, reply_divergence
from assay.language.legibility_baselines import distance_score, edit_score, parameter_score
from assay.language.legibility_loss import LegibilityLoss
from assay.language.legibility_metrics import legibility_metrics
from assay.language.legibility_model import FittedLegibility, LegibilityModel, LegibilityPair
from assay.language.legible_attack import LegibleAttack
from assay.language.npo import NPO
from assay.language.replies import Replies, complies, reply_logits, token_logps
from assay.language.reply_unlearner import ReplyUnlearner, mean_nll
from assay.language.rmu import RMU, control_vector
from assay.language.similarity_space import FittedSpace, SimilaritySpace
from assay.language.unlearning_scores import (
    exact_memorization,
    extraction_strength,
    forget_quality,
    probability,
    tofu_evaluation,
    truth_ratio,
    write_evaluation,
)
from assay.language.visual_perturber import Perturbation, Substitution, VisualPerturber
from assay.language.word_renderer import WordRenderer

__all__ = [
    "CAdvIPO",
    "CAdvUL",
    "EmbeddingAttack",
    "FittedLegibility",
    "FittedSpace",
    "GCG",
    "GradAscent",
    "GradDiff",
    "LegibilityLoss",
    "LegibilityModel",
    "LegibilityPair",
    "LegibleAttack",
    "NPO",
    "Perturbation",
    "RMU",
    "Replies",
    "ReplyUnlearner",
    "SimilaritySpace",
    "Substitution",
    "VisualPerturber",
    "WordRenderer",
    "complies",
    "control_vector",
    "distance_score",
    "edit_score",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "legibility_metrics",
    "mean_nll",
    "parameter_score",
    "preference_loss",
    "probability",
    "reply_divergence",
    "reply_logits",
    "tofu_evaluation",
    "token_logps",
    "truth_ratio",
    "write_evaluation",
]
