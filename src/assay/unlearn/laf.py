"""Unlearning without labels, in the space of representations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched, device_of, evaluating
from assay.runtime.random import derive, seeded, torch_rng
from assay.subject import Subject
from assay.training import Plan, State, fit
from assay.training.engine import Hook, Player, fit_players
from assay.unlearn.base import Unlearner, joined, keep_at
from assay.unlearn.representation_vae import RepresentationVAE, check_sizes

Feature = str | Callable[[nn.Module, Tensor], Tensor]


def representation(model: nn.Module, x: Tensor, feature: Feature = "") -> Float[Tensor, "n d"]:
    """What ``model`` makes of ``x``, (n, d): the output of the module named ``feature``, or ``feature(model, x)``.

    The empty name stands for the input of the last linear layer. Gradients flow. Raises InputError for unknown names.
    """
    if not isinstance(feature, str):
        return feature(model, x).flatten(1)
    modules = dict(model.named_modules())
    linear = [m for m in modules.values() if isinstance(m, nn.Linear)]
    if (feature and feature not in modules) or not (feature or linear):
        raise unknown("module for representations", feature or "the last linear layer", filter(None, modules))
    caught: list[Tensor] = []
    if feature:
        handle = modules[feature].register_forward_hook(lambda _m, _i, out: caught.append(out))
    else:
        handle = linear[-1].register_forward_pre_hook(lambda _m, given: caught.append(given[0]))
    try:
        model(x)
    finally:
        handle.remove()
    return caught[-1].flatten(1)


def representations(model: nn.Module, x: Tensor, feature: Feature = "") -> Float[Tensor, "n d"]:
    """The same of many samples, in evaluation mode and without gradients, on the CPU."""
    with evaluating(model):
        return batched(lambda part: representation(model, part, feature), x, device=device_of(model))


def bounded(error: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """exp(u / (u + 1)), in [1, e) for errors u >= 0: what is climbed cannot run away."""
    return (error / (error + 1)).exp()


def laf_extractor_loss(retained: Float[Tensor, " n"], forgotten: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """Mean bounded reconstruction error of retained samples less that of forgotten ones, each by its own model.

    Shen et al. (2024), arXiv:2404.00506, as in the official code, but for means in place of sums.
    """
    return bounded(retained).mean() - bounded(forgotten).mean()


def laf_alignment_loss(
    retained: Float[Tensor, "n d"],
    retained_before: Float[Tensor, "n d"],
    forgotten: Float[Tensor, "m d"],
    forgotten_before: Float[Tensor, "m d"],
    tau: float = 20.0,
) -> Float[Tensor, ""]:
    """Mean over i of log(exp(c_i) / sum over j of exp(c_j / ``tau``)), c = 1 - cosine between now and before.

    i runs over retained and j over forgotten samples: the first stay aligned, the second turn away. Shen et al. (2024),
    arXiv:2404.00506, as in the official code, which sums over i.
    """
    near = 1 - F.cosine_similarity(retained, retained_before)
    far = 1 - F.cosine_similarity(forgotten, forgotten_before)
    return near.mean() - (far / tau).logsumexp(0)


class TakingTurns(torch.optim.Optimizer):
    """One Adam for each of ``rates`` over the same parameters; each step is the next one's."""

    def __init__(self, parameters: Sequence[Tensor], rates: Sequence[float]) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self.each, self.turn = [torch.optim.Adam(parameters, lr) for lr in rates], 0
        self.param_groups = [group for one in self.each for group in one.param_groups]

    def step(self, closure: Any = None) -> Any:
        """A step of the one whose turn it is."""
        found = self.each[self.turn].step(closure)
        self.turn = (self.turn + 1) % len(self.each)
        return found


@dataclass(frozen=True)
class LabelFree:
    """The unlearned model, and the autoencoders of what is retained and forgotten, of the subject's representations."""

    model: nn.Module
    retained_: RepresentationVAE
    forgotten_: RepresentationVAE


