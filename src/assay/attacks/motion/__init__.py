"""Attacks on motions: gradients that know how frames depend on each other, and attacks with no victim at hand."""

from assay.attacks.motion.base import FittedNoBox, NoBoxAttack
from assay.attacks.motion.imperceptibility import Imperceptibility, imperceptibility
from assay.attacks.motion.nobox_loss import NoBoxLoss
from assay.attacks.motion.nobox_manifold import NoBoxManifoldAttack
from assay.attacks.motion.random_signs import RandomSigns
from assay.attacks.motion.skeleton_moco import SkeletonMoCo
from assay.attacks.motion.smi import SMIGradient, motion_responses, smi
from assay.attacks.motion.smi_fgsm import SMIFGSM
from assay.attacks.motion.tvar import TVAR, FittedTVAR

__all__ = [
    "FittedNoBox",
    "FittedTVAR",
    "Imperceptibility",
    "NoBoxAttack",
    "NoBoxLoss",
    "NoBoxManifoldAttack",
    "RandomSigns",
    "SMIFGSM",
    "SMIGradient",
    "SkeletonMoCo",
    "TVAR",
    "imperceptibility",
    "motion_responses",
    "smi",
]
