"""The few reference networks that the examples and papers train: (n, c, h, w) to logits (n, classes), and denoisers."""

from assay.nets.denoiser import DenoiserMLP
from assay.nets.resnet import ResNet
from assay.nets.small import MLP, SmallCNN

__all__ = ["DenoiserMLP", "MLP", "ResNet", "SmallCNN"]
