"""Training that hardens a model against attacks, and what it has to hold against."""

from assay.defenses.aaer import AAER
from assay.defenses.adv_store import AdvStore, generate
from assay.defenses.awp import AWP
from assay.defenses.filters import BitDepth, Blur, Jpeg, Median
from assay.defenses.gairat import GAIRAT, gairat_weights
from assay.defenses.grad_align import GradAlign
from assay.defenses.mail import MAIL, mail_weights
from assay.defenses.mart import MART
from assay.defenses.pgd_training import PGDTraining
from assay.defenses.pubdef import PubDef
from assay.defenses.purifier import InputMap, Purified, Purifier
from assay.defenses.robust_sgld import RobustSGLD
from assay.defenses.select_sources import select_sources, transfer_error
from assay.defenses.single_step import SingleStepAT
from assay.defenses.tapm import Similarity, TAPMEvaluation, TAPMResult, perturbation_similarity
from assay.defenses.trades import TRADES
from assay.defenses.weat import WEAT

__all__ = [
    "AAER",
    "AWP",
    "AdvStore",
    "BitDepth",
    "Blur",
    "GAIRAT",
    "GradAlign",
    "InputMap",
    "Jpeg",
    "MAIL",
    "MART",
    "Median",
    "PGDTraining",
    "PubDef",
    "Purified",
    "Purifier",
    "RobustSGLD",
    "Similarity",
    "SingleStepAT",
    "TAPMEvaluation",
    "TAPMResult",
    "TRADES",
    "WEAT",
    "gairat_weights",
    "generate",
    "mail_weights",
    "perturbation_similarity",
    "select_sources",
    "transfer_error",
]
