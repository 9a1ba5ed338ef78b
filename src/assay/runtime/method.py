"""What all methods share: the kinds, and how a method is named from the command line."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from assay.runtime.errors import InputError, unknown

KINDS = (
    "loss", "attack", "universal", "no-box", "surrogate", "extractor", "identifier", "detector", "certifier", "bounder",
    "set-predictor", "calibrator", "trainer", "unlearner", "compressor", "selector", "explainer", "inference",
    "purifier", "inspector", "generator", "learner", "estimator", "measure", "function", "repair",
)  # fmt: skip


def configure(cls: type, options: dict[str, str]) -> Any:
    """An instance of a method class from text options, each converted to its field's type."""
    known = {f.name for f in fields(cls) if f.init} if is_dataclass(cls) else set()
    for name in options:
        if name not in known:
            raise unknown(f"option of {cls.__name__}", name, known)
    hints = get_type_hints(cls)
    try:
        return cls(**{k: _convert(v, hints[k]) for k, v in options.items()})
    except InputError:
        raise
    except Exception as error:  # a field may be compared, multiplied, rounded ...
        raise InputError(f"{cls.__name__}: {error or type(error).__name__}") from error


def _convert(text: str, hint: Any) -> Any:
    names = str(hint)
    if text.lower() == "none" and "None" in names:
        return None
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{text!r}: expected true or false")
        return text.lower() == "true"
    if hint is str or "Literal" in names:
        return text
    if "tuple" in names:
        return tuple(_number(t) for t in text.split("+"))
    return _number(text)


def _number(text: str) -> int | float:
    """An integer, a number, or a fraction such as 8/255."""
    top, slash, bottom = text.partition("/")
    try:
        if slash:
            return float(top) / float(bottom)
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{text!r}: expected a number or a fraction such as 8/255") from error
