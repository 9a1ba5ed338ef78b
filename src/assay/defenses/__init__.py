"""Training that hardens a model against attacks."""

from assay.defenses.pgd_training import PGDTraining
from assay.defenses.trades import TRADES

__all__ = ["PGDTraining", "TRADES"]
