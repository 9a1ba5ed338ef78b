"""Hugging Face checkpoints as subjects: classifiers of images and of texts, from safetensors and never custom code."""

from assay.subject.huggingface.adapter import load_hf
from assay.subject.huggingface.image import ImageClassifier
from assay.subject.huggingface.text import TextClassifier

__all__ = ["ImageClassifier", "TextClassifier", "load_hf"]
