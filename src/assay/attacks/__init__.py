"""Everything that perturbs an input to fool a model: gradient and query engines, the attacks on them, and streams."""

from assay.attacks.adversarial_distillation import AdversarialDistillation
from assay.attacks.apgd import APGD
from assay.attacks.architecture_sensitivity import ArchitectureSensitivity, architecture_sensitivity
from assay.attacks.attack_operator import AttackOperator, Direction
from assay.attacks.autoattack import AutoAttack
from assay.attacks.backdoor import badnets, blended, poison, sinusoidal, wanet_like
from assay.attacks.balls import L1, L2, Ball, Linf
from assay.attacks.base import Attack, AttackResult, Goal, Ordered, Targeted, Toward, Untargeted
from assay.attacks.boundary import BoundaryAttack
from assay.attacks.caption_similarity import bleu, caption_similarity
from assay.attacks.carliniwagner import CarliniWagner
from assay.attacks.cgba import CGBA, CGBAH
from assay.attacks.channel_energy import (
    keep_channels,
    perturbation_energy_by_channel,
    perturbation_size_by_channel,
    white_noise_energy,
)
from assay.attacks.common_weakness import WeaknessStats, common_weakness_stats, gradient_cosine
from assay.attacks.cse_mi import CSE_MI
from assay.attacks.cw_topk import CWTopK
from assay.attacks.cwa import CWA
from assay.attacks.d_patch import DPatch
from assay.attacks.ddn import DDN
from assay.attacks.deepfool import DeepFool
from assay.attacks.difgsm import DIFGSM
from assay.attacks.encoder import EncoderAttack, EncoderAttackResult
from assay.attacks.engine import GradientAttack
from assay.attacks.ensemble import Ensemble, EnsembleAttack
from assay.attacks.fab import FAB
from assay.attacks.fast_feature_fool import FastFeatureFool
from assay.attacks.fgsm import FGSM
from assay.attacks.fmn import FMN
from assay.attacks.gd_uap import GDUAP
from assay.attacks.hopskipjump import HopSkipJump
from assay.attacks.image_encoder import find_image_encoder
from assay.attacks.interpretation_preserving import InterpretationPreservingMIFGSM
from assay.attacks.logit_gaps import LogitGapDistribution, logit_gaps
from assay.attacks.microbial import Evolved, MicrobialGA
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
from assay.attacks.patch import Detector, PatchAttack, PatchScenes, box_iou
from assay.attacks.penalty import PenaltyAttack, sample_targets
from assay.attacks.pgd import PGD
from assay.attacks.power_law import PowerLaw, fit_power_law
from assay.attacks.predicted_error import flip_distance, predicted_error
from assay.attacks.prompt import EmbeddingPromptAttack, TextToImage, concept_attack_success
from assay.attacks.quadattack import QuadAttack
from assay.attacks.quantization import Planted, QuantizationAttack
from assay.attacks.quscore import QuScore
from assay.attacks.rp2_patch import RP2Patch
from assay.attacks.sam_mi import SAM_MI
from assay.attacks.scaling import ScalingResult, adversarial_scaling
from assay.attacks.scores import ScoreSearch
from assay.attacks.square import Square
from assay.attacks.surrogates import (
    BNNTransferAttack,
    CyclicalSGLD,
    DeepEnsembleSurrogate,
    Langevin,
    SnapshotSurrogate,
    Surrogate,
    Surrogates,
    SWAGSurrogate,
    cosine_cycle,
    deep_ensemble_equivalent,
    transfer_success,
)
from assay.attacks.tabular import Columns, TabularL2, TabularLinf, TabularPGD, TabularSearch
from assay.attacks.tifgsm import TIFGSM
from assay.attacks.trigger import stamp
from assay.attacks.universal import ActivationAttack, Perturbation, fooling_rate, generalized_fooling_rate
from assay.attacks.ychannel import YChannelAttack

__all__ = [
    "Columns",
    "APGD",
    "ActivationAttack",
    "AdversarialDistillation",
    "ArchitectureSensitivity",
    "Attack",
    "AttackOperator",
    "AttackResult",
    "AutoAttack",
    "BNNTransferAttack",
    "Ball",
    "BoundaryAttack",
    "CGBA",
    "CGBAH",
    "CSE_MI",
    "CWA",
    "CWTopK",
    "CarliniWagner",
    "CyclicalSGLD",
    "DDN",
    "DIFGSM",
    "DPatch",
    "DeepEnsembleSurrogate",
    "DeepFool",
    "Detector",
    "Direction",
    "EmbeddingPromptAttack",
    "EncoderAttack",
    "EncoderAttackResult",
    "Ensemble",
    "EnsembleAttack",
    "Evolved",
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
    "InterpretationPreservingMIFGSM",
    "L1",
    "L2",
    "Langevin",
    "Linf",
    "LogitGapDistribution",
    "MIFGSM",
    "MicrobialGA",
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
    "PatchAttack",
    "PatchScenes",
    "PenaltyAttack",
    "Perturbation",
    "Picker",
    "Planted",
    "PowerLaw",
    "QuScore",
    "QuadAttack",
    "QuantizationAttack",
    "RP2Patch",
    "RandomK",
    "RandomNoise",
    "RandomSigns",
    "SAM_MI",
    "SMIFGSM",
    "SMIGradient",
    "SWAGSurrogate",
    "ScalingResult",
    "ScoreSearch",
    "SingleRef",
    "SkeletonMoCo",
    "SnapshotSurrogate",
    "Square",
    "Stream",
    "Surrogate",
    "Surrogates",
    "TIFGSM",
    "TVAR",
    "TabularL2",
    "TabularLinf",
    "TabularPGD",
    "TabularSearch",
    "Targeted",
    "TextToImage",
    "Toward",
    "Untargeted",
    "Virtual",
    "VirtualPlus",
    "WeaknessStats",
    "YChannelAttack",
    "adversarial_scaling",
    "architecture_sensitivity",
    "attack_values",
    "badnets",
    "blended",
    "bleu",
    "box_iou",
    "capacity_curve",
    "caption_similarity",
    "common_weakness_stats",
    "competitive_ratio",
    "competitive_ratios",
    "concept_attack_success",
    "cosine_cycle",
    "deep_ensemble_equivalent",
    "find_image_encoder",
    "fit_power_law",
    "flip_distance",
    "fooling_rate",
    "generalized_fooling_rate",
    "gradient_cosine",
    "imperceptibility",
    "keep_channels",
    "logit_gaps",
    "motion_responses",
    "optimal_threshold",
    "ordered_constraints",
    "perturbation_energy_by_channel",
    "perturbation_size_by_channel",
    "poison",
    "predicted_error",
    "project_ordered",
    "run_stream",
    "sample_targets",
    "sinusoidal",
    "smi",
    "stamp",
    "transfer_success",
    "virtual_plus_limit",
    "virtual_plus_ratio",
    "virtual_ratio",
    "wanet_like",
    "white_noise_energy",
]
