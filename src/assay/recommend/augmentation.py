"""Autoregressive augmentation generation: rows that go the way of the few real ones, with a victim's lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch
from assay.recommend.few_shot import FewShot
from assay.recommend.generation import Answers, Generation
from assay.recommend.interaction_sampler import ProbabilisticInteractionSampler
from assay.recommend.items import contained
from assay.recommend.recommender import next_item_loss, sequence_data
from assay.recommend.synthesis_signal import SynthesisSignal
from assay.runtime.random import seeded
from assay.training import Plan, State, fit


class UserModel(nn.Module):
    """The sampler and the signal, which reads the sampler's states."""

    def __init__(self, sampler: ProbabilisticInteractionSampler) -> None:
        super().__init__()
        self.sampler, self.signal = sampler, SynthesisSignal(2 * sampler.width)

    def loss(self, rows: Tensor, lists: Tensor) -> Float[Tensor, ""]:
        """Next-item cross-entropy of the sampler, and that of the signal for whether the next item was on the list."""
        known = (rows[:, :-1] > 0) & (rows[:, 1:] > 0)
        followed = contained(rows[:, 1:][known][:, None], lists[:, :-1][known])[:, 0]
        states = self.sampler.states(rows[:, :-1])[known]
        return next_item_loss(self.sampler, rows) + self.signal.loss(states, followed)


@dataclass(frozen=True, kw_only=True)
class AugmentationGeneration(Generation):
    """The victim's list by the interaction sampler, or the pool, as the signal says (arXiv:2411.11677).

    Zhang and Liu (2024): with probability sigma_t the next item comes from the list, by attention times rating, else
    from the pool of the few sequences, by transitions and popularity. The first item is drawn by popularity.
    ``attentive`` False draws from the list uniformly, everything else kept: the control of the sampler.
    """

    user: UserModel
    attentive: bool = True

    def start(self, counts: FewShot, n_items: int) -> Float[Tensor, " v"]:
        return counts.seen / counts.seen.sum()

    def following(self, rows: Tensor, lists: Tensor, draw: Tensor, counts: FewShot) -> Float[Tensor, "n v"]:
        sampler = self.user.sampler
        recent = rows[:, -sampler.length :]
        weights = sampler.probabilities(recent, lists, counts.ratings) if self.attentive else torch.ones(lists.shape)
        listed = torch.zeros(len(rows), len(counts.seen)).scatter(1, lists, weights)
        follows = draw < self.user.signal(sampler.states(recent)[:, -1])
        return torch.where(follows[:, None], listed, counts.pool(rows[:, -1]))


def learn_user(sampler: ProbabilisticInteractionSampler, real: Answers, plan: Plan, *, seed: int) -> UserModel:
    """The user's model learned from the few real rows and the victim's lists after each of their items."""
    with seeded(seed, "signal"):
        start = UserModel(sampler)

    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        assert isinstance(model, UserModel)
        return model.loss(batch.fields["rows"], batch.fields["lists"])

    trained = fit(start, sequence_data(real.rows, sampler.n_items, lists=real.lists), objective, plan, seed=seed)
    assert isinstance(trained, UserModel)
    return trained
