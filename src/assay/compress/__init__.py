"""Pruning and quantisation: smaller models, and what they cost."""

from assay.compress.base import Compressed, Compressor, size_of
from assay.compress.magnitude import MagnitudePruning
from assay.compress.quantise import Quantisation
from assay.compress.random import RandomPruning
from assay.compress.synflow import SynFlowPruning

__all__ = ["Compressed", "Compressor", "MagnitudePruning", "Quantisation", "RandomPruning", "SynFlowPruning", "size_of"]
