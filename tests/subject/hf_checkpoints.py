"""Tiny checkpoints with random weights, written by transformers itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    ConvNextImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from assay.data.text import TextData, text_data

WORDS = ("good", "bad", "film", "plot", "fine", "poor", "the", "a", "was")
LABELS = {0: "negative", 1: "positive"}


def vit_config(**options: Any) -> ViTConfig:
    given = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTConfig(**{**given, "image_size": 8, "patch_size": 4, "num_labels": 10, **options})


def vit(folder: Path, **options: Any) -> PreTrainedModel:
    """Images at the digits' own size, so that nothing is resized."""
    torch.manual_seed(0)
    model = ViTForImageClassification(vit_config(**options)).eval()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return model


def resnet(folder: Path) -> PreTrainedModel:
    """Images enlarged to 27 pixels and cut to 24, as ConvNeXT's processor does."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=10)).eval()
    model.save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 24}).save_pretrained(folder)
    return model


def bert(folder: Path) -> PreTrainedModel:
    """Two classes of texts over a dozen words."""
    torch.manual_seed(0)
    vocab = {w: i for i, w in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    BertTokenizerFast(vocab=vocab).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    labels = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    config = BertConfig(vocab_size=len(vocab), max_position_embeddings=16, initializer_range=0.3, **sizes, **labels)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return model


def texts(n: int, classes: tuple[str, ...] = ("negative", "positive")) -> TextData:
    draw = random.Random(0)
    rows = [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(n)]
    return text_data(rows, torch.tensor([draw.randrange(len(classes)) for _ in rows]), classes, "reviews")


def edit(path: Path, **changes: Any) -> None:
    """Other values in a JSON file; None takes a key out."""
    table = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in table.items() if v is not None}))
