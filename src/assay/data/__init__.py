"""Data sets: the Data container, named sources, splits; color spaces; motions of articulated skeletons."""

from assay.data.color import rgb_to_ycbcr, ycbcr_to_rgb
from assay.data.data import Batch, Data
from assay.data.federated import dirichlet_split
from assay.data.files import KINDS
from assay.data.files import open_data as load_data
from assay.data.guarded import check_images, check_npz, guarded
from assay.data.kinematics import HUMAN, Skeleton, bone_lengths
from assay.data.long_tail import make_long_tail
from assay.data.motions import synthetic_motions
from assay.data.noise_levels import noise_levels
from assay.data.skeleton_files import hdm05, ntu
from assay.data.sources import NAMED, PATHS
from assay.data.sources import SOURCES as BUILT_IN
from assay.data.text import load_text

# Readers of further formats join here, so that a new one changes nothing for what reads others.
PATHS |= {"ntu": ("folder of NTU skeletons", ntu), "hdm05": ("folder of HDM05 motions", hdm05)}
SOURCES = (*BUILT_IN, "ntu", "hdm05", *KINDS)

# A file may come from a stranger: each reader stands behind a guard that changes nothing for what can be read.
_CHECKS = {"npz": check_npz, "parquet": check_images}
PATHS |= {kind: (what, guarded(read, _CHECKS.get(kind))) for kind, (what, read) in PATHS.items()}
NAMED |= {kind: guarded(read) for kind, read in NAMED.items()}

__all__ = [
    "HUMAN",
    "SOURCES",
    "Batch",
    "Data",
    "Skeleton",
    "bone_lengths",
    "dirichlet_split",
    "load_data",
    "load_text",
    "make_long_tail",
    "noise_levels",
    "rgb_to_ycbcr",
    "synthetic_motions",
    "ycbcr_to_rgb",
]
