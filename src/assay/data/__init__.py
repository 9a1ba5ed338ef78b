"""Data sets: the Data container, named sources, splits."""

from assay.data.data import Batch, Data
from assay.data.sources import SOURCES, load_data

__all__ = ["Batch", "Data", "SOURCES", "load_data"]
