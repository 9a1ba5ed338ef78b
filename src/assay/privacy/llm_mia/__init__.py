"""Which texts a language model was trained on."""

from assay.privacy.llm_mia.a_lora_mia import ALoRaMIA
from assay.privacy.llm_mia.base import TextInference
from assay.privacy.llm_mia.f_lora_mia import FLoRaMIA
from assay.privacy.llm_mia.grad_norm_mia import GradNormMIA
from assay.privacy.llm_mia.gradient_features import gradient_features
from assay.privacy.llm_mia.loss_mia import LossMIA
from assay.privacy.llm_mia.min_k_mia import MinKMIA
from assay.privacy.llm_mia.model_stealing import FittedModelStealing, ModelStealing
from assay.privacy.llm_mia.rates import membership_rates, tpr_at_fpr
from assay.privacy.llm_mia.supervised_mia import FittedSupervisedMIA, SupervisedMIA
from assay.privacy.llm_mia.zlib_mia import ZlibLoRaMIA, ZlibMIA

__all__ = [
    "ALoRaMIA",
    "FLoRaMIA",
    "FittedModelStealing",
    "FittedSupervisedMIA",
    "GradNormMIA",
    "LossMIA",
    "MinKMIA",
    "ModelStealing",
    "SupervisedMIA",
    "TextInference",
    "ZlibLoRaMIA",
    "ZlibMIA",
    "gradient_features",
    "membership_rates",
    "tpr_at_fpr",
]
