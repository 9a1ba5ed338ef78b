"""Attacks on the prompts of text-to-image models."""

from assay.attacks.prompt.concept_attack_success import concept_attack_success
from assay.attacks.prompt.embedding_prompt_attack import EmbeddingPromptAttack
from assay.attacks.prompt.text_to_image import TextToImage

__all__ = ["EmbeddingPromptAttack", "TextToImage", "concept_attack_success"]
