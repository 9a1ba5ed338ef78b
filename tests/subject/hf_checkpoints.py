"""Tiny checkpoints with random weights, written by transformers itself."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
COMMIT = "0123456789abcdef0123456789abcdef01234567"
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


def _listed(words: list[str], folder: Path) -> Any:
    """What the hub answers to a question for a model, or for the tree of its files."""
    files = sorted(folder.iterdir())
    if words[4] == "tree":
        return [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in files]
    return {"id": "/".join(words[2:4]), "sha": COMMIT, "siblings": [{"rfilename": p.name} for p in files]}


@contextmanager
def hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub on this machine that serves the checkpoints ``root/OWNER/NAME``: its address, and the files asked for."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, body: bool = True) -> None:
            words = self.path.partition("?")[0].strip("/").split("/")
            listing = words[:2] == ["api", "models"]
            file = root.joinpath(*words[2:4]) if listing else root.joinpath(*words[:2], *words[4:])
            if not file.exists():
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()
                return
            content = json.dumps(_listed(words, file)).encode() if listing else file.read_bytes()
            if not listing:
                asked.append(file.name)
            self.send_response(200)
            for key, value in {
                "Content-Length": str(len(content)),
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            }.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """No lines on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
