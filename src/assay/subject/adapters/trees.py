"""``xgboost:FILE.json|.ubj`` and ``lightgbm:FILE.txt|.json``: boosted trees, binary or of several classes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from assay.data import Data
from assay.runtime.errors import InputError
from assay.subject.adapters.answers import Meaning
from assay.subject.adapters.apart import Apart
from assay.subject.adapters.base import Ask, Backend, black_box, file_digest, flat, needed, opened, said
from assay.subject.adapters.tree_dump import forest, scores
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
    opens = partial(_started, "xgboost", path, where)
    about, ask = opens()
    meaning = _classifies(about["objective"], XGBOOST, where)
    _counted(2 if about["objective"].startswith("binary") else about["classes"], test, where)
    return black_box(Backend(partial(_asked, opens), ask), data, where=where, digest=file_digest(path), meaning=meaning)


def load_lightgbm(rest: str, data: dict[str, Data | None]) -> Subject:
    """A booster saved as text, or dumped as JSON; raw scores are the logits."""
    path, where, _ = opened(rest, "lightgbm")
    test, dumped = needed(data, where), path.suffix == ".json"
    if not dumped and not path.read_bytes()[:16].startswith(b"tree"):
        raise InputError(f"{where}: is no LightGBM model; expected the text of Booster.save_model")
    opens = partial(_dumped, path, where) if dumped else partial(_started, "lightgbm", path, where)
    about, ask = opens()
    meaning = _classifies(about["objective"], LIGHTGBM, where)
    _counted(2 if about["objective"] == "binary" else about["classes"], test, where)
    return black_box(Backend(partial(_asked, opens), ask), data, where=where, digest=file_digest(path), meaning=meaning)


def _about(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What LightGBM's dump says of a booster as a whole."""
    try:
        objective, *options = str(document.get("objective")).split()
        slope = next((float(part[8:]) for part in options if part.startswith("sigmoid:")), 1.0)
        classes, features = int(document["num_tree_per_iteration"]), int(document["max_feature_idx"]) + 1
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: cannot be read ({said(error)}); expected a model of LightGBM") from error
    return {"objective": objective, "slope": slope, "classes": classes, "features": features}


def _dumped(path: Path, where: str) -> tuple[dict[str, Any], Ask]:
    try:
        document = json.loads(path.read_bytes())
        trees = forest(document)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{where}: cannot be read ({said(error)}); expected the JSON of dump_model") from error
    about, mean = _about(document, where), bool(document.get("average_output"))

    def ask(x: np.ndarray) -> np.ndarray:
        raw = scores(trees, about["classes"], flat(x, about["features"], where), mean=mean)
        apart = about["objective"] == "multiclassova"
        return _meant(about, 1 / (1 + np.exp(-about["slope"] * raw)) if apart else raw)

    return about, ask


def _meant(about: Mapping[str, Any], answers: np.ndarray) -> np.ndarray:
    """Logits from raw scores; probabilities where a sigmoid was taken for each class."""
    if about["objective"] == "multiclassova":
        return answers / answers.sum(1, keepdims=True)
    return about["slope"] * answers if about["objective"] == "binary" else answers


def _started(library: str, path: Path, where: str) -> tuple[dict[str, Any], Ask]:
    if importlib.util.find_spec(library) is None:
        raise InputError(f"{where}: needs the package {library}; expected pip install 'assay[trees]'")
    model = Apart(library, path, where)
    about = model.about if library == "xgboost" else _about(model.about, where)

    def ask(x: np.ndarray) -> np.ndarray:
        answers = model(flat(x, about["features"], where))
        return _meant(about, answers) if library == "lightgbm" else answers

    return about, ask


def _asked(opens: Callable[[], tuple[dict[str, Any], Ask]]) -> Ask:
    return opens()[1]


def _classifies(objective: str, known: dict[str, Meaning], where: str) -> Meaning:
    if objective not in known:
        raise InputError(f"{where}: its objective {objective!r} is no classification; expected {', '.join(known)}")
    return known[objective]


def _counted(classes: int, test: Data, where: str) -> None:
    if classes != len(test.classes):
        raise InputError(f"{where} tells {classes} classes apart; the data have {len(test.classes)}")
