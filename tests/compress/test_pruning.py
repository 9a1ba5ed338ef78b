"""Pruning: exact fractions, the right weights, zeros that stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.compress import MagnitudePruning, RandomPruning, size_of
from assay.compress.base import weights_of
from assay.compress.pruning import lowest
from assay.nets import MLP, ResNet
from assay.runtime.errors import AccessError, InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.subject import Subject, load


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load("digits")


def network() -> nn.Module:
    with seeded(0, "test"):
        return MLP((1, 8, 8), 10, (33, 17))


def zeros(model: nn.Module) -> list[tuple[int, int]]:
    return [(int((w == 0).sum()), w.numel()) for w in weights_of(model).values()]


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=40), data=st.data())
@settings(max_examples=60)
def test_lowest_is_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    scores = torch.tensor(values, dtype=torch.float32)
    expected = set(sorted(range(len(values)), key=lambda i: (values[i], i))[:k])
    assert set(lowest(scores, k).nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("cls", [MagnitudePruning, RandomPruning])
def test_the_fraction_is_exact(cls: type[MagnitudePruning], sparsity: float) -> None:
    whole = zeros(cls(sparsity=sparsity).compress(network(), None, seed=0))
    n = sum(size for _, size in whole)
    assert sum(k for k, _ in whole) == round(sparsity * n)
    for k, size in zeros(cls(sparsity=sparsity, scope="layer").compress(network(), None, seed=0)):
        assert k == round(sparsity * size)


def test_the_smallest_go_and_the_rest_stays() -> None:
    model = network()
    pruned = MagnitudePruning(sparsity=0.8).compress(model, None, seed=0)
    before = torch.cat([w.flatten() for w in weights_of(model).values()])
    after = torch.cat([w.flatten() for w in weights_of(pruned).values()])
    assert torch.equal(after[after != 0], before[after != 0])
    assert before[after == 0].abs().max() <= before[after != 0].abs().min()
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in pruned.named_parameters() if "bias" in n)


def test_agrees_with_torch() -> None:
    from torch.nn.utils import prune

    model, reference = network(), network()
    pairs = [(m, "weight") for m in reference.modules() if isinstance(m, nn.Linear)]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.9)
    pruned = MagnitudePruning(sparsity=0.9).compress(model, None, seed=0)
    assert all(torch.equal(m.weight, w) for (m, _), w in zip(pairs, weights_of(pruned).values(), strict=True))


def test_magnitude_beats_random_and_fine_tuning_helps_with_the_zeros_kept(subject: Subject) -> None:
    def accuracy(model: nn.Module) -> float:
        return float((predict(model, subject.test.x).argmax(1) == subject.test.y).float().mean())

    plain = MagnitudePruning(sparsity=0.9).repair(subject, seed=0)
    tuned = MagnitudePruning(sparsity=0.9, finetune_epochs=3, lr=2e-3).repair(subject, seed=0)
    assert accuracy(plain) > accuracy(RandomPruning(sparsity=0.9).repair(subject, seed=0)) + 0.2
    assert accuracy(tuned) > accuracy(plain) + 0.1
    assert zeros(tuned) == zeros(plain)
    assert all(
        bool((w[v == 0] == 0).all())
        for w, v in zip(weights_of(tuned).values(), weights_of(plain).values(), strict=True)
    )


def test_the_control_fine_tunes_without_pruning(subject: Subject) -> None:
    method = MagnitudePruning(sparsity=0.5, finetune_epochs=1)
    control = method.control(subject, seed=0)
    same = MagnitudePruning(sparsity=0.0, finetune_epochs=1).repair(subject, seed=0)
    assert control is not None
    assert all(torch.equal(p, q) for p, q in zip(control.parameters(), same.parameters(), strict=True))
    assert size_of(control).nonzero > size_of(method.repair(subject, seed=0)).nonzero


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_structured_drops_whole_filters_and_no_class(scope: str) -> None:
    with seeded(0, "test"):
        model = ResNet((1, 8, 8), 10, 8)
    pruned = MagnitudePruning(sparsity=0.5, scope=scope, structured=True).compress(model, None, seed=0)
    dead = total = 0
    *weights, (name, head) = weights_of(pruned).items()
    for _, w in weights:
        rows = (w == 0).flatten(1)
        assert torch.equal(rows.any(1), rows.all(1))
        dead, total = dead + int(rows.all(1).sum()), total + len(w)
    assert dead == round(0.5 * total)
    assert name == "head.weight"
    assert (head != 0).all()


def test_shared_weights_are_counted_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    pruned = MagnitudePruning(sparsity=0.5).compress(model, None, seed=0)
    assert pruned[0].weight is pruned[2].weight
    assert zeros(pruned) == [(18, 36)]


class _TiedEmbedding(nn.Module):
    """A head that shares the table of the embedding, which comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(4, 6), nn.Linear(6, 4, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x[:, 0].long()))


@pytest.mark.parametrize("cls", [MagnitudePruning, RandomPruning])
def test_a_head_tied_to_an_embedding_is_pruned_with_it(cls: type[MagnitudePruning]) -> None:
    pruned = cls(sparsity=0.5).compress(_TiedEmbedding(), None, seed=0)
    assert pruned.head.weight is pruned.table.weight
    assert size_of(pruned).nonzero == 12


def test_errors(subject: Subject) -> None:
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="sparsity"):
            MagnitudePruning(sparsity=bad)
    with pytest.raises(InputError, match="did you mean 'layer'"):
        MagnitudePruning(scope="layers")
    with pytest.raises(InputError, match="lr"):
        MagnitudePruning(lr=0.0)
    with pytest.raises(InputError, match="no longer depends on its input"):
        MagnitudePruning(sparsity=0.999, scope="layer").repair(subject, seed=0)
    with pytest.raises(InputError, match="expected training data"):
        MagnitudePruning(finetune_epochs=1).compress(network(), None, seed=0)
    bare = subject.with_model(subject.model, train=None)
    with pytest.raises(AccessError, match="training data"):
        MagnitudePruning(finetune_epochs=1).repair(bare, seed=0)
    MagnitudePruning().repair(bare, seed=0)
