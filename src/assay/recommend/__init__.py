"""Sequential recommenders, and the extraction of one from the lists that it gives."""

from assay.recommend.augmentation import AugmentationGeneration, UserModel, learn_user
from assay.recommend.autoregressive_generation import AutoregressiveGeneration
from assay.recommend.base import Extraction, Extractor
from assay.recommend.bert4rec import BERT4Rec
from assay.recommend.extraction import FewShotExtraction
from assay.recommend.few_shot import FewShot, few_shot_counts, normalised_ratings
from assay.recommend.generation import Answers, Asked, Generation
from assay.recommend.interaction_sampler import ProbabilisticInteractionSampler
from assay.recommend.items import agreement_at_k, ndcg_at_k, padded, prefixes, recall_at_k, windows
from assay.recommend.movielens import Interactions, load_movielens
from assay.recommend.narm import NARM
from assay.recommend.random_generation import RandomGeneration
from assay.recommend.ranking_loss import ListRankingLoss
from assay.recommend.recommender import Recommender, train_next_item
from assay.recommend.repair_loss import BidirectionalRepairLoss
from assay.recommend.sasrec import SASRec
from assay.recommend.synthesis_signal import SynthesisSignal

__all__ = [
    "AugmentationGeneration",
    "Answers",
    "Asked",
    "AutoregressiveGeneration",
    "BERT4Rec",
    "BidirectionalRepairLoss",
    "Extraction",
    "Extractor",
    "FewShot",
    "FewShotExtraction",
    "Generation",
    "Interactions",
    "ListRankingLoss",
    "NARM",
    "ProbabilisticInteractionSampler",
    "RandomGeneration",
    "Recommender",
    "SASRec",
    "SynthesisSignal",
    "UserModel",
    "agreement_at_k",
    "few_shot_counts",
    "learn_user",
    "load_movielens",
    "ndcg_at_k",
    "normalised_ratings",
    "padded",
    "prefixes",
    "recall_at_k",
    "train_next_item",
    "windows",
]
