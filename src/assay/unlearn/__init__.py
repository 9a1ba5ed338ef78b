"""Unlearning: models that forget some of their training samples."""

from assay.unlearn.base import Unlearner, forget_set
from assay.unlearn.finetune import FineTune
from assay.unlearn.neg_grad import NegGrad
from assay.unlearn.retrain import Retrain

__all__ = ["FineTune", "NegGrad", "Retrain", "Unlearner", "forget_set"]
