"""Models that read images: small captioners, an encoder of the image before a decoder of text."""

from assay.vision.captioner import Captioner
from assay.vision.hf_captioner import HFCaptioner
from assay.vision.tiny_captioner import TinyCaptioner, TinyViT

__all__ = ["Captioner", "HFCaptioner", "TinyCaptioner", "TinyViT"]
