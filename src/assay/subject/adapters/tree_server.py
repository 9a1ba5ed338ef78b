"""Answers for one model of boosted trees, in a process of its own: ``python -P tree_server.py xgboost|lightgbm FILE``.

apart.py starts it and says how the two talk. It imports nothing of assay, so that it is up in a moment.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

Predict = Callable[[np.ndarray], np.ndarray]


def xgboost_model(path: str) -> tuple[dict[str, Any], Predict]:
    """What a booster is for, and its margins up to the best iteration where one is kept."""
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(path)
    booster.set_param({"device": "cpu", "verbosity": 0})
    learner = json.loads(booster.save_config())["learner"]
    best = booster.attr("best_iteration")
    options: dict[str, Any] = {"iteration_range": (0, int(best) + 1 if best is not None else 0)}
    options |= {"predict_type": "margin", "validate_features": False}
    about = {"objective": learner["objective"]["name"], "classes": int(learner["learner_model_param"]["num_class"])}
    return about | {"features": booster.num_features()}, lambda x: booster.inplace_predict(x, **options)


def lightgbm_model(path: str) -> tuple[dict[str, Any], Predict]:
    """What a booster is for, and its raw scores (probabilities where a sigmoid is taken for each class)."""
    import lightgbm

    booster = lightgbm.Booster(model_file=path)
    dump = booster.dump_model(num_iteration=1)
    about: dict[str, Any] = {k: dump.get(k) for k in ("objective", "num_tree_per_iteration", "max_feature_idx")}
    raw = not str(about["objective"]).startswith("multiclassova")
    # A random forest's scores are means over its trees, which its raw scores are not.
    trees = booster.num_trees() // booster.num_model_per_iteration() if raw and dump.get("average_output") else 1
    return about, lambda x: np.asarray(booster.predict(x.astype(np.float64), raw_score=raw)) / trees


MODELS = {"xgboost": xgboost_model, "lightgbm": lightgbm_model}


def say(out: BinaryIO, kind: str, content: bytes) -> None:
    """One answer: its kind and length in a line, then the bytes."""
    out.write(f"{kind} {len(content)}\n".encode() + content)
    out.flush()


def main() -> None:
    """Read the model, say what it is, and answer until the questions end."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the libraries print what they think of a file
    try:
        about, predict = MODELS[sys.argv[1]](sys.argv[2])
        say(out, "about", json.dumps(about).encode())
        while header := sys.stdin.buffer.readline():
            asked = np.load(io.BytesIO(sys.stdin.buffer.read(int(header))), allow_pickle=False)
            buffer = io.BytesIO()
            np.save(buffer, predict(asked))
            say(out, "answer", buffer.getvalue())
    except Exception as error:  # of many kinds, some with a trace of C++ calls
        line = (str(error).strip().splitlines() or [""])[0]
        say(out, "error", f"{type(error).__name__}: {line[:120]}".encode())


if __name__ == "__main__":
    main()
