"""Data sets: the Data container, named sources, splits; color spaces."""

from assay.data.color import rgb_to_ycbcr, ycbcr_to_rgb
from assay.data.data import Batch, Data
from assay.data.sources import SOURCES, load_data

__all__ = ["Batch", "Data", "SOURCES", "load_data", "rgb_to_ycbcr", "ycbcr_to_rgb"]
