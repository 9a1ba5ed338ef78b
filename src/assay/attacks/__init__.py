"""Everything that perturbs an input to fool a model: gradient and query engines, the attacks on them, and streams."""

from assay.attacks.adversarial_distillation import AdversarialDistillation
from assay.attacks.apgd import APGD
from assay.attacks.attack_operator import AttackOperator, Direction
from assay.attacks.autoattack import AutoAttack
from assay.attacks.balls import L1, L2, Ball, Linf
from assay.attacks.base import Attack, AttackResult, Goal, Ordered, Targeted, Toward, Untargeted
from assay.attacks.boundary import BoundaryAttack
from assay.attacks.carliniwagner import CarliniWagner
from assay.attacks.cgba import CGBA, CGBAH
from assay.attacks.channel_energy import (
    keep_channels,
    perturbation_energy_by_channel,
    perturbation_size_by_channel,
    white_noise_energy,
)
from assay.attacks.cw_topk import CWTopK
from assay.attacks.ddn import DDN
from assay.attacks.deepfool import DeepFool
from assay.attacks.difgsm import DIFGSM
from assay.attacks.engine import GradientAttack
from assay.attacks.fab import FAB
from assay.attacks.fast_feature_fool import FastFeatureFool
from assay.attacks.fgsm import FGSM
from assay.attacks.fmn import FMN
from assay.attacks.gd_uap import GDUAP
from assay.attacks.hopskipjump import HopSkipJump
from assay.attacks.mifgsm import MIFGSM
from assay.attacks.motion import (
    SMIFGSM,
    TVAR,
    FittedNoBox,
    FittedTVAR,
    Imperceptibility,
    NoBoxAttack,
    NoBoxLoss,
    NoBoxManifoldAttack,
    RandomSigns,
    SkeletonMoCo,
    SMIGradient,
    imperceptibility,
    motion_responses,
    smi,
)
from assay.attacks.nearest import NearestAttack
from assay.attacks.nifgsm import NIFGSM
from assay.attacks.noise import RandomNoise
from assay.attacks.online import (
    OfflineTopK,
    OnlineAttack,
    OnlinePicker,
    Optimistic,
    Picker,
    RandomK,
    SingleRef,
    Stream,
    Virtual,
    VirtualPlus,
    attack_values,
    capacity_curve,
    competitive_ratio,
    competitive_ratios,
    optimal_threshold,
    run_stream,
    virtual_plus_limit,
    virtual_plus_ratio,
    virtual_ratio,
)
from assay.attacks.ordered_qp import OrderedQP, ordered_constraints, project_ordered
from assay.attacks.penalty import PenaltyAttack, sample_targets
from assay.attacks.pgd import PGD
from assay.attacks.quadattack import QuadAttack
from assay.attacks.scores import ScoreSearch
from assay.attacks.square import Square
from assay.attacks.tifgsm import TIFGSM
from assay.attacks.universal import ActivationAttack, Perturbation, fooling_rate, generalized_fooling_rate
from assay.attacks.ychannel import YChannelAttack

__all__ = [
    "APGD",
    "ActivationAttack",
    "AdversarialDistillation",
    "Attack",
    "AttackOperator",
    "AttackResult",
    "AutoAttack",
    "Ball",
    "BoundaryAttack",
    "CGBA",
    "CGBAH",
    "CWTopK",
    "CarliniWagner",
    "DDN",
    "DIFGSM",
    "DeepFool",
    "Direction",
    "FAB",
    "FGSM",
    "FMN",
    "FastFeatureFool",
    "FittedNoBox",
    "FittedTVAR",
    "GDUAP",
    "Goal",
    "GradientAttack",
    "HopSkipJump",
    "Imperceptibility",
    "L1",
    "L2",
    "Linf",
    "MIFGSM",
    "NIFGSM",
    "NearestAttack",
    "NoBoxAttack",
    "NoBoxLoss",
    "NoBoxManifoldAttack",
    "OfflineTopK",
    "OnlineAttack",
    "OnlinePicker",
    "Optimistic",
    "Ordered",
    "OrderedQP",
    "PGD",
    "PenaltyAttack",
    "Perturbation",
    "Picker",
    "QuadAttack",
    "RandomK",
    "RandomNoise",
    "RandomSigns",
    "SMIFGSM",
    "SMIGradient",
    "ScoreSearch",
    "SingleRef",
    "SkeletonMoCo",
    "Square",
    "Stream",
    "TIFGSM",
    "TVAR",
    "Targeted",
    "Toward",
    "Untargeted",
    "Virtual",
    "VirtualPlus",
    "YChannelAttack",
    "attack_values",
    "capacity_curve",
    "competitive_ratio",
    "competitive_ratios",
    "fooling_rate",
    "generalized_fooling_rate",
    "imperceptibility",
    "keep_channels",
    "motion_responses",
    "optimal_threshold",
    "ordered_constraints",
    "perturbation_energy_by_channel",
    "perturbation_size_by_channel",
    "project_ordered",
    "run_stream",
    "sample_targets",
    "smi",
    "virtual_plus_limit",
    "virtual_plus_ratio",
    "virtual_ratio",
    "white_noise_energy",
]
