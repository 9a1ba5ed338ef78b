"""Training that hardens a model against attacks, and what it has to hold against."""

from assay.defenses.aaer import AAER
from assay.defenses.adaptive_smoothing import AdaptiveMixedClassifier, MixingTraining
from assay.defenses.adv_comp_sum import AdvCompSum
from assay.defenses.adv_store import AdvStore, generate
from assay.defenses.awp import AWP
from assay.defenses.bilevel_at import implicit_hypergradient, log_barrier_attack
from assay.defenses.camera_networks import LearnedISP, RGBToRawNet
from assay.defenses.denoisers import ConvDecoder, ConvEncoder, DenoiseMap, DnCNN
from assay.defenses.done import DONE
from assay.defenses.fal_theory import FALTheoryReport, fal_theory_report
from assay.defenses.fedavg import FedAvg, Federation, fedavg
from assay.defenses.federated_at import FederatedAT
from assay.defenses.filters import BitDepth, Blur, Jpeg, Median
from assay.defenses.gairat import GAIRAT, gairat_weights
from assay.defenses.grad_align import GradAlign
from assay.defenses.mail import MAIL, mail_weights
from assay.defenses.mart import MART
from assay.defenses.mixed_classifier import MixedClassifier, MixtureScan
from assay.defenses.mixing_net import MixingNet
from assay.defenses.mixture_attack import RandomisedPGD
from assay.defenses.mixture_radius import certified_radius_lipschitz, certified_radius_smoothing
from assay.defenses.pgd_training import PGDTraining
from assay.defenses.pubdef import PubDef
from assay.defenses.purifier import InputMap, Purified, Purifier
from assay.defenses.raw_isp import RawDefense, RawDefenseMap, edge_error, image_noise
from assay.defenses.resupnet import ResUpNet
from assay.defenses.robust_sgld import RobustSGLD
from assay.defenses.select_sources import select_sources, transfer_error
from assay.defenses.single_step import SingleStepAT
from assay.defenses.srat import SRAT
from assay.defenses.tail_accuracy import TailAccuracy, tail_robust_accuracy
from assay.defenses.tapm import Similarity, TAPMEvaluation, TAPMResult, perturbation_similarity
from assay.defenses.trades import TRADES
from assay.defenses.weat import WEAT
from assay.defenses.zo import cge_gradient, rge_gradient, zo_surrogate_loss
from assay.defenses.zo_ae_ds import Denoised, DenoisedSmoothing, ZOAEDenoisedSmoothing

__all__ = [
    "AAER",
    "AWP",
    "AdaptiveMixedClassifier",
    "AdvCompSum",
    "AdvStore",
    "BitDepth",
    "Blur",
    "ConvDecoder",
    "ConvEncoder",
    "DONE",
    "DenoiseMap",
    "Denoised",
    "DenoisedSmoothing",
    "DnCNN",
    "FALTheoryReport",
    "FedAvg",
    "FederatedAT",
    "Federation",
    "GAIRAT",
    "GradAlign",
    "InputMap",
    "Jpeg",
    "LearnedISP",
    "MAIL",
    "MART",
    "Median",
    "MixedClassifier",
    "MixingNet",
    "MixingTraining",
    "MixtureScan",
    "PGDTraining",
    "PubDef",
    "Purified",
    "Purifier",
    "RGBToRawNet",
    "RandomisedPGD",
    "RawDefense",
    "RawDefenseMap",
    "ResUpNet",
    "RobustSGLD",
    "SRAT",
    "Similarity",
    "SingleStepAT",
    "TAPMEvaluation",
    "TAPMResult",
    "TRADES",
    "TailAccuracy",
    "WEAT",
    "ZOAEDenoisedSmoothing",
    "certified_radius_lipschitz",
    "certified_radius_smoothing",
    "cge_gradient",
    "fal_theory_report",
    "fedavg",
    "gairat_weights",
    "edge_error",
    "generate",
    "image_noise",
    "implicit_hypergradient",
    "log_barrier_attack",
    "mail_weights",
    "perturbation_similarity",
    "rge_gradient",
    "select_sources",
    "tail_robust_accuracy",
    "transfer_error",
    "zo_surrogate_loss",
]
