"""A model that can only be asked, as a subject: what all adapters share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.errors import AssayError, InputError, unknown
from assay.subject.access import Access
from assay.subject.adapters.answers import Answers, Meaning, all_named, class_indices, meaning_of, table_of
from assay.subject.subject import Subject

Ask = Callable[[np.ndarray], Any]
PROBE = 64  # samples that tell what the answers mean
BATCH = 1024


class Backend:
    """What answers: opened when it is first asked unless ``opened`` is at hand, and anew in every process that it
    travels to.

    It is no part of a model's options (it has no ``__dict__``): the digest beside it says which one it is.
    """

    __slots__ = ("_opened", "_opens")

    def __init__(self, opens: Callable[[], Callable[[Any], Any]], opened: Callable[[Any], Any] | None = None) -> None:
        self._opens, self._opened = opens, opened

    def __call__(self, x: Any) -> Any:
        if self._opened is None:
            self._opened = self._opens()
        return self._opened(x)

    def __reduce__(self) -> tuple[Any, ...]:
        return Backend, (self._opens,)


class BlackBox(nn.Module):
    """A model without weights or gradients: maps x (n, ...) in the data's units to logits (n, c) by asking.

    A model that gives labels only gives a one in the column of each; its subject grants DECISION. ``remote``: asking
    costs queries, and an answer that was given before is not asked for again, so that times mean nothing.
    """

    def __init__(self, ask: Ask, answers: Answers, digest: str, *, remote: bool = False) -> None:
        super().__init__()
        self.ask, self.answers, self.digest, self.remote = ask, answers, digest, remote

    @property
    def meaning(self) -> Meaning:
        """What the model's answers are."""
        return self.answers.meaning

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        asked, where = x.detach().cpu().numpy(), self.answers.where
        try:
            raw = self.ask(asked)
        except AssayError:
            raise
        except Exception as error:  # what fails in another library may be anything
            raise InputError(f"{where}: fails on {len(asked)} samples ({said(error)}); expected answers") from error
        return torch.from_numpy(self.answers.logits(raw, len(asked))).to(x.device)


def black_box(
    ask: Ask,
    data: dict[str, Data | None],
    *,
    where: str,
    digest: str,
    meaning: Meaning | None = None,
    names: Sequence[Any] | None = None,
    probe: int = PROBE,
    remote: bool = False,
) -> Subject:
    """The subject behind ``ask``, which maps an array (n, ...) to answers. ``names``: the class of each column.

    Without ``meaning`` the answers to the first ``probe`` test samples tell what they mean. Those answers count in the
    model's identity, beside ``digest``. Raises InputError without test data, and for answers that are of no use.
    """
    test = needed(data, where)
    columns = None if names is None else tuple(class_indices(names, test.classes, where).tolist())
    try:
        raw = table_of(ask(test.x[:probe].numpy()), where)
    except AssayError:
        raise
    except Exception as error:  # what fails in another library may be anything
        raise InputError(f"{where}: fails on samples of shape {test.shape} ({said(error)})") from error
    meaning = meaning or meaning_of(raw, len(test.classes), where)
    numbered = None if meaning != "labels" else not all_named(raw, test.classes)
    answers = Answers(where, meaning, test.classes, columns, numbered)
    answers.logits(raw, min(probe, len(test)))
    seen = hashlib.sha256(f"{digest} {raw.dtype} {raw.shape}".encode() + raw.tobytes()).hexdigest()
    access = Access.DECISION if answers.meaning == "labels" else Access.SCORE
    given: dict[str, Any] = {k: v for k, v in data.items() if v is not None}
    return Subject(BlackBox(ask, answers, seen, remote=remote).eval(), name=where, access=access, **given)


def normalised(model: nn.Module) -> bool:
    """Whether the logits are logarithms of probabilities, so that their size tells nothing."""
    return getattr(model, "meaning", None) == "probabilities"


def margins(model: nn.Module) -> str | None:
    """What to tell the reader of a model's confidences where its scores are not meant to be turned into any."""
    if getattr(model, "meaning", None) != "margins":
        return None
    return "The model gives margins and no probabilities: the confidences are the softmax of its margins."


def asks_afar(model: nn.Module) -> bool:
    """Whether asking the model costs queries somewhere else."""
    return isinstance(model, BlackBox) and model.remote


def needed(data: dict[str, Data | None], where: str) -> Data:
    """The test data, which a bare model does not bring along."""
    test = data.get("test")
    if test is None:
        raise InputError(f"{where} is a bare model; expected --data with the test set")
    return test


def opened(rest: str, kind: str, options: Sequence[str] = ()) -> tuple[Path, str, dict[str, str]]:
    """The file in ``FILE[#option=value&..]``, what to call it in messages, and its options."""
    text, _, fragment = rest.partition("#")
    path = Path(text).expanduser()
    if not path.is_file():
        raise InputError(f"subject {kind}:{text}: no such file; expected {kind}:FILE")
    return path, f"{kind}:{path.name}", read_options(fragment, options, f"subject {kind}")


def read_options(fragment: str, known: Sequence[str], what: str) -> dict[str, str]:
    """``option=value&..`` as a dict; InputError for one that is not ``known``."""
    found = dict(parse_qsl(fragment, keep_blank_values=True))
    if fragment and not found:
        raise InputError(f"{what}: cannot read the options {fragment!r}; expected #option=value&..")
    for key in found:
        if key not in known:
            raise unknown(f"option of {what}:", key, known) if known else InputError(f"{what} takes no options")
    return found


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def said(error: BaseException) -> str:
    """An error of another library in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def flat(x: np.ndarray, features: int | None, where: str) -> np.ndarray:
    """Samples as rows (n, d), row-major; InputError unless there are as many ``features``."""
    rows = x.reshape(len(x), -1)
    if features is not None and rows.shape[1] != features:
        shape = tuple(x.shape[1:])
        raise InputError(f"{where}: samples of shape {shape} have {rows.shape[1]} features; expected {features}")
    return rows


def in_batches(x: Any, size: int | None, run: Callable[[Any], Any], join: Callable[[list[Any]], Any]) -> Any:
    """``run`` over ``x`` in batches of exactly ``size`` (the last filled up with copies of its last row), or of at most
    1024 where the model takes any."""
    if size is None:
        return join([run(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])
    parts = []
    for i in range(0, len(x), size):
        part = x[i : i + size]
        rows = [*range(len(part)), *[len(part) - 1] * (size - len(part))]
        parts.append(run(part[rows])[: len(part)])
    return join(parts)
