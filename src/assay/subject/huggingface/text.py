"""Sequence classifiers: texts become token ids, padded to one length, and the mask follows from the padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.data.text import TextData, decoded
from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable
from assay.subject.huggingface.network import network, quiet, said, unhooked

AUTO = "AutoModelForSequenceClassification"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
LONGEST = 512  # tokens, where neither the tokenizer nor the config says less


@rebuildable
class TextClassifier(nn.Module):
    """Token ids (n, length), whole numbers of any type, to logits (n, c).

    ``config`` is the JSON text of a transformers config; ids equal to ``pad`` are not attended to. ``order`` names the
    network's output for each class of the data. Raises InputError for a config that cannot be built, and where a
    gradient with respect to the ids is asked for.
    """

    def __init__(self, config: str, pad: int, order: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.inner = network(AUTO, config)
        self.inner.config.pad_token_id = pad  # type: ignore[union-attr]
        self.pad, self.order = pad, order

    def _inputs(self, x: Tensor) -> dict[str, Tensor]:
        if x.requires_grad:
            raise InputError("token ids have no gradient; expected a method that works on outputs or on weights")
        ids = x.long()
        return {"input_ids": ids, "attention_mask": (ids != self.pad).long()}

    def forward(self, x: Float[Tensor, "n length"]) -> Float[Tensor, "n c"]:
        logits = self.inner(**self._inputs(x)).logits
        return logits if self.order is None else logits[:, list(self.order)]

    def hidden_states(self, x: Float[Tensor, "n length"]) -> tuple[Tensor, ...]:
        """The network's hidden states, (n, length, d) each: the embeddings, then the output of every block."""
        with unhooked(self.inner):
            return self.inner(**self._inputs(x), output_hidden_states=True).hidden_states


def tokenizer_of(folder: Path, where: str) -> Any:
    """The tokenizer of a checkpoint's folder, which must have a token for padding."""
    from transformers import AutoTokenizer

    if not any(
        True for pattern in VOCABULARIES for _ in folder.glob(pattern)
    ):  # transformers would make up an empty one
        raise InputError(f"{where}: no tokenizer; expected tokenizer.json (tokenizer.save_pretrained writes it)")
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), use_fast=True, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # what a damaged file raises depends on the tokenizer
            raise InputError(
                f"{where}: no usable tokenizer ({said(error)}); expected files that tokenizer.save_pretrained wrote"
            ) from error
    if tokenizer.pad_token_id is None:
        raise InputError(f"{where}: its tokenizer has no token for padding; expected a pad_token")
    return tokenizer


def tokenised(splits: dict[str, Data], tokenizer: Any, config: Any, where: str) -> dict[str, Data]:
    """The splits with token ids for x, float32 whole numbers (n, length), all padded to the longest text's length.

    Texts longer than the network takes are cut. Data that hold ids already are passed on once their range is checked.
    """
    limits = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or LONGEST, LONGEST)
    top, found = float(config.vocab_size - 1), {}
    for split, data in splits.items():
        if isinstance(data, TextData):
            with quiet():
                found[split] = tokenizer(decoded(data.x), truncation=True, max_length=int(min(limits)))["input_ids"]
        elif len(data.shape) != 1 or not bool((data.x == data.x.round()).all()) or data.x.min() < 0:
            raise InputError(f"{where}: {data.name} holds {data.shape} numbers a sample; expected texts or token ids")
        else:
            found[split] = data.x
    longest = max(len(row) for rows in found.values() for row in rows)
    made = {}
    for split, rows in found.items():
        data, x = splits[split], torch.full((len(rows), longest), float(tokenizer.pad_token_id))
        for i, row in enumerate(rows):
            x[i, : len(row)] = torch.as_tensor(row, dtype=torch.float32)
        if x.max() > top:
            raise InputError(f"{where}: {data.name} holds token {int(x.max())}; expected ids from 0 to {top:g}")
        made[split] = Data(x, data.y, data.classes, (0.0, top), data.name, data.index, data.fields)
    return made