@dataclass(frozen=True, kw_only=True)
class LAF(Unlearner):
    """Move what is forgotten out of its own distribution and keep the rest where it was, without reading a label (Shen
    et al., 2024, arXiv:2404.00506, "label-agnostic forgetting").

    Two RepresentationVAEs learn the representations of all samples (or of ``retain``: ``retained_vae_on``) and of
    ``forget``. Then, pair by pair of a batch of each set, a step on ``laf_extractor_loss`` at ``lr_ue`` and one on
    ``laf_alignment_loss`` at ``lr_ra``, each with its own Adam, over the parameters that the representation (see
    ``representation``) depends on. In evaluation mode throughout, as in the official code: running statistics and the
    head stay. An epoch has as many pairs as the smaller set has batches; ``steps`` pairs in all where it is given:
    the number of steps is what counts, on small sets hundreds. ``latent`` is 8, or 16 for large networks. ``control``
    keeps the representations of both sets. With labels of a few samples: ``supervised_repair``.
    """

    feature: Feature = ""
    latent: int = 8
    vae_epochs: int = 10
    kl_weight: float = 0.025
    vae_out: Literal["sigmoid", "linear"] = "sigmoid"
    retained_vae_on: Literal["all", "retain"] = "all"
    epochs: int = 20
    steps: int | None = None
    batch_size: int = 32
    lr_ue: float = 5e-5
    lr_ra: float = 1e-4
    tau: float = 20.0

    def __post_init__(self) -> None:
        good = min(self.epochs, self.vae_epochs, self.steps or 0) >= 0 and self.batch_size >= 1
        if not good or not min(self.lr_ue, self.lr_ra, self.tau) > 0 or not self.kl_weight >= 0:
            raise InputError(
                f"LAF: epochs={self.epochs}, vae_epochs={self.vae_epochs}, steps={self.steps}, "
                f"batch_size={self.batch_size}, lr_ue={self.lr_ue}, lr_ra={self.lr_ra}, tau={self.tau}, "
                f"kl_weight={self.kl_weight}; expected epochs, steps, kl_weight >= 0, the others > 0"
            )
        if self.retained_vae_on not in ("all", "retain"):
            raise unknown("retained_vae_on of LAF", str(self.retained_vae_on), ("all", "retain"))
        check_sizes(1, self.latent, self.vae_out)

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """See Unlearner."""
        return self.fit(subject, forget, retain, seed=seed).model

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """See Unlearner."""
        return self.fit(subject, forget, retain, seed=seed, control=True).model

    def stages(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> list[nn.Module]:
        """See Unlearner; the last alone where ``steps`` are given."""
        each, kept = 2 * self.pairs(forget, retain), list[nn.Module]()
        ends = [] if self.steps is not None else range(each, each * self.epochs, each)
        last = self.fit(subject, forget, retain, seed=seed, hooks=[keep_at(ends, kept)]).model
        return [*kept, last]

    def pairs(self, forget: Data, retain: Data) -> int:
        """Pairs of batches in an epoch."""
        return -(-min(len(forget), len(retain)) // self.batch_size)

    def autoencoders(
        self, subject: Subject, forget: Data, retain: Data, *, seed: int
    ) -> tuple[RepresentationVAE, RepresentationVAE]:
        """Those of what is retained and of what is forgotten."""
        kept = joined(forget, retain) if self.retained_vae_on == "all" else retain
        found = []
        for name, part in (("retained", kept), ("forgotten", forget)):
            e = representations(subject.model, part.x, self.feature)
            with seeded(seed, "shape"):
                vae = RepresentationVAE(e.shape[1], self.latent, self.vae_out)
            fitted = vae.fit(
                e,
                seed=derive(seed, name),
                epochs=self.vae_epochs,
                batch_size=self.batch_size,
                kl_weight=self.kl_weight,
            )
            found.append(fitted.to(device_of(subject.model)))
        return found[0], found[1]

    def fit(
        self,
        subject: Subject,
        forget: Data,
        retain: Data,
        *,
        seed: int,
        control: bool = False,
        hooks: Sequence[Hook] = (),
    ) -> LabelFree:
        """The unlearned model with its autoencoders."""
        self.check(subject, forget, retain)
        vaes = self.autoencoders(subject, forget, retain, seed=seed)
        sets = {"forget": forget, "retain": retain}
        before = {name: representations(subject.model, part.x, self.feature) for name, part in sets.items()}
        each = self.pairs(forget, retain)

        def drawn(name: str, epoch: int, j: int) -> Tensor:
            order = torch.randperm(len(sets[name]), generator=torch_rng(seed, name, epoch))
            return order[j * self.batch_size : (j + 1) * self.batch_size]

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            model.eval()
            pair, second = divmod(state.step, 2)
            device = batch.x.device
            rows = {name: drawn(name, *divmod(pair, each)) for name in sets}
            e = {k: representation(model, sets[k].x[r].to(device), self.feature) for k, r in rows.items()}
            old = {k: before[k][r].to(device) for k, r in rows.items()}
            return self.loss(bool(second), vaes, e, old, control)

        # The engine counts the steps over one sample; what is trained on comes in pairs of batches.
        pairs = each * self.epochs if self.steps is None else self.steps
        plan = Plan(steps=2 * pairs, batch_size=1, schedule="constant", optimizer=self.optimizer)
        model = fit(subject.model, forget[:1], objective, plan, seed=seed, hooks=hooks)
        return LabelFree(model, *vaes)

    def optimizer(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """The two Adams."""
        return TakingTurns(parameters, (self.lr_ue, self.lr_ra))

    def loss(
        self,
        second: bool,
        vaes: tuple[RepresentationVAE, RepresentationVAE],
        e: dict[str, Tensor],
        old: dict[str, Tensor],
        control: bool,
    ) -> Tensor:
        """The extractor loss of a pair, or its alignment loss (``second``), from representations now and before."""
        kept, lost = e["retain"], e["forget"]
        if not second:
            errors = vaes[0](kept), vaes[1](lost)
            return bounded(torch.cat(errors)).mean() if control else laf_extractor_loss(*errors)
        if control:
            return (1 - F.cosine_similarity(torch.cat([kept, lost]), torch.cat([old["retain"], old["forget"]]))).mean()
        return laf_alignment_loss(kept, old["retain"], lost, old["forget"], self.tau)


def head_parameters(model: nn.Module, x: Tensor, feature: Feature = "") -> list[str]:
    """The names of the parameters that the representation of ``x`` does not depend on: those of the classifier."""
    names, weights = zip(*model.named_parameters(), strict=True)
    total = representation(model, x, feature).sum()
    found = torch.autograd.grad(total, weights, allow_unused=True)
    return [name for name, g in zip(names, found, strict=True) if g is None]


def supervised_repair(
    model: nn.Module,
    labelled: Data,
    *,
    feature: Feature = "",
    epochs: int = 1,
    lr: float = 1e-3,
    batch_size: int = 32,
    seed: int,
) -> nn.Module:
    """A copy of ``model`` with its classifier alone trained on a few labelled samples (Shen et al., 2024,
    arXiv:2404.00506, "LAF+R"): cross-entropy, Adam, the representation fixed, in evaluation mode.
    """
    check_inputs("supervised_repair", labelled.x, labelled.y, labelled.bounds)
    head = head_parameters(model, labelled.x[:1].to(device_of(model)), feature)
    if not head:
        raise InputError("supervised_repair: the representation depends on every parameter; expected a classifier")

    def chosen(other: nn.Module) -> list[Tensor]:
        return [p for name, p in other.named_parameters() if name in head]

    def objective(models: Any, batch: Batch, state: State) -> Tensor:
        return F.cross_entropy(models["model"].eval()(batch.x), batch.y)

    plan = Plan(epochs=epochs, batch_size=batch_size, lr=lr, schedule="constant")
    player = Player(model=model, objective=objective, plan=plan, parameters=chosen)
    return fit_players({"model": player}, labelled, seed=seed)["model"]
