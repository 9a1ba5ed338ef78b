"""``onnx:FILE``: a model in ONNX, run by onnxruntime on the CPU."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay.data import Data
from assay.runtime.errors import InputError, unknown
from assay.subject.adapters.base import Ask, Backend, black_box, file_digest, in_batches, needed, opened, said
from assay.subject.subject import Subject

FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
LABELS = ("tensor(int64)", "tensor(int32)", "tensor(string)")
MAPS = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")


def load_onnx(rest: str, data: dict[str, Data | None]) -> Subject:
    """A model of one input; ``FILE#output=NAME`` names the output to read where several could be meant.

    The output is that of scores (n, classes), a tensor or the maps that sklearn-onnx writes; without one, that of
    labels. Samples are flattened row-major where the input is (n, features). Where the batch axis is fixed, the model
    is run in batches of that size. Raises InputError for other inputs and outputs, and samples of another shape.
    """
    path, where, options = opened(rest, "onnx", ("output",))
    test = needed(data, where)
    session = _session(path, where)
    output = _output(session, len(test.classes), options.get("output"), where)
    names = None
    if output.type in MAPS:
        first = _Run(session, output.name, where).raw(test.x[:1].numpy())
        names = list(first[0])
    ask = Backend(partial(_open, path, output.name, where))
    return black_box(ask, data, where=where, digest=f"{file_digest(path)} {output.name}", names=names)


def _session(path: Path, where: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{where}: needs the package onnxruntime; expected pip install 'assay[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime has a class of error for each of its states
        raise InputError(f"{where}: cannot be read ({said(error)}); expected a valid ONNX model") from error


def _output(session: Any, classes: int, name: str | None, where: str) -> Any:
    """The output that holds scores, else the one that holds labels."""
    found = {o.name: o for o in session.get_outputs()}
    if name is not None:
        if name not in found:
            raise unknown(f"output of {where}:", name, found)
        return found[name]
    scores = [o for o in found.values() if o.type in MAPS or (o.type in FLOATS and _fits(o.shape, classes))]
    chosen = scores or [o for o in found.values() if o.type in LABELS]
    if len(chosen) != 1:
        held = ", ".join(f"{o.name} {o.type} {list(o.shape or [])}" for o in found.values())
        raise InputError(
            f"{where}: {len(chosen)} outputs could be scores of {classes} classes ({held}); expected one, or "
            "#output=NAME behind the file"
        )
    return chosen[0]


def _fits(shape: list[Any] | None, classes: int) -> bool:
    """Whether an output may hold (n, classes) scores; names stand for lengths that are not known."""
    if not shape or len(shape) > 2:
        return False
    width = shape[1] if len(shape) == 2 else 1
    return not isinstance(width, int) or width == classes or (width == 1 and classes == 2)


class _Run:
    """One output of a session, asked with samples of any number."""

    def __init__(self, session: Any, output: str, where: str) -> None:
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in FLOATS:
            held = ", ".join(f"{i.name} {i.type}" for i in inputs)
            raise InputError(f"{where}: inputs {held}; expected one tensor of floats")
        self.session, self.output, self.where = session, output, where
        self.name, self.dtype, self.shape = inputs[0].name, FLOATS[inputs[0].type], inputs[0].shape

    def raw(self, x: np.ndarray) -> Any:
        """What the session gives: an array, or a list of maps."""
        fixed = self.shape[0] if self.shape and isinstance(self.shape[0], int) else None
        return in_batches(self._shaped(x).astype(self.dtype), fixed, self._run, _joined)

    def _run(self, x: np.ndarray) -> Any:
        try:
            return self.session.run([self.output], {self.name: x})[0]
        except Exception as error:
            raise InputError(f"{self.where}: fails on samples of shape {x.shape[1:]} ({said(error)})") from error

    def _shaped(self, x: np.ndarray) -> np.ndarray:
        """Samples in the input's shape, flattened where that is (n, features)."""
        wanted, given = list(self.shape[1:]), x.shape[1:]
        if len(wanted) == 1 and len(given) > 1:
            x, given = x.reshape(len(x), -1), (math.prod(given),)
        if len(given) != len(wanted) or any(isinstance(w, int) and w != g for w, g in zip(wanted, given, strict=True)):
            raise InputError(f"{self.where}: samples have shape {tuple(x.shape[1:])}; the model takes {tuple(wanted)}")
        return x


def _joined(parts: list[Any]) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [row for part in parts for row in part]


def _open(path: Path, output: str, where: str) -> Ask:
    run = _Run(_session(path, where), output, where)

    def ask(x: np.ndarray) -> np.ndarray:
        raw = run.raw(x)
        if not isinstance(raw, np.ndarray):
            return np.array([list(row.values()) for row in raw])
        return raw.astype(str) if raw.dtype == object else raw

    return ask
