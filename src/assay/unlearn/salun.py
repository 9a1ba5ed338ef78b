"""Unlearning in the weights that matter for what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from assay.compress.pruning import Masks
from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.subject import Subject
from assay.training import State
from assay.training.engine import Hook
from assay.unlearn.l1_sparse import NORMS
from assay.unlearn.passes import PassLoss
from assay.unlearn.random_label import RandomLabel
from assay.unlearn.saliency import held, weight_saliency_mask


@dataclass(frozen=True)
class Salient:
    """The unlearned model, its ``mask_`` by parameter name (True could move), and ``history_``, the loss of each step.

    ``norms_`` names the layers whose running statistics moved: they belong to no mask.
    """

    model: nn.Module
    mask_: Masks
    history_: tuple[float, ...]
    norms_: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SalUn(RandomLabel):
    """Random labels on what is forgotten, in the most salient weights alone (Fan et al., 2024, arXiv:2310.12508,
    "SalUn"; the freezing of the official code).

    theta = m (theta_o + change) + (1 - m) theta_o, with m the ``sparsity`` of all weights whose gradient on ``forget``
    is largest (``weight_saliency_mask``), or a given ``mask``. All other weights stay bit for bit, whatever decay and
    momentum do; running statistics of norms move, unless ``freeze_bn_stats`` has these layers work in evaluation mode.
    With ``sparsity`` 1 it is RandomLabel, whose options it shares. The paper's rate goes with a ResNet-18; small
    networks want a larger one than RandomLabel does. ``control`` keeps the true labels, under the same mask.
    """

    sparsity: float = 0.5
    mask: Masks | None = None
    freeze_bn_stats: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sparsity <= 1:
            raise InputError(f"{type(self).__name__}: sparsity={self.sparsity}; expected a share in (0, 1]")

    def saliency_mask(self, model: nn.Module, forget: Data) -> Masks:
        """Which weights may move."""
        return self.mask if self.mask is not None else weight_saliency_mask(model, forget, sparsity=self.sparsity)

    def fit(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> Salient:
        """The unlearned model with its mask and losses."""
        self.check(subject, forget, retain)
        mask, losses = self.saliency_mask(subject.model, forget), list[float]()

        def keep(models: Mapping[str, nn.Module], state: State) -> None:
            losses.append(state.log[-1]["model"])

        model = replace(self, mask=mask).train(subject, forget, retain, seed=seed, hooks=[keep])
        before = dict(subject.model.named_buffers())
        moved = {k.rpartition(".")[0] for k, b in model.named_buffers() if not b.equal(before[k])}
        return Salient(model, mask, tuple(losses), tuple(sorted(moved)))

    def train(
        self,
        subject: Subject,
        forget: Data,
        retain: Data,
        *,
        seed: int,
        control: bool = False,
        hooks: Sequence[Hook] = (),
    ) -> nn.Module:
        """See PassUnlearner; the weights outside the mask are put back after every step, before ``hooks``."""
        self.check(subject, forget, retain)
        hold = held(self.saliency_mask(subject.model, forget), subject.model)
        return super().train(subject, forget, retain, seed=seed, control=control, hooks=[hold, *hooks])

    def losses(self, subject: Subject, forget: Data, retain: Data, *, seed: int, control: bool) -> PassLoss:
        """See RandomLabel."""
        labels = super().losses(subject, forget, retain, seed=seed, control=control)

        def loss(model: nn.Module, name: str, batch: Batch, state: State) -> Tensor:
            for module in model.modules():
                if isinstance(module, NORMS):
                    module.eval()
            return labels(model, name, batch, state)

        return loss if self.freeze_bn_stats else labels
