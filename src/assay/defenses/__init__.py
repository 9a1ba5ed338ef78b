"""Training that hardens a model against attacks, and what it has to hold against."""

from assay.defenses.adv_store import AdvStore, generate
from assay.defenses.bilevel_at import implicit_hypergradient, log_barrier_attack
from assay.defenses.done import DONE
from assay.defenses.filters import BitDepth, Blur, Jpeg, Median
from assay.defenses.pgd_training import PGDTraining
from assay.defenses.pubdef import PubDef
from assay.defenses.purifier import InputMap, Purified, Purifier
from assay.defenses.select_sources import select_sources, transfer_error
from assay.defenses.srat import SRAT
from assay.defenses.tail_accuracy import TailAccuracy, tail_robust_accuracy
from assay.defenses.tapm import Similarity, TAPMEvaluation, TAPMResult, perturbation_similarity
from assay.defenses.trades import TRADES

__all__ = [
    "AdvStore",
    "BitDepth",
    "Blur",
    "DONE",
    "InputMap",
    "Jpeg",
    "Median",
    "PGDTraining",
    "PubDef",
    "Purified",
    "Purifier",
    "SRAT",
    "Similarity",
    "TAPMEvaluation",
    "TAPMResult",
    "TRADES",
    "TailAccuracy",
    "generate",
    "implicit_hypergradient",
    "log_barrier_attack",
    "perturbation_similarity",
    "select_sources",
    "tail_robust_accuracy",
    "transfer_error",
]
