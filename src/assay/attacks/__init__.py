"""Everything that perturbs an input to fool a model: the gradient engine, the query engine, and the attacks on them."""

from assay.attacks.balls import L1, L2, Ball, Linf
from assay.attacks.base import Attack, AttackResult, Goal, Ordered, Targeted, Untargeted
from assay.attacks.boundary import BoundaryAttack
from assay.attacks.cgba import CGBA, CGBAH
from assay.attacks.engine import GradientAttack
from assay.attacks.fgsm import FGSM
from assay.attacks.hopskipjump import HopSkipJump
from assay.attacks.noise import RandomNoise
from assay.attacks.pgd import PGD
from assay.attacks.square import Square

__all__ = [
    "CGBA",
    "CGBAH",
    "FGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "Ball",
    "BoundaryAttack",
    "Goal",
    "GradientAttack",
    "HopSkipJump",
    "L1",
    "L2",
    "Linf",
    "Ordered",
    "RandomNoise",
    "Square",
    "Targeted",
    "Untargeted",
]
