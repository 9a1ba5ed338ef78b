"""Corrective unlearning: what a manipulation changes and leaves, and the benchmark by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.subject import Subject, fresh
from assay.training import Supervised
from assay.unlearn import CorrectiveBenchmark, FineTune, Retrain, corrective_report, field_set, manipulate
from assay.unlearn.corrective import choose, patched, true_labels


@pytest.fixture(scope="module")
def train() -> Data:
    return load_data("digits:train").limit(300)


@pytest.fixture(scope="module")
def subject(train: Data) -> Subject:
    with seeded(0, "test"):
        return Subject(MLP(hidden=(16,)), load_data("digits:test"), train, recipe=Supervised(epochs=2))


def test_a_patch_changes_its_pixels_and_labels_alone(train: Data) -> None:
    found = manipulate(train, size=40, patch=2, target=7, seed=1)
    chosen = torch.isin(train.index, found.index)
    assert int(chosen.sum()) == len(found.index) == 40
    assert torch.equal(found.data.fields["manipulated"].bool(), chosen)
    assert torch.equal(found.data.x[~chosen], train.x[~chosen])
    assert torch.equal(found.data.y[~chosen], train.y[~chosen])
    assert (found.data.y[chosen] == 7).all()
    assert (found.data.x[chosen][:, :, -2:, -2:] == 1).all()
    assert torch.equal(found.data.x[chosen][:, :, :-2], train.x[chosen][:, :, :-2])
    moved = patched(train, 3).x != train.x
    assert moved.flatten(1).sum(1).max() <= 9
    assert torch.equal(found.affected(train).y, train.y)
    assert found.clean(train) is train


def test_swapped_classes_keep_their_numbers(train: Data) -> None:
    found = manipulate(train, kind="interclass", size=20, classes=(3, 5), seed=1)
    assert torch.equal(torch.bincount(found.data.y), torch.bincount(train.y))
    changed = found.data.y != train.y
    assert set(train.y[changed].tolist()) == {3, 5}
    assert int(changed.sum()) == 20
    assert torch.equal(found.data.x, train.x)
    assert set(found.affected(train).y.tolist()) == {3, 5}
    assert set(found.clean(train).y.tolist()) == {0, 1, 2, 4, 6, 7, 8, 9}
    pair = Data(train.x, train.y % 2, ("even", "odd"), train.bounds, "two classes")
    for kind in ("patch", "random"):
        marked = manipulate(pair, kind=kind, size=20, seed=1)  # type: ignore[arg-type]
        assert int(marked.data.fields["manipulated"].sum()) == 20
    drawn = manipulate(train, kind="random", size=20, seed=1)
    assert torch.equal(drawn.data.y != train.y, drawn.data.fields["manipulated"].bool())


def test_a_share_is_flagged_and_the_whole_is_the_field(train: Data) -> None:
    found = manipulate(train, size=40, patch=2, seed=1)
    forget, retain = found.flagged(0.25, seed=3)
    assert len(forget) == 10
    assert torch.isin(forget.index, found.index).all()
    assert int(torch.isin(found.index, retain.index).sum()) == 30
    whole, rest = found.flagged(1.0, seed=3)
    marked = field_set(found.data, "manipulated", 1)
    assert torch.equal(whole.index, marked[0].index)
    assert torch.equal(rest.index, marked[1].index)
    assert true_labels(train, forget).tolist() == [int(train.y[train.index == i]) for i in forget.index]


class Fixed(nn.Module):
    """Calls everything class ``c``."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.register_buffer("logits", torch.eye(10)[c])

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), 10)


def test_the_report_by_hand(train: Data) -> None:
    found = manipulate(train, size=10, patch=2, target=7, seed=1)
    report = corrective_report(Fixed(7), found.affected(train), train, 7)
    share = float((train.y == 7).double().mean())
    assert report == {"corrected": pytest.approx(share), "retain": pytest.approx(share), "asr": 1.0}
    assert corrective_report(Fixed(3), train, train, 7)["asr"] == 0
    assert set(corrective_report(Fixed(3), train, train)) == {"corrected", "retain"}


def test_the_benchmark_runs_what_it_says(subject: Subject, train: Data) -> None:
    bench = CorrectiveBenchmark(size=30, patch=2, gammas=(0.1, 1.0))
    arms = {"eu": [Retrain()], "nothing": [FineTune(epochs=0)]}
    rows = bench.run(arms, subject, seed=4)
    assert [(r["arm"], r["gamma"]) for r in rows] == [
        ("none", 0), ("eu", 0.1), ("nothing", 0.1), ("eu", 1), ("nothing", 1)
    ]  # fmt: skip
    assert {k: v for k, v in rows[0].items() if k not in ("arm", "gamma")} == {
        k: v for k, v in rows[2].items() if k not in ("arm", "gamma")
    }
    spoiled, found = bench.spoil(subject, seed=4)
    assert subject.recipe is not None
    # With nothing to forget retraining is the spoiled model itself.
    again = subject.recipe.fit(fresh(subject.model, seed=4), found.data, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), spoiled.model.parameters(), strict=True))
    forget, retain = found.flagged(0.5, seed=0)
    labels = true_labels(train, forget)
    few, many = FineTune(epochs=0), FineTune(epochs=8, lr=0.05)
    assert choose([few, many], spoiled, forget, retain, labels, seed=0)[0] is many
    assert choose([few, few], spoiled, forget, retain, labels, seed=0)[0] is few


def test_bad_manipulations(train: Data) -> None:
    for options, match in (
        ({"size": 301}, "expected 1 to 300"),
        ({"size": 0}, "expected 1 to 300"),
        ({"size": 3, "kind": "interclass"}, "an even size"),
        ({"size": 4, "kind": "interclass", "classes": (3, 3)}, "two classes"),
        ({"size": 3, "patch": 9}, "at least that large"),
        ({"size": 3, "kind": "blur"}, "unknown manipulation"),
        ({"size": 3, "target": 10}, "expected 0 to 9"),
        ({"size": 4, "kind": "interclass", "classes": (3, 10)}, "expected 0 to 9"),
    ):
        with pytest.raises(InputError, match=match):
            manipulate(train, **{"seed": 0, **options})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a share"):
        manipulate(train, size=3, seed=0).flagged(0.0, seed=0)
    with pytest.raises(InputError, match="a part of it"):
        true_labels(train[:5], train)
