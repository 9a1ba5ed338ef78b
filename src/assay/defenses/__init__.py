"""Training that hardens a model against attacks, and what it has to hold against."""

from assay.defenses.adaptive_smoothing import AdaptiveMixedClassifier, MixingTraining
from assay.defenses.adv_store import AdvStore, generate
from assay.defenses.denoisers import ConvDecoder, ConvEncoder, DenoiseMap, DnCNN
from assay.defenses.filters import BitDepth, Blur, Jpeg, Median
from assay.defenses.mixed_classifier import MixedClassifier, MixtureScan
from assay.defenses.mixing_net import MixingNet
from assay.defenses.mixture_attack import RandomisedPGD
from assay.defenses.mixture_radius import certified_radius_lipschitz, certified_radius_smoothing
from assay.defenses.pgd_training import PGDTraining
from assay.defenses.pubdef import PubDef
from assay.defenses.purifier import InputMap, Purified, Purifier
from assay.defenses.select_sources import select_sources, transfer_error
from assay.defenses.tapm import Similarity, TAPMEvaluation, TAPMResult, perturbation_similarity
from assay.defenses.trades import TRADES
from assay.defenses.zo import cge_gradient, rge_gradient, zo_surrogate_loss
from assay.defenses.zo_ae_ds import Denoised, DenoisedSmoothing, ZOAEDenoisedSmoothing

__all__ = [
    "AdaptiveMixedClassifier",
    "AdvStore",
    "BitDepth",
    "Blur",
    "ConvDecoder",
    "ConvEncoder",
    "DenoiseMap",
    "Denoised",
    "DenoisedSmoothing",
    "DnCNN",
    "InputMap",
    "Jpeg",
    "Median",
    "MixedClassifier",
    "MixingNet",
    "MixingTraining",
    "MixtureScan",
    "PGDTraining",
    "PubDef",
    "Purified",
    "Purifier",
    "RandomisedPGD",
    "Similarity",
    "TAPMEvaluation",
    "TAPMResult",
    "TRADES",
    "ZOAEDenoisedSmoothing",
    "certified_radius_lipschitz",
    "certified_radius_smoothing",
    "cge_gradient",
    "generate",
    "perturbation_similarity",
    "rge_gradient",
    "select_sources",
    "transfer_error",
    "zo_surrogate_loss",
]
