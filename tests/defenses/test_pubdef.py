"""Stores, the modes of PubDef against sums by hand, the threat model's accuracies, and the choice of sources."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks import FGSM, MIFGSM, PGD, Linf
from assay.data import Data, load_data
from assay.defenses import (
    AdvStore,
    PubDef,
    TAPMEvaluation,
    TAPMResult,
    generate,
    perturbation_similarity,
    select_sources,
    transfer_error,
)
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.training import State, Supervised

EPS = 0.1
ATTACK = PGD(ball=Linf(EPS), steps=4, step_size=1 / 4, early_stop=False)


def mlp(name: str, hidden: tuple[int, ...] = (24,)) -> nn.Module:
    with seeded(0, name):
        return MLP(hidden=hidden)


@pytest.fixture(scope="module")
def train() -> Data:
    return load_data("digits:train")[:300]


@pytest.fixture(scope="module")
def test() -> Data:
    return load_data("digits:test")[:150]


@pytest.fixture(scope="module")
def public(train: Data) -> dict[str, nn.Module]:
    trained = {n: Supervised(epochs=8, lr=5e-3).fit(mlp(n), train, seed=0) for n in ("a", "b", "c")}
    return {**trained, "raw": mlp("raw")}


@pytest.fixture(scope="module")
def store(public: dict[str, nn.Module], train: Data) -> AdvStore:
    return generate({k: public[k] for k in "abc"}, {"pgd": ATTACK}, train, seed=1, copies=2)


def test_a_store_holds_perturbations_of_at_most_eps_and_a_rounding(store: AdvStore, train: Data) -> None:
    assert store.pairs == (("a", "pgd"), ("b", "pgd"), ("c", "pgd"))
    assert store.kept.dtype == torch.uint8
    for p in range(3):
        moved = (store.take(p, 1, slice(None)) - train.x).abs()
        assert EPS * 0.9 < float(moved.max()) <= EPS + 1 / 510 + 1e-6
    assert not torch.equal(store.kept[:, 0], store.kept[:, 1])


def test_a_store_follows_from_its_seed_and_leaves_the_sources_alone(
    public: dict[str, nn.Module], train: Data, store: AdvStore
) -> None:
    before = copy.deepcopy(public["a"].state_dict())
    again = generate({k: public[k] for k in "abc"}, {"pgd": ATTACK}, train, seed=1, copies=2)
    other = generate({k: public[k] for k in "abc"}, {"pgd": ATTACK}, train, seed=2, copies=2)
    assert torch.equal(again.kept, store.kept)
    assert not torch.equal(other.kept, store.kept)
    assert all(torch.equal(v, before[k]) for k, v in public["a"].state_dict().items())


@pytest.mark.parametrize(("dtype", "off"), [(torch.uint8, 3 / 510), (torch.float16, 1e-3), (torch.float32, 0.0)])
def test_what_a_store_keeps_of_a_number(dtype: torch.dtype, off: float) -> None:
    x = 3 * torch.rand(2, 1, 5, 4, generator=torch_rng(0, "store")) - 1
    kept = AdvStore.pack([("a", "x"), ("b", "x")], x, (-1.0, 2.0), dtype)
    assert float((kept.take(1, 0, slice(None)) - x[1, 0]).abs().max()) <= off + 1e-7
    rows, pair = torch.tensor([3, 0]), torch.tensor([0, 1])
    torch.testing.assert_close(
        kept.take(pair, torch.zeros(2, dtype=torch.int64), rows), x[pair, 0, rows], atol=off + 1e-7, rtol=0
    )


def setting(store: AdvStore, train: Data) -> tuple[nn.Module, list[Tensor], State]:
    """A network, its losses by view of the first copies (of a store with one copy), and a fresh state."""
    net = mlp("target")
    views = [train.x, *(store.take(p, 0, slice(None)) for p in range(len(store.pairs)))]
    losses = [F.cross_entropy(net(v), train.y, reduction="none").detach() for v in views]
    return net, losses, State(0, train, 5)


@pytest.fixture(scope="module")
def single(store: AdvStore) -> AdvStore:
    return AdvStore(store.pairs, store.kept[:, :1])


def loss(method: PubDef, net: nn.Module, state: State, store: AdvStore) -> Tensor:
    return method.loss(net, state.data.batch(torch.arange(len(state.data))), state, store).detach()


def test_one_source_counts_as_much_as_clean_inputs(single: AdvStore, train: Data) -> None:
    one = AdvStore(single.pairs[:1], single.kept[:1])
    net, (clean, adversarial), state = setting(one, train)
    for mode in ("all", "random", "dynamic"):
        found = loss(PubDef(mode=mode), net, state, one)
        torch.testing.assert_close(found, (clean.mean() + adversarial.mean()) / 2)


def test_all_and_topk_by_hand(single: AdvStore, train: Data) -> None:
    net, (clean, *pairs), state = setting(single, train)
    by_hand = 0.4 * clean.mean() + 0.2 * sum(p.mean() for p in pairs)
    torch.testing.assert_close(loss(PubDef(mode="all", clean_weight=0.4), net, state, single), by_hand)
    highest = torch.stack(pairs).sort(0).values[1:].sum(0)
    top = ((0.4 * clean + 0.2 * highest) / 0.8).mean()
    torch.testing.assert_close(loss(PubDef(mode="topk", k=2, clean_weight=0.4), net, state, single), top)


@pytest.mark.parametrize("track", ["loss", "error"])
def test_dynamic_weights_follow_averages_and_sum_to_the_rest(single: AdvStore, train: Data, track: str) -> None:
    net, (clean, *pairs), state = setting(single, train)
    views = [single.take(p, 0, slice(None)) for p in range(3)]
    level = torch.stack([p.mean() for p in pairs])
    if track == "error":
        level = torch.stack([(net(v).argmax(1) != train.y).float().mean() for v in views])
    average, method = torch.full((3,), 0.25), PubDef(mode="dynamic", alpha=0.3, clean_weight=0.4, track=track)
    for _ in range(3):
        average = 0.7 * average + 0.3 * level
        weights = 0.6 * average / average.sum()
        expected = 0.4 * clean.mean() + (weights * torch.stack([p.mean() for p in pairs])).sum()
        torch.testing.assert_close(loss(method, net, state, single), expected)
    assert float(method.weights(torch.zeros(3, 5), State(0, train, 1)).sum()) == pytest.approx(0.6)


def test_random_draws_each_samples_example_from_all_pairs_and_copies(store: AdvStore, train: Data) -> None:
    method, state = PubDef(), State(0, train, 5)
    (view,) = method.examples(train.batch(torch.arange(len(train))), state, store)
    levels = (view * 255).round().to(torch.uint8)
    fits = (levels == store.kept.flatten(0, 1)).flatten(2).all(2)  # (pairs x copies, n)
    assert fits.any(0).all()
    shares = fits.float().mean(1)
    assert (shares > 0.08).all()  # a sixth each
    (some,) = method.examples(train.batch(torch.tensor([7, 3])), state, store)
    torch.testing.assert_close(some, view[[7, 3]])


def test_augmentation_moves_clean_and_adversarial_inputs_alike(single: AdvStore, train: Data) -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.flatten(1)[:, :10]

    def shift(x: Tensor, draws: object) -> Tensor:
        return x + draws.uniform(1)[:, :, None, None]  # type: ignore[attr-defined]

    state = State(0, train, 1)
    PubDef(mode="all").loss(Spy(), train.batch(torch.arange(20)), state, single, shift)
    clean, *adversarial = seen[0].split(20)
    offset = (clean - train.x[:20]).flatten(1)
    assert offset.std() > 0.1
    for p, view in enumerate(adversarial):
        torch.testing.assert_close((view - single.take(p, 0, slice(0, 20))).flatten(1), offset)


def test_holds_where_plain_training_does_not(test: Data) -> None:
    train, trainer = load_data("digits:train"), Supervised(epochs=8, lr=5e-3)
    public = {n: trainer.fit(mlp(n), train, seed=0) for n in ("a", "b", "c")}
    start = trainer.fit(mlp("target"), train, seed=3)
    method = PubDef(sources={k: public[k] for k in "ab"}, attack=ATTACK, epochs=15)
    evaluation = TAPMEvaluation(public=public, attacks={"pgd": ATTACK, "mi": MIFGSM(ball=Linf(EPS))}, seen_sources="ab")
    examples = evaluation.store(test, seed=5)
    held, lost = (
        evaluation(t.fit(start, train, seed=0), test, seed=5, store=examples) for t in (method, method.plain())
    )
    assert held.worst_pair(seen_source=False) > lost.worst_pair(seen_source=False) + 0.05
    assert held.clean_accuracy > lost.clean_accuracy - 0.05
    assert torch.equal(evaluation(start, test, seed=5).correct, evaluation(start, test, seed=5, store=examples).correct)


def test_accuracies_of_pairs_and_samples() -> None:
    correct = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 1]]).bool()
    pairs = (("a", "pgd"), ("b", "pgd"), ("b", "mi"))
    result = TAPMResult(pairs, correct, torch.ones(4).bool(), ("a",), ("pgd",))
    assert result.worst_pair() == 0.5
    assert result.worst_sample() == 0.25
    assert result.mean() == pytest.approx(2 / 3)
    assert result.worst_pair(seen_source=True) == 0.75
    assert result.worst_pair(seen_source=False, seen_attack=True) == 0.75
    assert result.clean_accuracy == 1
    assert [r["seen_source"] for r in result.rows()] == [True, False, False]
    assert list(result.to_frame().columns) == ["source", "attack", "seen_source", "seen_attack", "acc"]
    with pytest.raises(InputError, match="no pair"):
        result.worst_pair(seen_source=True, seen_attack=False)


def test_sources_are_one_of_each_kind_and_the_ones_that_transfer(public: dict[str, nn.Module], train: Data) -> None:
    groups = {"a": "normal", "raw": "normal", "b": "other", "c": "third"}
    error = transfer_error(public, ATTACK, train[:80], seed=0)
    assert error["a"] > error["raw"] + 0.1  # an untrained network's examples move nothing
    assert select_sources(public, groups, train[:80], seed=0, attack=ATTACK) == ["a", "b", "c"]
    drawn = {tuple(select_sources(public, groups, train[:80], seed=s, strategy="random")) for s in range(12)}
    assert drawn == {("a", "b", "c"), ("raw", "b", "c")}


def test_similarity_of_perturbations() -> None:
    x = torch.full((3, 4), 0.5)
    data = Data(x, torch.tensor([0, 1, 0]), ("a", "b"))
    e = 0.1 * torch.eye(4)
    moved = torch.stack([x + e[0], x + 2 * e[0], x + e[1], x - e[0]])[:, None]
    store = AdvStore.pack([(s, "pgd") for s in "abcd"], moved, dtype=torch.float32)
    found = perturbation_similarity(store, data)
    expected = torch.tensor([[1, 1, 0, -1], [1, 1, 0, -1], [0, 0, 1, 0], [-1, -1, 0, 1]]).double()
    torch.testing.assert_close(found.cosine, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.shares, torch.tensor([0.75, 0.25, 0, 0]).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d, s: PubDef(mode="some"), "mode"),
        (lambda d, s: PubDef(mode="topk"), "k=None"),
        (lambda d, s: PubDef(k=2), "topk"),
        (lambda d, s: PubDef(mode="topk", k=3).fit(mlp("t"), d, seed=0, store=s), "k=3 of 3 pairs"),
        (lambda d, s: PubDef(clean_weight=1.0), "clean_weight"),
        (lambda d, s: PubDef(copies=0), "copies"),
        (lambda d, s: PubDef(track="speed"), "track"),
        (lambda d, s: PubDef().fit(mlp("t"), d[:10], seed=0, store=s), "holds samples"),
        (lambda d, s: AdvStore((), s.kept), "not empty"),
        (lambda d, s: AdvStore(s.pairs[:1], s.kept), "pairs, copies"),
        (lambda d, s: AdvStore.pack(s.pairs, s.kept.float(), dtype=torch.int32), "dtype"),
        (lambda d, s: AdvStore.pack(s.pairs, 1.2 * torch.ones(s.kept.shape)), "expected values in"),
        (lambda d, s: generate({}, {"pgd": ATTACK}, d, seed=0), "0 sources"),
        (lambda d, s: TAPMEvaluation(public={}, attacks={"f": FGSM()}), "0 models"),
        (lambda d, s: TAPMEvaluation(public={"a": mlp("a")}, attacks={"f": FGSM()}, seen_sources=["z"]), "'z'"),
        (lambda d, s: select_sources({"a": mlp("a")}, {"b": "x"}, d, seed=0), "groups and models"),
        (lambda d, s: select_sources({"a": mlp("a")}, {"a": "x"}, d, seed=0), "at least two"),
        (lambda d, s: select_sources({"a": mlp("a")}, {"a": "x"}, d, seed=0, strategy="best"), "strategy"),
    ],
)
def test_bad_input(make: object, message: str, train: Data, store: AdvStore) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(train, store)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
