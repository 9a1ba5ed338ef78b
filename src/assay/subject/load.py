"""Saving and loading subjects. Tensors go to safetensors, the rest to TOML; nothing is pickled."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from assay.data import Data
from assay.data.files import open_data
from assay.data.guarded import check_expansion
from assay.data.guarded import described as _said
from assay.data.sources import NAMED, load_data
from assay.data.tabular import TabularData, restored, same_columns, table_of
from assay.runtime.errors import AssayError, InputError, unknown
from assay.runtime.spec import Spec, build, resolve, spec_of
from assay.runtime.toml import read_toml
from assay.subject.access import Access
from assay.subject.admit import admit
from assay.subject.aligned import aligned
from assay.subject.subject import Subject

SCHEMA = "assay/1"
SPLITS = ("train", "holdout", "test")
EMBEDDED = {
    "digits": "assay.training.embedded:digits_subject",
    "mnist": "assay.training.embedded:mnist_subject",
    "cifar10": "assay.training.embedded:cifar10_subject",
}
ADAPTERS = {  # kind: what makes a subject of KIND:REST and the data
    "hf": "assay.subject.huggingface:load_hf",
    "sklearn": "assay.subject.adapters.skops:load_sklearn",
    "onnx": "assay.subject.adapters.onnx:load_onnx",
    "export": "assay.subject.adapters.exported:load_exported",
    "xgboost": "assay.subject.adapters.trees:load_xgboost",
    "lightgbm": "assay.subject.adapters.trees:load_lightgbm",
    "http": "assay.subject.adapters.http:load_http",
    "https": "assay.subject.adapters.http:load_https",
}
TRUSTING = ("sklearn",)  # these also take what is trusted


def save(subject: Subject, folder: Path) -> Path:
    """Write the subject to ``folder`` (made or replaced whole; one that lay there goes once the new one is there)."""
    spec = spec_of(subject.model)
    if spec is None:
        raise InputError(
            f"subject {subject.name!r}: {type(subject.model).__name__} does not say how it is rebuilt; expected one "
            "from assay.nets, one loaded as module:factory, or a class decorated with assay.runtime.spec.rebuildable"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; expected a new folder or a subject to replace")
    if folder.exists() and not (folder / "subject.toml").exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: exists and is no subject; expected a new folder or a subject to replace")
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new = work / "new"
        new.mkdir()
        recipe = spec_of(subject.recipe) if subject.recipe is not None else None
        table: dict[str, Any] = {
            "schema": SCHEMA,
            "name": subject.name,
            "task": subject.task,
            "access": subject.access.name,
            "model": spec.to_dict(),
            **({"recipe": recipe.to_dict()} if recipe is not None else {}),
            "data": {
                s: _save_data(getattr(subject, s), new / f"{s}.safetensors") for s in SPLITS if getattr(subject, s)
            },
        }
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in subject.model.state_dict().items()},
            new / "model.safetensors",
        )
        (new / "subject.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
        exchange(new, folder, work)
    finally:
        discard(work, folder)
    return folder


def exchange(new: Path, folder: Path, work: Path) -> None:
    """Move ``new`` to ``folder`` and what lay there into ``work``; where that fails, what lay there comes back.

    Another run may do the same at this moment.
    """
    for k in range(100):
        old = work / f"old{k}"
        with suppress(FileNotFoundError):
            os.rename(folder, old)
        try:
            os.rename(new, folder)
            return
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue
            if old.exists():
                os.rename(old, folder)
            raise
    raise InputError(f"{folder}: other runs keep writing it; expected one run a folder")


def discard(work: Path, folder: Path) -> None:
    """Remove ``work`` after an ``exchange``, unless it holds what lay in ``folder`` and nothing lies there now."""
    if folder.exists() or not any(work.glob("old*")):
        shutil.rmtree(work, ignore_errors=True)


def _save_data(data: Data, path: Path) -> dict[str, Any]:
    kind, _, split = data.name.partition(":")
    if kind in NAMED and split in ("train", "test"):
        whole = load_data(data.name)
        if whole.hash == data.hash:
            return {"source": data.name}
        if torch.isin(data.index, whole.index).all() and whole.index.equal(whole.index.sort().values):
            rows = torch.searchsorted(whole.index, data.index)
            if whole[rows].hash == data.hash:
                save_file({"index": data.index.contiguous()}, path)
                return {"source": data.name, "file": path.name}
    fields = {f"fields.{k}": v.contiguous().clone() for k, v in data.fields.items()}
    if isinstance(data, TabularData):
        fields["columns"] = torch.frombuffer(bytearray(data.described.encode()), dtype=torch.uint8)
    save_file({"x": data.x.contiguous().clone(), "y": data.y.clone(), "index": data.index.clone(), **fields}, path)
    return {"name": data.name, "classes": list(data.classes), "bounds": list(data.bounds), "file": path.name}


def _load_data(entry: dict[str, Any], folder: Path) -> Data:
    tensors = _tensors(folder / _inside(entry["file"])) if "file" in entry else {}
    if "source" in entry:
        whole = load_data(entry["source"])
        if not tensors:
            return whole
        rows = torch.searchsorted(whole.index, tensors["index"]).clamp(max=len(whole) - 1)
        if not whole.index[rows].equal(tensors["index"]):
            raise InputError(f"{folder / entry['file']}: names samples that {entry['source']} lacks; expected its own")
        return whole[rows]
    fields = {k.removeprefix("fields."): v for k, v in tensors.items() if k.startswith("fields.")}
    low, high = entry["bounds"]
    data = Data(
        tensors["x"],
        tensors["y"],
        tuple(map(str, entry["classes"])),
        (float(low), float(high)),
        str(entry["name"]),
        tensors["index"],
        fields,
    )
    return table_of(data, tensors["columns"].numpy().tobytes().decode()) if "columns" in tensors else data


def _inside(name: str) -> str:
    if Path(name).name != name:
        raise InputError(f"subject.toml: file {name!r} lies outside the folder; expected a plain file name")
    return name


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a safetensors file") from error


def _set_state(model: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    try:
        model.load_state_dict(state)
    except Exception as error:  # torch raises many kinds for states of odd keys and types
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: the weights do not fit the model ({detail})") from error


def _check_size(plain: dict[str, Any], trust: Collection[str], state: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse a model of more numbers than its weights, which could fill the memory, before it is made."""
    try:
        with torch.device("meta"):
            asked = sum(t.numel() for t in build(plain, trust).state_dict().values())
    except Exception:  # some networks compute while they are made; what is wrong with others is said when they are
        return
    held = sum(t.numel() for t in state.values())
    if asked > held:
        raise InputError(f"{path}: the model has {asked:,} numbers, model.safetensors {held:,}; expected as many")


