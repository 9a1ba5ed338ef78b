"""How soon a model learns again what it was made to forget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from assay.data import Data
from assay.runtime.inference import predict
from assay.subject import Subject
from assay.training import State, Supervised
from assay.unlearn.base import together

SLOWER = 0.1
LOOKS = 25
LEAST = 100


def relearn_steps(model: nn.Module, subject: Subject, forget: Data, retain: Data, *, target: float, seed: int) -> int:
    """Training steps until the accuracy on ``forget`` is ``target`` again (Golatkar et al., 2020, arXiv:2003.02960,
    "relearn time"; Tarun et al., 2023, arXiv:2111.08947, whose index divides it by the retrained model's).

    By the subject's recipe on both sets at a tenth of its rate, held constant; looked at 25 times in one epoch or 100
    steps, whichever is more. 0 where the model has that accuracy already; all the steps where it never reaches it. A
    model that hides what it knows needs fewer steps than one that never saw it.
    """
    recipe = subject.recipe or Supervised()
    data = together(subject.training("relearning"), forget, retain)
    total = max(-(-len(data) // recipe.batch_size), LEAST)
    slow = replace(recipe, steps=total, lr=SLOWER * recipe.lr, schedule="constant", ema=None)
    every = max(total // LOOKS, 1)

    def look(models: Mapping[str, nn.Module], state: State) -> None:
        if state.step % every == 0 and right(models["model"], forget) >= target:
            raise _Reached(state.step)

    if right(model, forget) >= target:
        return 0
    try:
        slow.fit(model, data, seed=seed, hooks=[look])
    except _Reached as reached:
        return reached.step
    return total


class _Reached(Exception):
    """Ends a training that has come where it should."""

    def __init__(self, step: int) -> None:
        self.step = step


def right(model: nn.Module, data: Data) -> float:
    """Accuracy."""
    return float((predict(model, data.x).argmax(1) == data.y).double().mean())
