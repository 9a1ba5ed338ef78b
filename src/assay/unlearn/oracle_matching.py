"""Unlearning as regression onto given outputs: those of retrained models, where somebody pays for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict
from assay.runtime.random import derive, torch_rng
from assay.subject import Subject
from assay.training import Plan, State, fit
from assay.training.engine import Hook
from assay.unlearn.base import Unlearner, joined, keep_at
from assay.unlearn.references import trained

LOSSES = ("mse", "ce")


@dataclass(frozen=True, kw_only=True)
class _Decaying(Plan):
    """A rate that is multiplied by ``decay`` after every ``epoch`` steps."""

    decay: float = 1.0
    epoch: int = 1

    def factor(self, step: int, total: int) -> float:
        return float(self.decay ** (step // self.epoch))


@dataclass(frozen=True, kw_only=True)
class OutputMatching(Unlearner):
    """Fine-tune the subject until its outputs are the ``targets`` that a subclass states (Georgiev et al., 2024,
    arXiv:2410.23232, section 4).

    On D_ft, ``forget`` repeated ``forget_multiplier`` times with ``retain_multiplier`` |forget| random retained
    samples, drawn once a seed (see ``chosen``), it minimises the mean of ||f(x) - target(x)||^2 ("mse") or the
    cross-entropy to the target's softmax ("ce"), plus ``l2_to_origin`` ||theta - theta_0||^2. The rate falls by
    ``decay`` every epoch; momentum is of "sgd" alone. No augmentation; training mode, but for batch norms with
    ``eval_norm``. Models may give (n, ..., c), such as a stack of networks. ``control`` matches the subject's own
    outputs.
    """

    loss: Literal["mse", "ce"] = "mse"
    lr: float = 5e-4
    epochs: int = 5
    batch_size: int = 512
    decay: float = 0.95
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    retain_multiplier: float = 3.0
    forget_multiplier: int = 1
    l2_to_origin: float = 0.0
    eval_norm: bool = False

    def __post_init__(self) -> None:
        who = type(self).__name__
        if self.loss not in LOSSES:
            raise unknown(f"loss of {who}", str(self.loss), LOSSES)
        if self.epochs < 0 or not self.lr > 0 or self.batch_size < 1 or not 0 < self.decay <= 1:
            raise InputError(
                f"{who}: epochs={self.epochs}, lr={self.lr}, batch_size={self.batch_size}, decay={self.decay}; "
                "expected epochs >= 0, lr > 0, batch_size >= 1, decay in (0, 1]"
            )
        shares = (self.retain_multiplier, self.l2_to_origin)
        if self.forget_multiplier < 1 or not all(math.isfinite(s) and s >= 0 for s in shares):
            raise InputError(
                f"{who}: forget_multiplier={self.forget_multiplier}, retain_multiplier={self.retain_multiplier}, "
                f"l2_to_origin={self.l2_to_origin}; expected at least 1, the others >= 0"
            )

    def chosen(self, forget: Data, retain: Data, *, seed: int) -> Data:
        """D_ft: ``forget``, repeated, then the retained samples in the order of their draw."""
        size = min(round(self.retain_multiplier * len(forget)), len(retain))
        again = forget[torch.arange(len(forget)).repeat(self.forget_multiplier)]
        if size == 0:
            return again
        return joined(again, retain[torch.randperm(len(retain), generator=torch_rng(seed, "match"))[:size]])

    def targets(self, subject: Subject, forget: Data, retain: Data, at: Data, *, seed: int) -> Float[Tensor, "m *k c"]:
        """The outputs to be matched on ``at``."""
        raise TypeError(f"{type(self).__name__} states no targets")

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The fine-tuned model."""
        return self._match(subject, forget, retain, seed)

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The same steps towards the subject's own outputs."""
        return self._match(subject, forget, retain, seed, own=True)

    def stages(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> list[nn.Module]:
        """See Unlearner."""
        at, kept = self.chosen(forget, retain, seed=seed), list[nn.Module]()
        each = -(-len(at) // self.batch_size)
        last = self._match(subject, forget, retain, seed, [keep_at(range(each, each * self.epochs, each), kept)])
        return [*kept, last]

    def _match(
        self,
        subject: Subject,
        forget: Data,
        retain: Data,
        seed: int,
        hooks: Sequence[Hook] = (),
        *,
        own: bool = False,
    ) -> nn.Module:
        self.check(subject, forget, retain)
        at = self.chosen(forget, retain, seed=seed)
        target = predict(subject.model, at.x) if own else self.targets(subject, forget, retain, at, seed=seed)
        if len(target) != len(at) or not torch.isfinite(target).all():
            raise InputError(
                f"{type(self).__name__}: targets {tuple(target.shape)}; expected one finite row for each of the "
                f"{len(at)} samples of chosen(forget, retain)"
            )
        plan = _Decaying(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            decay=self.decay,
            epoch=-(-len(at) // self.batch_size),
        )
        return fit(
            subject.model,
            replace(at, fields={"target": target}),
            lambda model, batch, state: self.distance(model, batch, state, subject.model),
            plan,
            seed=seed,
            hooks=hooks,
        )

    def distance(self, model: nn.Module, batch: Batch, state: State, origin: nn.Module) -> Tensor:
        """The loss of one batch."""
        if self.eval_norm:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        z, target = model(batch.x), batch.fields["target"]
        if self.loss == "mse":
            each = (z - target).square()
        else:
            each = -target.softmax(-1) * z.log_softmax(-1)
        total = each.flatten(1).sum(1).mean()
        if self.l2_to_origin:
            pairs = zip(model.parameters(), origin.parameters(), strict=True)
            total = total + self.l2_to_origin * sum(((p - q.detach()).square().sum() for p, q in pairs), start=0.0)
        return total


@dataclass(frozen=True, kw_only=True)
class OracleMatching(OutputMatching):
    """Match the mean outputs of models that never saw what is forgotten (Georgiev et al., 2024, arXiv:2410.23232,
    section 4.1, "OM"): the best that matching predicted outputs could do.

    ``oracles`` >= 1 models are trained by the subject's recipe on ``retain`` and their logits averaged, or with loss
    "ce" their softmax. ``oracle_logits`` (|D_ft|, ..., c), in the order of ``chosen``, takes the place of training.
    Raises AccessError where the subject has no recipe. Other options: see OutputMatching.
    """

    oracles: int = 10
    oracle_logits: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oracles < 1:
            raise InputError(f"OracleMatching: oracles={self.oracles}; expected at least 1")

    def targets(self, subject: Subject, forget: Data, retain: Data, at: Data, *, seed: int) -> Float[Tensor, "m *k c"]:
        """The mean of the oracles' logits, or the logarithm of that of their probabilities."""
        if self.oracle_logits is not None:
            return self.oracle_logits
        models = [trained(subject, retain, seed=derive(seed, "oracle", k)).model for k in range(self.oracles)]
        found = torch.stack([predict(m, at.x) for m in models])
        if self.loss == "ce":
            return found.log_softmax(-1).logsumexp(0) - math.log(len(models))
        return found.mean(0)