def load_folder(folder: Path, trust: Collection[str] = ()) -> Subject:
    """The subject saved in ``folder``."""
    path = folder / "subject.toml"
    if not path.is_file():
        raise InputError(f"{folder}: holds no subject.toml; expected a folder written by Subject.save")
    table = read_toml(path, str(path))
    try:
        admit([table["model"], table.get("recipe")], trust)
        state = _tensors(folder / "model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers without weights
            _check_size(table["model"], trust, state, path)
            model = build(table["model"], trust)
        splits: dict[str, Any] = restored({s: _load_data(entry, folder) for s, entry in table["data"].items()})
        recipe = build(table["recipe"], trust) if "recipe" in table else None
        access, name, task = Access[table["access"]], str(table["name"]), str(table["task"])
    except KeyError as error:
        raise InputError(f"{path}: key {error} is missing or wrong; expected the layout {SCHEMA}") from error
    except AssayError:
        raise
    except Exception as error:  # what a wrong value raises depends on where it is used
        raise InputError(f"{path}: {_said(error)}; expected the layout {SCHEMA}") from error
    if "test" not in splits:
        raise InputError(f"{path}: no test data; expected the layout {SCHEMA}")
    if not isinstance(model, nn.Module):
        raise InputError(f"{path}: the factory gives {type(model).__name__}; expected a torch module")
    if recipe is not None and not callable(getattr(recipe, "fit", None)):
        raise InputError(f"{path}: the recipe is {type(recipe).__name__}; expected a trainer")
    _set_state(model, state, str(folder / "model.safetensors"))
    model.eval()
    return Subject(model, recipe=recipe, access=access, name=name, task=task, **splits)


def load_factory(text: str, trust: Collection[str], data: dict[str, Data | None]) -> Subject:
    """``module:factory`` (a Subject or a module), or ``module:factory@weights.pt`` (the state dict of its model)."""
    factory, _, weights = text.partition("@")
    try:
        made = resolve(factory, {*trust, factory.partition(":")[0]})()
    except AssayError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything, and may be a script that exits
        raise InputError(f"{factory}: {_said(error)}; expected a function without arguments") from error
    if isinstance(made, Subject):
        if weights:
            _set_state(made.model, _state_dict(Path(weights)), weights)
        return _with_data(made, data)
    if not isinstance(made, nn.Module):
        raise InputError(f"{factory}: gives {type(made).__name__}; expected a Subject or a torch module")
    if spec_of(made) is None:
        made.spec = Spec(factory, {})  # type: ignore[assignment]
    if weights:
        _set_state(made, _state_dict(Path(weights)), weights)
    if data.get("test") is None:
        raise InputError(f"{factory} gives a bare model; expected --data with the test set")
    made.eval()
    return Subject(made, name=factory, **{k: v for k, v in data.items() if v is not None})  # type: ignore[arg-type]


def _given(source: str | None, split: str) -> Data | None:
    try:
        return open_data(source, split) if source is not None else None
    except AssayError:
        raise
    except Exception as error:  # names that no file can have
        raise InputError(f"data source {source!r}: {_said(error)}; expected samples and labels") from error


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    if not os.path.isfile(path):
        raise InputError(f"weights {path}: no such file")
    if path.suffix == ".safetensors":
        return _tensors(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_expansion(path, sum(i.file_size for i in archive.infolist()), path.stat().st_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch has to say about a strange archive; an error says it below
            state = torch.load(path, weights_only=True, map_location="cpu")
    except AssayError:
        raise
    except Exception as error:  # torch raises many kinds for a hostile or broken file
        raise InputError(
            f"weights {path}: cannot be read ({type(error).__name__}); expected a plain state dict"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"weights {path}: expected a plain state dict of tensors")
    return state


def load(
    source: str | Path | None = None,
    *,
    data: str | None = None,
    holdout: str | None = None,
    train: str | None = None,
    trust: Collection[str] = (),
    seed: int = 0,
) -> Subject:
    """A subject: None or "digits", "mnist", "cifar10" (trained here and kept), a folder, or "module:factory[@weights]".

    Also "hf:owner/name[@revision]", "hf:FOLDER" and a folder with a config.json (Hugging Face checkpoints),
    "sklearn:FILE.skops", "onnx:FILE", "export:FILE.pt2", "xgboost:FILE.json", "lightgbm:FILE.txt" and an http(s)
    address that answers predictions; these are bare models and need ``data``. ``data``, ``holdout`` and ``train`` are
    data sources (see ``assay.load_data``) that replace the subject's own. ``trust`` names modules whose
    factories a folder may import, and types that a skops file may hold. Labels of the splits are matched by the names
    of their classes.
    """
    given = {
        k: _given(v, d) for k, v, d in (("test", data, "test"), ("holdout", holdout, "test"), ("train", train, "train"))
    }
    same_columns([d for d in given.values() if d is not None])
    return aligned(_loaded(source, given, trust, seed))


def _loaded(source: str | Path | None, given: dict[str, Data | None], trust: Collection[str], seed: int) -> Subject:
    text = "digits" if source is None else str(source)
    kind, _, rest = text.partition(":")
    if (
        os.path.isfile(os.path.join(text, "config.json"))
        and not os.path.exists(os.path.join(text, "subject.toml"))
        and text not in EMBEDDED
    ):
        kind, rest = "hf", text
    if kind in ADAPTERS and not os.path.exists(os.path.join(text, "subject.toml")):
        also = {"trust": trust} if kind in TRUSTING else {}
        adapted: Subject = resolve(ADAPTERS[kind])(rest, given, **also)
        return adapted
    if text in EMBEDDED:
        subject = resolve(EMBEDDED[text])(seed)
    elif os.path.isdir(text):  # never raises, whatever the name
        subject = load_folder(Path(text), trust)
    elif ":" in text:
        return load_factory(text, trust, given)
    else:
        if os.sep not in text and not Path(text).suffix:
            raise unknown("subject", text, EMBEDDED)
        known = ", ".join(EMBEDDED)
        raise InputError(
            f"subject {text!r}: no such folder; expected {known}, a folder, KIND:FILE or module:factory[@weights.pt]"
        )
    return _with_data(subject, given)


def _with_data(subject: Subject, given: dict[str, Data | None]) -> Subject:
    """The subject with the splits that are given; a new test set without a holdout gives up a fifth for one."""
    changed: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if "test" in changed and "holdout" not in changed:
        changed["holdout"] = None
    return replace(subject, **changed) if changed else subject
