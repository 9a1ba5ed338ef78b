"""Training that hardens a model against attacks, and what it has to hold against."""

from assay.defenses.adv_store import AdvStore, generate
from assay.defenses.fal_theory import FALTheoryReport, fal_theory_report
from assay.defenses.fedavg import FedAvg, Federation, fedavg
from assay.defenses.federated_at import FederatedAT
from assay.defenses.filters import BitDepth, Blur, Jpeg, Median
from assay.defenses.pgd_training import PGDTraining
from assay.defenses.pubdef import PubDef
from assay.defenses.purifier import InputMap, Purified, Purifier
from assay.defenses.select_sources import select_sources, transfer_error
from assay.defenses.tapm import Similarity, TAPMEvaluation, TAPMResult, perturbation_similarity
from assay.defenses.trades import TRADES

__all__ = [
    "AdvStore",
    "BitDepth",
    "Blur",
    "FALTheoryReport",
    "FedAvg",
    "FederatedAT",
    "Federation",
    "InputMap",
    "Jpeg",
    "Median",
    "PGDTraining",
    "PubDef",
    "Purified",
    "Purifier",
    "Similarity",
    "TAPMEvaluation",
    "TAPMResult",
    "TRADES",
    "fal_theory_report",
    "fedavg",
    "generate",
    "perturbation_similarity",
    "select_sources",
    "transfer_error",
]
