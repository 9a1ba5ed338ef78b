"""The training engine and the trainers that are plain supervised learning."""

from assay.training.engine import Plan, Player, State, fit, fit_players
from assay.training.trainer import Supervised, Trainer

__all__ = ["Plan", "Player", "State", "Supervised", "Trainer", "fit", "fit_players"]
