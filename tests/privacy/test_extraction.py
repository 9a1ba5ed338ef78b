"""The parts of data-free extraction against exact results, and the game that they are in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from assay.nets import MLP
from assay.privacy import (
    DFME,
    CaBaGe,
    CloneEnsemble,
    DisGUIDE,
    GeneratorEnsemble,
    GrowingClassifier,
    HardSampleReplay,
    ImageGenerator,
    SelectiveQuery,
    balance_loss,
    difficulty,
    disagreement_loss,
)
from assay.privacy.extraction.game import Game, centred
from assay.privacy.extraction.generator_ensemble import grey
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.subject.access import Oracle

SHAPE = (1, 8, 8)
SMALL = {"nz": 8, "width": 4, "batch": 16, "clip": 1.0, "lr_clone": 0.05}


def net() -> MLP:
    with seeded(0, "net"):
        return MLP(SHAPE, 4, (16,))


def quadrant(x: torch.Tensor) -> torch.Tensor:
    """Which quarter of an image is brightest."""
    return torch.stack([x[..., a, b].mean((1, 2, 3)) for a in HALVES for b in HALVES], 1).argmax(1)


HALVES = (slice(0, 4), slice(4, 8))


def test_selective_query_on_a_table_made_by_hand() -> None:
    """Classes 0, 0, 0, 0, 1, 1, 2: with b = 5 one place each, then the two hardest of what is left."""
    top = torch.tensor([0.9, 0.5, 0.7, 0.6, 0.8, 0.95, 0.99], dtype=torch.float64)
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    probs = ((1 - top) / 2)[:, None].expand(7, 3).clone().scatter_(1, classes[:, None], top[:, None])
    torch.testing.assert_close(difficulty(probs), 1 - top)
    assert SelectiveQuery().select(probs, 5).tolist() == [1, 2, 3, 4, 6]
    assert SelectiveQuery().select(probs, 3).tolist() == [1, 4, 6]
    assert SelectiveQuery().select(probs, 2).tolist() == [1, 3]  # no place for every class: the hardest
    assert SelectiveQuery().select(probs, 7).tolist() == list(range(7))


@given(st.integers(0, 500), st.integers(2, 6), st.integers(6, 40))
@settings(max_examples=40)
def test_selection_fills_quota_and_then_takes_the_hardest(seed: int, classes: int, p: int) -> None:
    g = torch.Generator().manual_seed(seed)
    probs = (2 * torch.randn(p, classes, generator=g, dtype=torch.float64)).softmax(1)
    b = int(torch.randint(1, p + 1, (1,), generator=g))
    rows = SelectiveQuery().select(probs, b)
    assert len(set(rows.tolist())) == len(rows) == b
    hard, predicted = difficulty(probs), probs.argmax(1)
    out = torch.tensor([i for i in range(p) if i not in set(rows.tolist())], dtype=torch.int64)
    for c in range(classes):
        own = rows[predicted[rows] == c]
        assert len(own) >= min(b // classes, int((predicted == c).sum()))
        left = out[predicted[out] == c]
        if len(own) and len(left):
            assert hard[left].max() <= hard[own].min()


def test_ties_go_to_the_lower_index() -> None:
    probs = torch.tensor([[0.6, 0.4]] * 5)
    assert SelectiveQuery().select(probs, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_replay_frequencies_are_the_weights(gamma: float) -> None:
    memory = HardSampleReplay(40, gamma, 0.05)
    hard = torch.linspace(0, 1, 40, dtype=torch.float64)
    memory.add(torch.zeros(40, 2), torch.zeros(40, dtype=torch.int64), hard)
    counts = torch.bincount(memory.sample(60_000, torch_rng(0, "draws"))[2], minlength=40).numpy()
    weights = (hard**gamma + 0.05).numpy()
    assert stats.chisquare(counts, weights / weights.sum() * counts.sum()).pvalue > 1e-4
    if gamma:
        assert stats.chisquare(counts).pvalue < 1e-6


def test_replay_overwrites_the_oldest_and_refreshes() -> None:
    memory, zero = HardSampleReplay(5), torch.zeros(3)
    for first in (0, 3):
        memory.add(torch.arange(first, first + 3.0)[:, None], torch.arange(first, first + 3), zero)
    assert len(memory) == 5
    x, answer, rows = memory.sample(200, torch_rng(0, "draws"))
    assert set(answer.tolist()) == {1, 2, 3, 4, 5}
    assert x[:, 0].tolist() == answer.tolist()
    memory.update(rows[:1], torch.ones(1))
    assert float(memory.weights[rows[0]]) == pytest.approx(1.05)
    assert float(memory.weights.sum()) == pytest.approx(1.05 + 4 * 0.05)


def test_appended_classes_leave_the_old_ones_and_get_a_fresh_optimiser_state() -> None:
    with seeded(0, "net"):
        model = GrowingClassifier(nn.Flatten(), 6, 2, capacity=8)
    x, optimiser = torch.randn(20, 6, generator=torch_rng(0, "x")), torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(20) % 2).backward()
        optimiser.step()
    before = model(x).detach()
    model.grow(4, torch_rng(0, "grow"))
    after = model(x).detach()
    assert after.shape == (20, 4)
    torch.testing.assert_close(after[:, :2], before, rtol=0, atol=1e-6)
    head = model.head
    assert float((head.weight[2] - head.weight[:2].mean(0)).detach().abs().max()) < 0.05
    assert head.bias[3].item() == pytest.approx(head.bias[:3].min().item())
    momentum = optimiser.state[head.weight]["momentum_buffer"]
    assert (momentum[2:] == 0).all()
    assert (momentum[:2] != 0).any()
    with pytest.raises(InputError, match="at most the capacity"):
        model.grow(9, torch_rng(0, "grow"))


def test_losses_of_the_generator_by_their_formulas() -> None:
    """DisGUIDE's code: -mean(std over clones, unbiased); sum p ln p of the mean over clones and batch plus 1e-6."""
    logits = torch.randn(2, 9, 5, generator=torch_rng(0, "logits"), dtype=torch.float64)
    probs = logits.softmax(2)
    spread = [
        math.sqrt(sum((float(probs[k, n, c]) - float(probs[:, n, c].mean())) ** 2 for k in range(2)) / 1)
        for n in range(9)
        for c in range(5)
    ]
    assert float(disagreement_loss(probs)) == pytest.approx(-sum(spread) / 45, abs=1e-9)
    mean = [sum(float(probs[k, n, c]) + 1e-6 for k in range(2) for n in range(9)) / 18 for c in range(5)]
    assert float(balance_loss(probs)) == pytest.approx(sum(p * math.log(p) for p in mean), abs=1e-9)
    even = torch.full((2, 4, 5), 0.2)
    assert float(balance_loss(even)) == pytest.approx(-math.log(5), abs=1e-4)


