"""Level set traversal: from a source image towards any other image, at the source's confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks.balls import wide
from assay.attacks.base import Goal, Untargeted, check_outputs
from assay.attacks.engine import Climb, IterativeAttack
from assay.attacks.nearest import scaled, unit
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of, evaluating
from assay.runtime.random import Draws


def confidence(logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The softmax probability of class ``y`` for each row."""
    return torch.sigmoid(-Untargeted(y).likelihood(logits))


@dataclass(frozen=True)
class LSTResult:
    """Where traversals ended.

    x (n, ...) the last accepted points, in bounds; conf (n,) and conf0 (n,) the source class's confidence there and at
    the sources, in [0, 1]; conf_target (n,) that of the target's class; accepted (n, steps) which steps were taken;
    valid (n,) which sources were classified as ``y`` (the others stay where they are, with no step accepted); queries
    and gradients (n,) int64, forward and backward passes at points on the way. ``path`` (n, k, ...) holds the points
    after every ``path_every``-th step, the jittered source first; None where not asked for.
    """

    x: Tensor
    conf: Float[Tensor, " n"]
    conf0: Float[Tensor, " n"]
    conf_target: Float[Tensor, " n"]
    accepted: Bool[Tensor, "n steps"]
    valid: Bool[Tensor, " n"]
    queries: Int[Tensor, " n"]
    gradients: Int[Tensor, " n"]
    path: Tensor | None = None


