"""Which k of the n items of a stream to attack, decided one by one (Mladenovic et al., 2021, arXiv:2103.02014)."""

from assay.attacks.online.attack import OnlineAttack, attack_values
from assay.attacks.online.base import OnlinePicker, Picker, Stream, run_stream
from assay.attacks.online.offline import OfflineTopK
from assay.attacks.online.optimistic import Optimistic
from assay.attacks.online.random_k import RandomK
from assay.attacks.online.ratio import (
    capacity_curve,
    competitive_ratio,
    competitive_ratios,
    optimal_threshold,
    virtual_plus_limit,
    virtual_plus_ratio,
    virtual_ratio,
)
from assay.attacks.online.single_ref import SingleRef
from assay.attacks.online.virtual import Virtual
from assay.attacks.online.virtual_plus import VirtualPlus

__all__ = [
    "OfflineTopK",
    "OnlineAttack",
    "OnlinePicker",
    "Optimistic",
    "Picker",
    "RandomK",
    "SingleRef",
    "Stream",
    "Virtual",
    "VirtualPlus",
    "attack_values",
    "capacity_curve",
    "competitive_ratio",
    "competitive_ratios",
    "optimal_threshold",
    "run_stream",
    "virtual_plus_limit",
    "virtual_plus_ratio",
    "virtual_ratio",
]
