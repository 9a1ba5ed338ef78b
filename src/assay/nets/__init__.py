"""The few reference networks that the examples and papers train. Each maps (n, c, h, w) to logits (n, classes)."""

from assay.nets.resnet import ResNet
from assay.nets.small import MLP, SmallCNN

__all__ = ["MLP", "ResNet", "SmallCNN"]
