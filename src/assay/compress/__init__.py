"""Pruning and quantisation: smaller models, and what they cost."""

from assay.compress.base import Compressed, Compressor, size_of
from assay.compress.magnitude import MagnitudePruning
from assay.compress.quantise import Quantisation
from assay.compress.random import RandomPruning
from assay.compress.synflow import SynFlowPruning
from assay.nets.fake_quant import FakeQuantizer, activation_ranges, fake_quantize, quantized

__all__ = [
    "Compressed",
    "Compressor",
    "FakeQuantizer",
    "MagnitudePruning",
    "Quantisation",
    "RandomPruning",
    "SynFlowPruning",
    "activation_ranges",
    "fake_quantize",
    "quantized",
    "size_of",
]