def test_the_disagreement_of_saturated_clones_has_a_finite_slope() -> None:
    z = torch.tensor([[[60.0, 0, -60.0]], [[70.0, -10, -30]]], requires_grad=True)
    (grad,) = torch.autograd.grad(disagreement_loss(z.softmax(2)), z)
    assert torch.isfinite(grad).all()


def test_soft_targets_are_logits_up_to_a_constant() -> None:
    logits = torch.randn(6, 5, generator=torch_rng(0, "logits"))
    expected = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(centred(logits.softmax(1)), expected, rtol=0, atol=1e-5)


def test_generators_differ_make_images_and_are_renewed_one_at_a_time() -> None:
    ensemble = GeneratorEnsemble((3, 8, 12), 3, 8, 4, seed=0)
    x, origin = ensemble.pool(14, torch_rng(0, "pool"))
    assert x.shape == (14, 3, 8, 12)
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    assert torch.bincount(origin).tolist() == [5, 5, 4]
    weights = [member.start.weight.clone() for member in ensemble.members]
    assert not weights[0].equal(weights[1])
    changed = ensemble.renew(1)
    assert [member.start.weight.equal(w) for member, w in zip(ensemble.members, weights, strict=True)] == [
        True,
        False,
        True,
    ]
    assert changed[0] is ensemble.members[1].start.weight
    with pytest.raises(InputError, match="divisible by 4"):
        ImageGenerator((1, 10, 8))


def test_grey_copies_one_channel_of_some_images() -> None:
    x = torch.rand(5, 3, 4, 4, generator=torch_rng(0, "x"))
    found = grey(x, 2, 1)
    assert found[1::2].equal(x[1::2])
    assert found[::2].equal(x[::2, 1:2].expand(-1, 3, -1, -1))
    assert grey(x, 0, 1) is x


