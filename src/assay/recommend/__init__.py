"""Sequential recommenders, the extraction of one from the lists that it gives, and dual encoders for retrieval."""

from assay.recommend.augmentation import AugmentationGeneration, UserModel, learn_user
from assay.recommend.autoregressive_generation import AutoregressiveGeneration
from assay.recommend.base import Extraction, Extractor
from assay.recommend.bert4rec import BERT4Rec
from assay.recommend.dual_encoder import DualEncoder
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
from assay.recommend.retrieval import (
    Separation,
    global_auc,
    mean_reciprocal_rank,
    pairwise_auc,
    per_query_auc,
    pooled_topk_auc,
    separation_report,
)
from assay.recommend.sasrec import SASRec
from assay.recommend.synthesis_signal import SynthesisSignal

__all__ = [
    "AugmentationGeneration",
    "Answers",
    "Asked",
    "AutoregressiveGeneration",
    "BERT4Rec",
    "BidirectionalRepairLoss",
    "DualEncoder",
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
    "Separation",
    "SynthesisSignal",
    "UserModel",
    "agreement_at_k",
    "few_shot_counts",
    "global_auc",
    "learn_user",
    "load_movielens",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "normalised_ratings",
    "padded",
    "pairwise_auc",
    "per_query_auc",
    "pooled_topk_auc",
    "prefixes",
    "recall_at_k",
    "separation_report",
    "train_next_item",
    "windows",
]
