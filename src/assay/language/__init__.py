"""Text as it is seen: characters that look alike, words perturbed by them, and how legible those are."""

from assay.language.cadv_ipo import CAdvIPO, preference_loss
from assay.language.cadv_ul import CAdvUL
from assay.language.embedding_attack import EmbeddingAttack
from assay.language.gcg import GCG
from assay.language.legibility_baselines import distance_score, edit_score, parameter_score
from assay.language.legibility_loss import LegibilityLoss
from assay.language.legibility_metrics import legibility_metrics
from assay.language.legibility_model import FittedLegibility, LegibilityModel, LegibilityPair
from assay.language.legible_attack import LegibleAttack
from assay.language.replies import Replies, complies, reply_logits, token_logps
from assay.language.similarity_space import FittedSpace, SimilaritySpace
from assay.language.visual_perturber import Perturbation, Substitution, VisualPerturber
from assay.language.word_renderer import WordRenderer

__all__ = [
    "CAdvIPO",
    "CAdvUL",
    "EmbeddingAttack",
    "FittedLegibility",
    "FittedSpace",
    "GCG",
    "LegibilityLoss",
    "LegibilityModel",
    "LegibilityPair",
    "LegibleAttack",
    "Perturbation",
    "Replies",
    "SimilaritySpace",
    "Substitution",
    "VisualPerturber",
    "WordRenderer",
    "complies",
    "distance_score",
    "edit_score",
    "legibility_metrics",
    "parameter_score",
    "preference_loss",
    "reply_logits",
    "token_logps",
]
