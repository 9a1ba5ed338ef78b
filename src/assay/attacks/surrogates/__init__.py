"""Surrogates for attacks that transfer: several networks from one or from many trainings, and attacks on them."""

from assay.attacks.surrogates.base import Surrogate, Surrogates
from assay.attacks.surrogates.bnn_transfer import BNNTransferAttack
from assay.attacks.surrogates.cyclical_sgld import CyclicalSGLD
from assay.attacks.surrogates.deep_ensemble import DeepEnsembleSurrogate
from assay.attacks.surrogates.langevin import Langevin, cosine_cycle
from assay.attacks.surrogates.measures import deep_ensemble_equivalent, transfer_success
from assay.attacks.surrogates.snapshot import SnapshotSurrogate
from assay.attacks.surrogates.swag import SWAGSurrogate

__all__ = [
    "BNNTransferAttack",
    "CyclicalSGLD",
    "DeepEnsembleSurrogate",
    "Langevin",
    "SWAGSurrogate",
    "SnapshotSurrogate",
    "Surrogate",
    "Surrogates",
    "cosine_cycle",
    "deep_ensemble_equivalent",
    "transfer_success",
]
