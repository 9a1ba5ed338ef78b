"""Made-up sequences: where items come from, what is asked, and that rows depend on their number alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.recommend import (
    Asked,
    AugmentationGeneration,
    AutoregressiveGeneration,
    Generation,
    ProbabilisticInteractionSampler,
    RandomGeneration,
    SynthesisSignal,
    UserModel,
    few_shot_counts,
    learn_user,
    normalised_ratings,
    windows,
)
from assay.recommend.generation import pick
from assay.runtime.errors import BudgetError, InputError
from assay.runtime.random import seeded
from assay.subject import Oracle
from assay.training import Plan

ITEMS, K = 20, 4


def victim(rows: Tensor) -> Tensor:
    """The four items that come after the last one in a circle."""
    return (rows[:, -1:] + torch.arange(K)) % ITEMS + 1


def sequences(follow: float, n: int = 40, length: int = 10) -> list[Tensor]:
    """Users who take the first item of the list with the probability ``follow``, else the opposite item."""
    g, out = torch.Generator().manual_seed(5), []
    for _ in range(n):
        row = [int(torch.randint(1, ITEMS + 1, (1,), generator=g))]
        while len(row) < length:
            on = float(torch.rand(1, generator=g)) < follow
            row.append(row[-1] % ITEMS + 1 if on else (row[-1] + 9) % ITEMS + 1)
        out.append(torch.tensor(row))
    return out


def user(sigma: float = 0.5) -> UserModel:
    with seeded(0, "user"):
        model = UserModel(ProbabilisticInteractionSampler(ITEMS, 8, 8))
    torch.nn.init.zeros_(model.signal.layer.weight)
    torch.nn.init.constant_(model.signal.layer.bias, float(torch.logit(torch.tensor(sigma))))
    return model.eval()


def every() -> list[Generation]:
    return [RandomGeneration(), AutoregressiveGeneration(), AugmentationGeneration(user=user())]


@pytest.mark.parametrize("generation", every(), ids=lambda g: type(g).__name__)
def test_rows_are_counted_new_and_of_their_number(generation: Generation) -> None:
    counts, asked = few_shot_counts(sequences(0.5), ITEMS), Asked(victim, ITEMS, K)
    random = torch.get_rng_state()
    found = generation.grow(asked, counts, 9, 6, seed=1)
    assert asked.oracle.queries == 9 * 6
    assert torch.get_rng_state().equal(random)
    assert found.rows.shape == (9, 6)
    assert found.rows.min() >= 1
    assert found.rows.max() <= ITEMS
    assert all(len(set(row)) == 6 for row in found.rows.tolist())
    for t in range(6):
        assert found.lists[:, t].equal(victim(found.rows[:, : t + 1]))
    fewer = generation.grow(Asked(victim, ITEMS, K), counts, 4, 6, seed=1)
    assert fewer.rows.equal(found.rows[:4])
    assert not generation.grow(Asked(victim, ITEMS, K), counts, 9, 6, seed=2).rows.equal(found.rows)


def test_items_come_from_the_list_or_the_pool_as_the_signal_says() -> None:
    counts = few_shot_counts(sequences(0.0), ITEMS)  # real users always go to the opposite item
    for sigma, on in ((1 - 1e-6, True), (1e-6, False)):
        made = AugmentationGeneration(user=user(sigma)).grow(Asked(victim, ITEMS, K), counts, 60, 4, seed=0)
        listed = (made.rows[:, 1:, None] == made.lists[:, :-1]).any(2).float().mean()
        opposite = ((made.rows[:, :-1] + 9) % ITEMS + 1 == made.rows[:, 1:]).float().mean()
        assert (listed == 1) == on
        assert on or opposite > 0.5
    auto = AutoregressiveGeneration().grow(Asked(victim, ITEMS, K), counts, 60, 4, seed=0)
    assert (auto.rows[:, 1:, None] == auto.lists[:, :-1]).any(2).all()


def test_probabilities_are_attention_times_rating_over_new_items() -> None:
    sampler = user().sampler.double()
    rows, lists = torch.tensor([[0, 3, 7], [1, 2, 5]]), torch.tensor([[9, 3, 12, 4], [6, 7, 8, 9]])
    ratings = torch.linspace(0, 1, ITEMS + 1).double()
    with torch.no_grad():
        found, scores = sampler.probabilities(rows, lists, ratings), sampler(rows)
    for k in range(2):
        raw = [
            0.0 if i in rows[k].tolist() else float(scores[k, i].exp() * (ratings[i] + sampler.floor))
            for i in lists[k].tolist()
        ]
        assert found[k].tolist() == pytest.approx([r / sum(raw) for r in raw])


@pytest.mark.parametrize("follow", [0.15, 0.85])
def test_the_signal_learns_how_often_users_follow(follow: float) -> None:
    real = Asked(victim, ITEMS, K).every_prefix(windows(sequences(follow), 8))
    with seeded(0, "init"):
        sampler = ProbabilisticInteractionSampler(ITEMS, 8, 8)
    model = learn_user(sampler, real, Plan(epochs=30, batch_size=16, lr=1e-2), seed=0)
    with torch.no_grad():
        sigma = model.signal(model.sampler.states(real.rows)[real.rows > 0]).mean()
    assert abs(float(sigma) - follow) < 0.1


def test_the_signal_s_loss_is_least_at_the_share() -> None:
    signal, states = SynthesisSignal(3), torch.zeros(100, 3)
    followed = torch.arange(100) < 30
    losses = []
    for share in (0.2, 0.3, 0.4):
        torch.nn.init.constant_(signal.layer.bias, float(torch.logit(torch.tensor(share))))
        losses.append(signal.loss(states, followed).item())
        assert signal(states).mean().item() == pytest.approx(share, rel=1e-5)
    assert losses[1] < min(losses[0], losses[2])


def test_pick_follows_its_weights_and_never_takes_a_zero() -> None:
    weights, u = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]), (torch.arange(1000) + 0.5) / 1000
    counts = torch.bincount(pick(weights.expand(1000, -1), u), minlength=5)
    assert counts.tolist() == [0, 250, 0, 750, 0]


def test_counts_and_ratings_by_hand() -> None:
    counts = few_shot_counts([torch.tensor([1, 2, 1]), torch.tensor([2, 1])], 3)
    assert counts.seen.tolist() == [0, 3, 2, 0]
    assert counts.follows[1].tolist() == [0, 0, 1, 0]
    assert counts.follows[2].tolist() == [0, 2, 0, 0]
    assert counts.ratings.tolist() == pytest.approx([0, 1, 2 / 3, 0])
    assert counts.pool(torch.tensor([2]))[0, 0] == 0
    assert counts.pool(torch.tensor([2])).sum().item() == pytest.approx(1)
    ratings = normalised_ratings(torch.tensor([1, 1, 2]), torch.tensor([5.0, 5.0, 2.0]), 3, shrinkage=1)
    means = [4, (10 + 4) / 3, (2 + 4) / 2, 4]
    assert ratings.tolist() == pytest.approx([m / means[1] for m in means])
    with pytest.raises(InputError, match="one finite number"):
        normalised_ratings(torch.tensor([1, 2]), torch.tensor([1.0, -2.0]), 3)


def test_victims_are_checked_and_budgets_kept() -> None:
    counts = few_shot_counts(sequences(0.5), ITEMS)
    for bad in (lambda r: victim(r) * 0, lambda r: victim(r)[:, :2], lambda r: victim(r)[:, [0, 0, 1, 2]]):
        with pytest.raises(InputError, match="victim"):
            RandomGeneration().grow(Asked(bad, ITEMS, K), counts, 3, 3, seed=0)
    with pytest.raises(BudgetError):
        RandomGeneration().grow(Asked(Oracle(victim, budget=8), ITEMS, K), counts, 3, 3, seed=0)
    for n, length in ((0, 3), (3, 0), (3, ITEMS)):
        with pytest.raises(InputError, match="length"):
            RandomGeneration().grow(Asked(victim, ITEMS, K), counts, n, length, seed=0)
    with pytest.raises(InputError, match="meta"):
        ProbabilisticInteractionSampler(ITEMS, meta=torch.zeros(3, 2))