def test_the_ensemble_gives_the_log_of_the_mean_probability() -> None:
    members: list[nn.Module] = [net(), MLP(SHAPE, 4, (8,))]
    x = torch.rand(3, *SHAPE, generator=torch_rng(0, "x"))
    mean = torch.stack([m(x).softmax(1) for m in members]).mean(0)
    torch.testing.assert_close(CloneEnsemble(members)(x).exp(), mean)


def test_cabage_asks_harder_than_its_pool_and_learns_the_classes() -> None:
    found = CaBaGe(n_generators=2, **SMALL).extract(quadrant, net(), SHAPE, budget=480, seed=0)
    assert found.queries == 480
    assert len(found.history) == 30
    assert sum(row["asked"] > row["pool"] for row in found.history) >= 27
    assert sorted(found.labels_seen.tolist()) == [0, 1, 2, 3]
    assert found.history[-1]["classes"] == 4
    assert found.to_frame()["queries"].tolist() == list(range(16, 481, 16))


def test_a_head_that_grows_starts_from_the_seed() -> None:
    runs = []
    for state in (1, 2):
        torch.manual_seed(state)
        found = CaBaGe(n_generators=2, **SMALL).extract(quadrant, net(), SHAPE, budget=64, seed=0)
        runs.append(found.history)
    assert runs[0] == runs[1]


def test_generators_are_renewed_in_turn_and_when_their_classes_are_few() -> None:
    method = CaBaGe(n_generators=2, renew_share=0.25, renew_window=10, **SMALL)
    game = Game(method, Oracle(quadrant), 160, 0, None, SHAPE)
    due = {}
    for game.step in range(0, 160, 4):
        if method.renewals(game):
            due[game.step] = method.renewals(game)
    assert due == {40: [0], 80: [1], 120: [0]}
    game.step, game.labels, game.since = 8, [0, 1, 2, 3], [[0] * 12, [0, 1, 2, 3] * 3]
    assert method.renewals(game) == [0]


@pytest.mark.parametrize("directions", [1, 2])
def test_dfme_counts_the_queries_of_its_gradients(directions: int) -> None:
    asked = []

    def victim(x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return net()(x).softmax(1).detach()

    method = DFME(directions=directions, fresh=2, num_classes=4, **SMALL)
    assert method.cost == 16 * (directions + 3)
    found = method.extract(victim, net(), SHAPE, budget=3 * method.cost + 5, seed=0)
    assert found.queries == sum(asked) == 3 * method.cost


def test_dfme_estimates_the_slope_of_a_distance_that_is_linear() -> None:
    """Over many directions the estimate is the gradient of the mean distance before tanh."""
    method = DFME(directions=3000, num_classes=4, step=1e-2, **SMALL)
    with seeded(0, "generator"):
        member = ImageGenerator(SHAPE, 8, 4).double().eval()
    clone, target = net().double(), torch.full((4,), 0.25, dtype=torch.float64)
    game = Game(method, Oracle(lambda x: target.expand(len(x), 4)), 10, 0, None, SHAPE)
    z = torch.randn(2, 8, generator=torch_rng(0, "z"), dtype=torch.float64)
    pixels = member.before(z)
    (true,) = torch.autograd.grad(clone(member.squash(pixels)).abs().mean(1).mean(), pixels)
    loss = method.generator_loss(game, member, [clone], z)
    kept = list(member.parameters())
    found = torch.autograd.grad(loss, kept)
    expected = torch.autograd.grad(-(member.before(z) * true).sum(), kept)
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in (found, expected))
    assert float(nn.functional.cosine_similarity(a, b, dim=0)) > 0.95
    assert float(a.norm() / b.norm()) == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SelectiveQuery().select(torch.rand(3, 2), 4),
        lambda: SelectiveQuery().select(torch.full((3, 2), math.nan), 2),
        lambda: HardSampleReplay(0),
        lambda: HardSampleReplay(3, floor=0.0),
        lambda: HardSampleReplay(3).sample(1, torch_rng(0, "none")),
        lambda: HardSampleReplay(3).add(torch.zeros(2, 1), torch.zeros(2), torch.tensor([0.5, 1.5])),
        lambda: GrowingClassifier(nn.Flatten(), 4, 5, capacity=3),
        lambda: DFME(soft=False),
        lambda: DisGUIDE(clip=0.0),
        lambda: CaBaGe(num_classes=1),
    ],
)
def test_bad_input(make) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
