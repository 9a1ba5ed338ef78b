"""From a checkpoint, on the hub or in a folder, to a subject. Weights are read from safetensors, code never."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from assay.data import Data
from assay.data.text import TextData
from assay.runtime.errors import InputError
from assay.subject.huggingface import image, text
from assay.subject.huggingface.image import ImageClassifier
from assay.subject.huggingface.network import config_of, quiet, said, transformers, with_head
from assay.subject.huggingface.text import TextClassifier
from assay.subject.subject import Subject

NAME = re.compile(r"([\w.-]+/)?[\w.-]+(@[\w./-]+)?")  # owner/name[@revision]
FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model"]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
TASKS = {"ForImageClassification": "classification", "ForSequenceClassification": "text-classification"}
FORGOTTEN = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # no part of the network
NUMBERED = re.compile(r"\.\d+\.")


def load_hf(rest: str, data: dict[str, Data | None]) -> Subject:
    """The subject of ``hf:REST``: a checkpoint's folder, or ``owner/name[@revision]`` on the hub.

    ``data`` maps the splits to images in [0, 1] or to texts (or token ids); "test" is needed. Classes are matched with
    the checkpoint's labels by name, else by position. Raises InputError for a checkpoint that holds anything but
    safetensors or asks for code of its own, whose weights do not fit, or that does not fit the data.
    """
    transformers()
    folder, where = _folder(rest), f"hf:{rest}"
    config, task = _config(folder, where)
    splits = {k: v for k, v in data.items() if v is not None}
    if "test" not in splits:
        raise InputError(f"{where} is a bare model; expected --data with the test set")
    _check_weights(folder, where)
    labels = config_of(json.dumps(config)).id2label
    order = match([labels[k] for k in sorted(labels)], splits["test"].classes, where)
    make = _images if task == "classification" else _texts
    model, splits = make(folder, config, order, splits, where)
    return Subject(model.eval(), name=where, task=task, **splits)  # type: ignore[arg-type]


def _folder(rest: str) -> Path:
    path = Path(rest).expanduser()
    if path.is_dir():
        return path
    if not NAME.fullmatch(rest):
        raise InputError(f"hf:{rest}: no such folder; expected a checkpoint's folder, or owner/name on the hub")
    import huggingface_hub

    name, _, revision = rest.partition("@")
    with quiet():
        try:
            return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=FETCHED))
        except Exception as error:  # the client raises errors of its own, of requests and of the system
            raise InputError(
                f"hf:{rest}: neither a folder nor fetched from the hub ({said(error)}); expected a folder, or "
                "the owner/name of a public model and a network"
            ) from error


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: {path.name} cannot be read ({said(error)}); expected a checkpoint's") from error
    if not isinstance(table, dict):
        raise InputError(f"{where}: {path.name} holds a {type(table).__name__}; expected an object")
    if "auto_map" in table:
        raise InputError(f"{where}: {path.name} asks for code of its own (auto_map); expected classes of transformers")
    return table


def _config(folder: Path, where: str) -> tuple[dict[str, Any], str]:
    """What config.json says, without what is no part of the network; and the task."""
    config = _json(folder / "config.json", where)
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            _json(folder / name, where)
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{where}: config.json names no model_type; expected a transformers checkpoint")
    names = config.get("architectures") or ["none"]
    tasks = [t for ending, t in TASKS.items() if ending in str(names[0])]
    if not tasks:
        raise InputError(f"{where}: the architecture is {names[0]}; expected one {' or '.join(TASKS)}")
    if config.get("problem_type") not in (None, "single_label_classification"):
        raise InputError(f"{where}: problem_type is {config['problem_type']!r}; expected single_label_classification")
    return {k: v for k, v in config.items() if k not in FORGOTTEN}, tasks[0]


def _check_weights(folder: Path, where: str) -> None:
    if not any((folder / name).is_file() for name in WEIGHTS):
        pickled = sorted(p.name for pattern in PICKLED for p in folder.glob(pattern))
        holds = f"only {pickled[0]}, which is not read" if pickled else "no weights"
        raise InputError(f"{where}: holds {holds}; expected model.safetensors")


def match(labels: Sequence[str], classes: Sequence[str], where: str) -> tuple[int, ...] | None:
    """The place among ``labels`` of each of the data's ``classes``; None where they are in the same order.

    By name, whatever the case, where the two sets agree; else by position where the numbers do, unless a name that
    both have stands at different places.
    """
    own, theirs = ([str(n).strip().casefold() for n in names] for names in (labels, classes))
    text = (
        f"{where}: its {len(labels)} labels are {_few(labels)}; the data's {len(classes)} classes are {_few(classes)}"
    )
    if len(own) != len(theirs):
        raise InputError(f"{text}; expected as many labels as classes")
    if set(own) == set(theirs) and len(set(own)) == len(own):
        order = tuple(own.index(n) for n in theirs)
        return None if order == tuple(range(len(own))) else order
    moved = [n for n, other in zip(own, theirs, strict=True) if n != other and n in theirs]
    if moved:
        raise InputError(f"{text}; expected the same names, or {moved[0]!r} at the same place")
    return None


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:4])) + (", ..." if len(names) > 4 else "")


def _images(
    folder: Path, config: dict[str, Any], order: tuple[int, ...] | None, splits: dict[str, Data], where: str
) -> tuple[nn.Module, dict[str, Data]]:
    for data in splits.values():
        if len(data.shape) != 3 or data.shape[0] not in (1, 3) or data.bounds != (0.0, 1.0):
            bounds = list(data.bounds)
            raise InputError(
                f"{where}: classifies images; {data.name} has {_form(data)} in {bounds}; expected images in [0, 1]"
            )
    processor, test = image.processor_of(folder, where), splits["test"]
    options = image.steps(processor, test.shape[1], test.shape[2], where)
    model = ImageClassifier(json.dumps(config), order=order, **options)
    _fill(model.inner, image.AUTO, folder, where)
    image.check_pixels(model, processor, test, where)
    return model, splits


def _texts(
    folder: Path, config: dict[str, Any], order: tuple[int, ...] | None, splits: dict[str, Data], where: str
) -> tuple[nn.Module, dict[str, Data]]:
    tokenizer = text.tokenizer_of(folder, where)
    ids = text.tokenised(splits, tokenizer, config_of(json.dumps(config)), where)
    model = TextClassifier(json.dumps(config), tokenizer.pad_token_id, order)
    _fill(model.inner, text.AUTO, folder, where)
    return model, ids


def _form(data: Data) -> str:
    return "texts" if isinstance(data, TextData) else f"samples of shape {data.shape}"


def _fill(inner: nn.Module, auto: str, folder: Path, where: str) -> None:
    """Put a checkpoint's weights, as transformers reads them, into the network; all of them, and nothing else."""
    options = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False, "dtype": torch.float32}
    with quiet():
        try:
            loaded, info = getattr(transformers(), auto).from_pretrained(
                str(folder), output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except Exception as error:  # what damaged weights raise depends on what is wrong
            raise InputError(
                f"{where}: the weights cannot be read into the model of its config ({said(error)}); expected a "
                "checkpoint that save_pretrained wrote"
            ) from error
    # transformers fills what is missing at random, and drops layers that the config does not have.
    spare = [k for k in info["unexpected_keys"] if NUMBERED.search(k)]
    for keys, what in (
        (info["missing_keys"], "are missing"),
        (info["mismatched_keys"], "do not fit"),
        (spare, "are spare"),
    ):
        if keys:
            names = sorted(k if isinstance(k, str) else k[0] for k in keys)
            raise InputError(
                f"{where}: {len(names)} tensors of its weights {what} ({_few(names)}); expected those of its config"
            )
    inner.load_state_dict(with_head(loaded).state_dict())
