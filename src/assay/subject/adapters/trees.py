"""``xgboost:FILE.json|.ubj`` and ``lightgbm:FILE.txt``: boosted trees, binary or of several classes."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from assay.data import Data
from assay.runtime.errors import InputError
from assay.subject.adapters.answers import Meaning
from assay.subject.adapters.base import Ask, Backend, black_box, file_digest, flat, needed, opened, said
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
    booster = _xgboost(path, where)
    learner = json.loads(booster.save_config())["learner"]
    objective, count = learner["objective"]["name"], int(learner["learner_model_param"]["num_class"])
    meaning = _classifies(objective, XGBOOST, where)
    _counted(2 if objective.startswith("binary") else count, test, where)
    ask = Backend(partial(_open_xgboost, path, where))
    return black_box(ask, data, where=where, digest=file_digest(path), meaning=meaning)


def _xgboost(path: Path, where: str) -> Any:
    try:
        import xgboost
    except ImportError as error:
        raise InputError(f"{where}: needs the package xgboost; expected pip install 'assay[trees]'") from error
    booster = xgboost.Booster()
    try:
        booster.load_model(path)
    except Exception as error:  # of several kinds, some with a trace of C++ calls
        line = str(error).strip().splitlines()[0][:120]
        raise InputError(f"{where}: cannot be read ({line}); expected a model of Booster.save_model") from error
    booster.set_param({"device": "cpu", "verbosity": 0})
    return booster


def _open_xgboost(path: Path, where: str) -> Ask:
    booster = _xgboost(path, where)
    best = booster.attr("best_iteration")
    rounds = (0, int(best) + 1 if best is not None else 0)

    def ask(x: np.ndarray) -> np.ndarray:
        rows = flat(x, booster.num_features(), where)
        return booster.inplace_predict(rows, iteration_range=rounds, predict_type="margin", validate_features=False)

    return ask


def load_lightgbm(rest: str, data: dict[str, Data | None]) -> Subject:
    """A booster saved as text; raw scores are the logits."""
    path, where, _ = opened(rest, "lightgbm")
    if path.suffix == ".json":
        raise InputError(f"{where}: LightGBM cannot read its JSON dumps back; expected the text of Booster.save_model")
    test = needed(data, where)
    booster = _lightgbm(path, where)
    objective = str(booster.dump_model(num_iteration=1).get("objective", "none")).split()
    meaning = _classifies(objective[0], LIGHTGBM, where)
    _counted(2 if objective[0] == "binary" else booster.num_model_per_iteration(), test, where)
    slope = next((float(m[1]) for part in objective if (m := re.fullmatch(r"sigmoid:(.+)", part))), 1.0)
    ask = Backend(partial(_open_lightgbm, path, where, objective[0], slope))
    return black_box(ask, data, where=where, digest=file_digest(path), meaning=meaning)


def _lightgbm(path: Path, where: str) -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise InputError(f"{where}: needs the package lightgbm; expected pip install 'assay[trees]'") from error
    if not path.read_bytes()[:16].startswith(b"tree"):  # its reader says on stdout what it makes of anything else
        raise InputError(f"{where}: is no LightGBM model; expected the text of Booster.save_model")
    try:
        return lightgbm.Booster(model_file=path)
    except Exception as error:
        raise InputError(f"{where}: cannot be read ({said(error)}); expected Booster.save_model's text") from error


def _open_lightgbm(path: Path, where: str, objective: str, slope: float) -> Ask:
    booster = _lightgbm(path, where)

    def ask(x: np.ndarray) -> np.ndarray:
        rows = flat(x, booster.num_feature(), where).astype(np.float64)
        if objective == "multiclassova":  # a sigmoid for each class
            shares = booster.predict(rows)
            return shares / shares.sum(1, keepdims=True)
        raw = booster.predict(rows, raw_score=True)
        return slope * raw if objective == "binary" else raw

    return ask


def _classifies(objective: str, known: dict[str, Meaning], where: str) -> Meaning:
    if objective not in known:
        raise InputError(f"{where}: its objective {objective!r} is no classification; expected {', '.join(known)}")
    return known[objective]


def _counted(classes: int, test: Data, where: str) -> None:
    if classes != len(test.classes):
        raise InputError(f"{where} tells {classes} classes apart; the data have {len(test.classes)}")
