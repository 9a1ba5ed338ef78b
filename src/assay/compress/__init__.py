"""Pruning and quantisation: smaller models, and what they cost."""

from assay.compress.base import Compressed, Compressor, size_of
from assay.compress.channel_graph import Space, channel_spaces
from assay.compress.channel_pruning import PrunedChannels
from assay.compress.fpgm_channels import FPGMChannels
from assay.compress.l1_channels import L1Channels
from assay.compress.magnitude import MagnitudePruning
from assay.compress.modhifi import ModHiFiP
from assay.compress.quantise import Quantisation
from assay.compress.random import RandomPruning
from assay.compress.random_channels import RandomChannels
from assay.compress.subset_fidelity import FittedFidelity, SubsetFidelity
from assay.compress.synflow import SynFlowPruning
from assay.compress.taylor_channels import TaylorChannels
from assay.nets.fake_quant import FakeQuantizer, activation_ranges, fake_quantize, quantized

__all__ = [
    "Compressed",
    "Compressor",
    "FPGMChannels",
    "FakeQuantizer",
    "FittedFidelity",
    "L1Channels",
    "MagnitudePruning",
    "ModHiFiP",
    "PrunedChannels",
    "Quantisation",
    "RandomChannels",
    "RandomPruning",
    "Space",
    "SubsetFidelity",
    "SynFlowPruning",
    "TaylorChannels",
    "activation_ranges",
    "channel_spaces",
    "fake_quantize",
    "quantized",
    "size_of",
]
