"""``xgboost:FILE.json|.ubj`` and ``lightgbm:FILE.txt``: boosted trees, binary or of several classes."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np

from assay.data import Data
from assay.runtime.errors import InputError
from assay.subject.adapters.answers import Meaning
from assay.subject.adapters.apart import Apart
from assay.subject.adapters.base import Ask, Backend, black_box, file_digest, flat, needed, opened
from assay.subject.subject import Subject

XGBOOST: dict[str, Meaning] = {
    "binary:logistic": "logits",
    "binary:logitraw": "logits",
    "binary:hinge": "margins",
    "multi:softprob": "logits",
    "multi:softmax": "logits",
}
LIGHTGBM: dict[str, Meaning] = {"binary": "logits", "multiclass": "logits", "multiclassova": "probabilities"}


def load_xgboost(rest: str, data: dict[str, Data | None]) -> Subject:
    """A booster saved as JSON or UBJSON; its margins are the logits, up to the best iteration where one is kept."""
    path, where, _ = opened(rest, "xgboost")
    if path.suffix not in (".json", ".ubj"):
        raise InputError(f"{where}: expected .json or .ubj, as Booster.save_model writes them")
    test = needed(data, where)
    about = _started("xgboost", path, where).about
    meaning = _classifies(about["objective"], XGBOOST, where)
    _counted(2 if about["objective"].startswith("binary") else about["classes"], test, where)
    ask = Backend(partial(_asked, "xgboost", path, where))
    return black_box(ask, data, where=where, digest=file_digest(path), meaning=meaning)


def load_lightgbm(rest: str, data: dict[str, Data | None]) -> Subject:
    """A booster saved as text; raw scores are the logits."""
    path, where, _ = opened(rest, "lightgbm")
    if path.suffix == ".json":
        raise InputError(f"{where}: LightGBM cannot read its JSON dumps back; expected the text of Booster.save_model")
    test = needed(data, where)
    if not path.read_bytes()[:16].startswith(b"tree"):
        raise InputError(f"{where}: is no LightGBM model; expected the text of Booster.save_model")
    about = _started("lightgbm", path, where).about
    meaning = _classifies(about["objective"], LIGHTGBM, where)
    _counted(2 if about["objective"] == "binary" else about["classes"], test, where)
    ask = Backend(partial(_asked, "lightgbm", path, where))
    return black_box(ask, data, where=where, digest=file_digest(path), meaning=meaning)


def _started(library: str, path: Path, where: str) -> Apart:
    if importlib.util.find_spec(library) is None:
        raise InputError(f"{where}: needs the package {library}; expected pip install 'assay[trees]'")
    return Apart(library, path, where)


def _asked(library: str, path: Path, where: str) -> Ask:
    model = _started(library, path, where)

    def ask(x: np.ndarray) -> np.ndarray:
        answers = model(flat(x, model.about["features"], where))
        if model.about["objective"] == "multiclassova":  # a sigmoid for each class
            return answers / answers.sum(1, keepdims=True)
        return model.about["slope"] * answers if model.about["objective"] == "binary" else answers

    return ask


def _classifies(objective: str, known: dict[str, Meaning], where: str) -> Meaning:
    if objective not in known:
        raise InputError(f"{where}: its objective {objective!r} is no classification; expected {', '.join(known)}")
    return known[objective]


def _counted(classes: int, test: Data, where: str) -> None:
    if classes != len(test.classes):
        raise InputError(f"{where} tells {classes} classes apart; the data have {len(test.classes)}")
