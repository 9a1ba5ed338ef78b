"""A model behind a purifier: what is gained against an attack that sees the model alone, and what is left otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Bool
from torch import Tensor, nn

from assay.attacks import PGD, Attack, Square, Untargeted
from assay.attacks.balls import L1
from assay.audit.property import Plot, Section
from assay.data import Data
from assay.defenses import Purified
from assay.runtime.inference import predict
from assay.runtime.metric import measured

QUERIES = 500
EOT = 10
PROBE = 32
GAIN, NONE = 0.1, 0.05  # what counts as a gain in accuracy, and as none


def purifier_of(model: nn.Module) -> Purified | None:
    """The purifier that a model stands behind, wherever it is in the model."""
    return next((m for m in model.modules() if isinstance(m, Purified)), None)


def gradient_draws(model: nn.Module, x: Tensor) -> int:
    """The passes that a gradient has to average: EOT where the model answers the same inputs differently, else one."""
    return 1 if predict(model, x[:PROBE]).equal(predict(model, x[:PROBE])) else EOT


def around_and_through(
    purified: Purified, model: nn.Module, data: Data, pgd: PGD, seed: int
) -> dict[str, Bool[Tensor, " n"]]:
    """What a model behind a purifier holds against, by what the attack knows.

    ``undefended``: the model without it; ``greybox``: with it, on inputs made against the model without it;
    ``adaptive``: with it, under PGD through it (BPDA where it has no slope), Square, and those inputs, the worst.
    """

    def right(attack: Attack, net: nn.Module) -> tuple[Tensor, Tensor]:
        found = attack.run(net, data.x, Untargeted(data.y), seed=seed, index=data.index)
        return ~found.success, found.x_adv

    # Without early stop, so that what is handed to the purifier is as strong as the ball allows.
    bare, x_adv = right(replace(pgd, early_stop=False), purified.model)
    around = predict(model, x_adv).argmax(1) == data.y
    through, _ = right(pgd, model)
    held = around & through
    if _squared(data, pgd):
        held &= right(Square(ball=pgd.ball, bounds=data.bounds, budget=QUERIES), model)[0]
    return {"undefended": bare, "greybox": around, "adaptive": held}


def report(
    section: Section,
    held: Mapping[str, np.ndarray],
    purified: Purified,
    data: Data,
    pgd: PGD,
    *,
    name: str,
    eps: float,
) -> None:
    """Add to ``section`` what ``around_and_through`` found at ``eps`` (of the range)."""
    way = "the purifier's own slope" if purified.purify.differentiable else "BPDA"
    square = f" and of Square, {QUERIES} queries" if _squared(data, pgd) else ""
    texts = {
        "undefended": f"PGD-{pgd.steps} on the model without its purifier",
        "greybox": f"the inputs that PGD-{pgd.steps} made against the model without its purifier",
        "adaptive": f"worst of those, of PGD-{pgd.steps} through the purifier ({way}){square}",
    }
    values = {}
    for key, how in texts.items():
        text = f"{how}, eps {eps:g} of the range, on {len(data)} samples"
        rows = held[key].astype(float)
        metric = section.add(measured(f"{name}.{key}@{eps:g}", rows, data.index.numpy(), better="higher", how=text))
        assert metric.value is not None
        values[key] = metric.value
    section.plots.append(
        Plot("bar", "By what the attack knows", {"": {"x": list(values), "y": list(values.values())}}, "", "accuracy")
    )
    section.findings.append(_finding(values, getattr(purified.purify, "name", type(purified.purify).__name__), way))


def _squared(data: Data, pgd: PGD) -> bool:
    """Whether Square takes part: it perturbs images, in l-infinity and l2."""
    return data.x.dim() == 4 and not isinstance(pgd.ball, L1)


def _finding(values: dict[str, float], purifier: str, way: str) -> tuple[float, str]:
    bare, around, held = values["undefended"], values["greybox"], values["adaptive"]
    text = (
        f"Behind the purifier ({purifier}) {around:.1%} of inputs attacked without knowing of it are read right, "
        f"{bare:.1%} without it; {held:.1%} once the attack goes through it ({way})"
    )
    if around > bare + GAIN and held <= bare + NONE:
        return 0.95, f"{text}: the gain is against attacks that do not know of the purifier only."
    return 1 - held, f"{text}."
