"""The few reference networks that the examples and papers train.

Those for images map (n, c, h, w) to logits (n, classes), those for motions (n, 3, t, joints, persons).
"""

from assay.nets.cosine import CosineHead, CosineNetwork
from assay.nets.motion import MotionGRU, SkeletonGCN, TemporalCNN
from assay.nets.resnet import ResNet
from assay.nets.small import MLP, SmallCNN

__all__ = ["CosineHead", "CosineNetwork", "MLP", "MotionGRU", "ResNet", "SkeletonGCN", "SmallCNN", "TemporalCNN"]