@dataclass(frozen=True)
class _Above(Goal):
    """The confidence in ``y`` is above ``floor``, on the way to ``target``."""

    y: Int[Tensor, " n"]
    floor: Float[Tensor, " n"]
    target: Float[Tensor, "n ..."]

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        return confidence(outputs, self.y) > self.floor

    def likelihood(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return Untargeted(self.y).likelihood(logits)


@dataclass(frozen=True, kw_only=True)
class LevelSetTraversal:
    """Walks at a source's confidence to whatever looks like a target (Balasubramanian et al., 2023, arXiv:2310.19889).

    Algorithm 1, as the authors' code has it. From x = clip(x_s + ``jitter`` U(-1/2, 1/2)), ``steps`` times, with J the
    gradient of the cross-entropy of class y at x:

    - Delta = x_t - x, and across = Delta - J (J . Delta) / (J . J), its part along the level set;
    - a = clip(a + (``adv_step`` / 2) J, -``adv_step``, ``adv_step``), from a = 0: a step that regains confidence;
    - x' = clip(x + ``step`` across - a), taken where p_y(x_s) - p_y(x') < ``conf_drop``; else x stays and a goes on.

    The published box ends at the first step not taken; the code, followed here, tries again with the larger a until
    that cannot change. J is computed through the log-odds log((1 - p_y) / p_y), whose gradient is J / (1 - p_y): the
    same direction where the cross-entropy is flat to rounding. ``grad`` "ce" then scales it by 1 - p_y for a, so that
    a is negligible where the model is sure; "margin" does not. A gradient of 0 leaves across = Delta. Where the jitter
    alone costs ``conf_drop`` the walk starts at x_s, so every result keeps its confidence. The authors' gradient is
    that of a batch's mean; here a sample does not depend on its batch. One forward and one backward pass a step.
    """

    kind: ClassVar[str] = "function"

    step: float = 1e-2
    steps: int = 400
    conf_drop: float = 0.2
    adv_step: float = 2e-3
    jitter: float = 4 / 255
    grad: Literal["ce", "margin"] = "ce"
    on_error: Literal["raise", "mask"] = "raise"
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        where = "LevelSetTraversal"
        if self.steps < 1 or not (0 < self.step <= 1 and 0 < self.conf_drop <= 1):
            given = f"steps={self.steps}, step={self.step}, conf_drop={self.conf_drop}"
            raise InputError(f"{where}: {given}; expected steps >= 1, step and conf_drop in (0, 1]")
        if not all(math.isfinite(v) and v >= 0 for v in (self.adv_step, self.jitter)):
            raise InputError(f"{where}: adv_step={self.adv_step}, jitter={self.jitter}; expected finite, >= 0")
        if self.grad not in ("ce", "margin"):
            raise unknown(f"grad of {where}", self.grad, ("ce", "margin"))
        if self.on_error not in ("raise", "mask"):
            raise unknown(f"on_error of {where}", self.on_error, ("raise", "mask"))
        if len(self.bounds) != 2 or not self.bounds[0] < self.bounds[1]:
            raise InputError(f"{where}: bounds are {self.bounds}; expected (low, high) with low < high")

    def across(self, delta: Float[Tensor, "n ..."], grad: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The part of ``delta`` at right angles to ``grad``, sample by sample."""
        along = unit(grad)
        return delta - scaled(along, (along * delta).flatten(1).sum(1))

    def accepts(self, above: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which steps are taken, given which keep the confidence above p_y(x_s) - conf_drop."""
        return above

    def __call__(
        self,
        model: nn.Module,
        x_src: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        x_tgt: Float[Tensor, "n ..."],
        *,
        seed: int,
        target_class: Int[Tensor, " n"] | None = None,
        index: Int[Tensor, " n"] | None = None,
        path_every: int = 0,
        batch_size: int = BATCH,
    ) -> LSTResult:
        """Walk from each source, of class ``y``, towards its target; on the device of ``x_src``.

        ``target_class`` (n,): whose confidence ``conf_target`` is; by default what the model takes the target for.
        ``index`` names the samples for the jitter. Raises InputError for unusable inputs, for shapes that differ, and
        for sources that the model does not take for ``y`` unless ``on_error`` is "mask".
        """
        where = "LevelSetTraversal"
        check_inputs(where, x_src, y, self.bounds)
        check_inputs(f"{where}: targets", x_tgt, None, self.bounds)
        if x_tgt.shape != x_src.shape or x_tgt.dtype != x_src.dtype:
            given = f"{x_tgt.dtype} {tuple(x_tgt.shape)}"
            raise InputError(f"{where}: targets are {given}; expected {x_src.dtype} {tuple(x_src.shape)}")
        index = torch.arange(len(x_src)) if index is None else index
        check_labels(f"{where}: index", index, len(x_src))
        if target_class is not None:
            check_labels(f"{where}: target_class", target_class, len(x_src))
        if path_every < 0 or batch_size < 1:
            raise InputError(f"{where}: path_every={path_every}, batch_size={batch_size}; expected >= 0 and >= 1")
        device, parts = device_of(model), []
        with evaluating(model):
            for k in range(0, len(x_src), batch_size):
                rows = slice(k, k + batch_size)
                classes = None if target_class is None else target_class[rows].to(device)
                x, labels, target, names = (t[rows].detach().to(device) for t in (x_src, y, x_tgt, index))
                parts.append(self._traverse(model, x, labels, target, names, classes, seed, path_every))
        return _joined(parts, x_src.device)

    def _traverse(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor, index: Tensor, classes: Tensor | None, seed: int,
        path_every: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        with torch.no_grad():
            logits = model(x)
            check_outputs("LevelSetTraversal", logits, Untargeted(y))
            classes = model(target).argmax(1) if classes is None else classes
            check_labels("LevelSetTraversal: target_class", classes, len(x), logits.shape[1])
        valid, conf0 = logits.argmax(1) == y, confidence(logits, y)
        if self.on_error == "raise" and not valid.all():
            wrong = f"{int((~valid).sum())} sources are not classified as y"
            raise InputError(f"LevelSetTraversal: {wrong}; expected none (on_error='mask' leaves them out)")
        goal = _Above(y, conf0 - self.conf_drop, target)
        rows = valid.nonzero()[:, 0]
        draws = Draws(seed, "level-set traversal", index[rows])
        walk = _Walk(_Steps(steps=self.steps, method=self), model, x[rows], goal.select(rows), draws)
        walk.value, walk.path_every = conf0[rows].clone(), path_every
        if len(rows):
            walk.run()
        found = {"x": _put(x, rows, walk.x_adv), "conf": _put(conf0, rows, walk.value), "conf0": conf0, "valid": valid}
        for name in ("accepted", "queries", "gradients"):
            part = getattr(walk, name)
            found[name] = _put(part.new_zeros(len(x), *part.shape[1:]), rows, part)
        if path_every:
            points = [*walk.path, *[walk.x_adv] * (self.steps // path_every + 1 - len(walk.path))]
            still = x[:, None].repeat(1, len(points), *[1] * (x.dim() - 1))
            found["path"] = _put(still, rows, torch.stack(points, 1))
        with torch.no_grad():
            found["conf_target"] = confidence(model(found["x"]), classes)
        return found


def _put(whole: Tensor, rows: Tensor, part: Tensor) -> Tensor:
    out = whole.clone()
    out[rows] = part
    return out


def _joined(parts: list[dict[str, Tensor]], device: torch.device) -> LSTResult:
    return LSTResult(**{name: torch.cat([p[name] for p in parts]).to(device) for name in parts[0]})


class _Walk(Climb):
    """A run that also keeps which steps were taken, and points on the way."""

    def __init__(self, attack: IterativeAttack, model: nn.Module, x: Tensor, goal: Goal, draws: Draws) -> None:
        super().__init__(attack, model, x, goal, draws)
        self.accepted = torch.zeros(len(x), attack.steps, dtype=torch.bool, device=x.device)
        self.path: list[Tensor] = []
        self.path_every = 0


@dataclass(frozen=True, kw_only=True)
class _Steps(IterativeAttack):
    """The traversal as the gradient engine runs it: the points that it proposes, and which are taken."""

    method: LevelSetTraversal

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        noise = run.draws.uniform(*run.x.shape[1:]).to(run.x) - 0.5
        z = (run.x + self.method.jitter * noise).clamp(*self.method.bounds)
        with torch.no_grad():
            z = torch.where(wide(run.goal.met(run.model(z)), z), z, run.x)
        run.queries += 1
        none = torch.zeros_like(run.rows, dtype=torch.bool)
        run.memory = {"x": z, "grad": z, "doubt": run.value, "shift": torch.zeros_like(z), "stuck": none}
        return z

    def settle(self, run: Climb) -> Bool[Tensor, " n"]:
        assert isinstance(run, _Walk)
        run.met = self.method.accepts(run.met)
        run.record(run.met, torch.sigmoid(-run.level))
        if run.step:
            run.accepted[run.rows, run.step - 1] = run.met
        if run.path_every and run.step % run.path_every == 0:
            run.path.append(run.x_adv.clone())
        return run.memory["stuck"] & ~run.met

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        method, kept = self.method, run.memory
        for name, new in (("x", run.z), ("grad", run.grad), ("doubt", run.level.sigmoid())):
            kept[name] = torch.where(wide(run.met, new), new, kept[name])
        slope = kept["grad"] if method.grad == "margin" else scaled(kept["grad"], kept["doubt"])
        shift = (kept["shift"] + method.adv_step / 2 * slope).clamp(-method.adv_step, method.adv_step)
        # A rejected step that is proposed again unchanged would be rejected for ever.
        kept["stuck"] = ~run.met & (shift == kept["shift"]).flatten(1).all(1)
        kept["shift"] = shift
        across = method.across(run.goal.target - kept["x"], kept["grad"])  # type: ignore[attr-defined]
        return (kept["x"] + method.step * across - shift).clamp(*method.bounds)
