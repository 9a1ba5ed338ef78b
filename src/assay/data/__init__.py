"""Data sets: the Data container, named sources, splits; color spaces; motions of articulated skeletons."""

from assay.data.color import rgb_to_ycbcr, ycbcr_to_rgb
from assay.data.data import Batch, Data
from assay.data.kinematics import HUMAN, Skeleton, bone_lengths
from assay.data.motions import synthetic_motions
from assay.data.sources import SOURCES, load_data

__all__ = [
    "HUMAN",
    "SOURCES",
    "Batch",
    "Data",
    "Skeleton",
    "bone_lengths",
    "load_data",
    "rgb_to_ycbcr",
    "synthetic_motions",
    "ycbcr_to_rgb",
]
