"""Which training samples matter: scores, subsets, and selectors."""

from assay.curate.base import Selector, at_equal_steps
from assay.curate.data_diet import DataDiet, FittedDiet
from assay.curate.el2n import el2n_runs, el2n_scores
from assay.curate.forgetting import ForgettingTracker, forget_scores
from assay.curate.grand import grand_runs, grand_scores
from assay.curate.random_subset import RandomSubset
from assay.curate.subsets import offset_subset, prune_by_score

__all__ = [
    "DataDiet",
    "FittedDiet",
    "ForgettingTracker",
    "RandomSubset",
    "Selector",
    "at_equal_steps",
    "el2n_runs",
    "el2n_scores",
    "forget_scores",
    "grand_runs",
    "grand_scores",
    "offset_subset",
    "prune_by_score",
]
