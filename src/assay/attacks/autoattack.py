"""AutoAttack: the standard evaluation of adversarial robustness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.apgd import APGD
from assay.attacks.balls import L2, Ball, Linf
from assay.attacks.base import Attack, AttackResult, Goal, Untargeted, check_outputs
from assay.attacks.fab import FAB
from assay.attacks.square import AsImages, Square
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched
from assay.subject.access import Access

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
TARGETS = 9


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """An ensemble without options to tune (Croce and Hein, 2020, arXiv:2003.01690, section 6), in linf or l2.

    Its members run in order, each on the samples that still hold: APGD on the cross-entropy, targeted APGD on the DLR
    loss and targeted FAB (both toward the nine likeliest wrong classes), and Square with 5,000 queries. ``version`` is
    "standard"; "plus", with untargeted APGD on DLR and FAB and five restarts; or "rand" for models that are random,
    with 20 passes a gradient. ``steps`` and ``budget`` are those of the members. A model of three classes gets targeted
    APGD on the cross-entropy, one of two APGD on the cross-entropy alone: DLR is not defined there. A goal that is not
    untargeted is attacked without the targeted runs. ``by`` in the result names the member that broke a sample:
    "clean" where none was needed, "" where it holds. Samples that are no images (c, h, w) are such of one
    row to Square. Shapes, ranges and errors: see Attack.
    """

    access: ClassVar[Access] = Access.GRADIENT
    guarantee: ClassVar[Literal["ball", "minimum-norm"]] = "ball"

    ball: Ball = Linf(8 / 255)
    version: Literal["standard", "plus", "rand"] = "standard"
    steps: int = 100
    budget: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.ball) not in (Linf, L2):  # the members know no other geometry
            self.refuse("ball", repr(self.ball), "Linf(eps) or L2(eps)")
        if self.version not in VERSIONS:
            raise unknown("version of AutoAttack", self.version, VERSIONS)
        if self.steps < 1 or self.budget < 1:
            self.refuse("steps, budget", (self.steps, self.budget), "at least 1 each")

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.ball.norm(delta)

    def members(self, classes: int, *, targeted: bool = True) -> dict[str, Attack]:
        """The attacks by name, in order, for a model of so many classes; ``targeted=False`` without targeted runs."""
        eps, plus = self.ball.eps, self.version == "plus"
        shared: dict[str, Any] = {"bounds": self.bounds}
        climb = {**shared, "ball": self.ball, "steps": self.steps, "eot": 20 if self.version == "rand" else 1}
        near = {**shared, "norm": "linf" if isinstance(self.ball, Linf) else "l2", "steps": self.steps, "enough": eps}
        toward = min(TARGETS, classes - 1) if targeted else 0
        known: dict[str, Attack] = {
            "apgd-ce": APGD(**climb, restarts=5 if plus else 1),
            "apgd-dlr": APGD(**climb, loss="dlr", restarts=5 if plus else 1),
            "apgd-t": APGD(**climb, loss="dlr" if classes > 3 else "ce", targets=toward),
            "fab": FAB(**near, restarts=5 if plus else 1, radius=max(eps, 1e-12)),
            "fab-t": FAB(**near, targets=toward),
            "square": Square(**shared, ball=self.ball, p=0.8, budget=self.budget, schedule=10_000),
        }
        needs = {"apgd-dlr": 3 if targeted else 4, "apgd-t": 3}
        return {name: known[name] for name in VERSIONS[self.version] if classes >= needs.get(name, 2)}

    def _batches(
        self,
        model: Any,
        x: Tensor,
        goal: Goal,
        seed: int,
        index: Tensor,
        size: int,
        start: Tensor | None,
        device: torch.device,
    ) -> AttackResult:
        """All samples at once: the members make batches of those that still hold."""
        if not isinstance(model, nn.Module):
            raise InputError(f"AutoAttack: the model is {type(model).__name__}; expected a torch module")
        outputs = batched(model, x, batch_size=size, device=device)
        check_outputs("AutoAttack", outputs, goal)
        if outputs.dim() != 2:
            raise InputError(f"AutoAttack: the model gives shape {tuple(outputs.shape)}; expected logits (n, c)")
        success = goal.met(outputs.to(goal.labels().device)).to(x.device)
        x_adv, by = x.clone(), ["clean" if met else "" for met in success.tolist()]
        queries = torch.ones(len(x), dtype=torch.int64, device=x.device)
        gradients = torch.zeros_like(queries)
        for name, member in self.members(outputs.shape[1], targeted=isinstance(goal, Untargeted)).items():
            rows = (~success).nonzero()[:, 0]
            if not len(rows):
                break
            flat = name == "square" and x.dim() != 4
            net, given = (AsImages(model, x.shape[1:]), x.reshape(len(x), 1, 1, -1)) if flat else (model, x)
            part = member.run(net, given[rows], goal.select(rows), seed=seed, index=index[rows], batch_size=size)
            queries[rows] += part.queries
            gradients[rows] += part.gradients
            won = part.success
            if member.guarantee == "minimum-norm":
                won = won & (part.distance <= self.ball.eps)
            x_adv[rows[won]], success[rows[won]] = part.x_adv[won].reshape(-1, *x.shape[1:]), True
            for row in rows[won].tolist():
                by[row] = name
        return AttackResult(x_adv, success, self.measure(x_adv - x), queries, gradients, by=tuple(by))
