"""What is forgotten: the choice of the forget set, and the exact cases of each unlearner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import AccessError, InputError
from assay.runtime.random import seeded, torch_rng
from assay.subject import Subject, fresh
from assay.training import Supervised
from assay.unlearn import FineTune, NegGrad, Retrain, forget_set, random_set, sub_class_set, sub_classes


@pytest.fixture(scope="module")
def train() -> Data:
    return load_data("digits:train")


@pytest.fixture(scope="module")
def subject(train: Data) -> Subject:
    with seeded(0, "test"):
        return Subject(MLP().eval(), load_data("digits:test"), train, recipe=Supervised(epochs=2))


def written(folder: Path, text: str) -> str:
    (folder / "indices.txt").write_text(text)
    return str(folder / "indices.txt")


def test_a_class_by_name_and_by_number(train: Data) -> None:
    forget, retain = forget_set(train, "class=3")
    assert set(forget.y.tolist()) == {3}
    assert 3 not in retain.y
    assert sorted(forget.index.tolist() + retain.index.tolist()) == train.index.tolist()
    named = Data(train.x, train.y, ("zero", "one", "2", "1", *"456789"))
    assert set(forget_set(named, "class=one")[0].y.tolist()) == {1}
    assert set(forget_set(named, "class=1")[0].y.tolist()) == {3}  # a name goes before a number
    assert set(forget_set(named, "class=9")[0].y.tolist()) == {9}


def test_indices_name_samples_not_rows(train: Data, tmp_path: Path) -> None:
    chosen = train.index[[5, 100, 7]].tolist()
    forget, retain = forget_set(train, written(tmp_path, "\n".join(map(str, chosen)) + "\n\n"))
    assert forget.index.tolist() == sorted(chosen)
    assert len(retain) == len(train) - 3
    assert torch.equal(forget.x, train.x[[5, 7, 100]])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "names no sample"),
        ("\n \n", "names no sample"),
        ("{0}\nfour\n", r"line 2: 'four' is not an integer"),
        ("{0}\n1.0\n", r"line 2: '1.0' is not an integer"),
        ("{0}\n\n99999\n", r"line 3: no sample 99999 in 'digits:train'"),
        ("-1\n", r"line 1: no sample -1"),
        ("{0}\n{1}\n{0}\n", r"line 3: \d+ is on line 1 already"),
    ],
)
def test_bad_index_files(train: Data, tmp_path: Path, text: str, match: str) -> None:
    a, b = train.index[:2].tolist()
    with pytest.raises(InputError, match=match) as error:
        forget_set(train, written(tmp_path, text.format(a, b)))
    assert "\n" not in str(error.value)


def test_bad_specs(train: Data, tmp_path: Path) -> None:
    named = Data(train.x, train.y, ("cat", "dog", *"23456789"))
    with pytest.raises(InputError, match="did you mean 'dog'"):
        forget_set(named, "class=dgo")
    with pytest.raises(InputError, match="unknown class"):
        forget_set(train, "class=10")
    with pytest.raises(InputError, match="no such file; expected class=NAME"):
        forget_set(train, str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="cannot be read"):
        forget_set(train, str(tmp_path))
    (tmp_path / "raw").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        forget_set(train, str(tmp_path / "raw"))
    with pytest.raises(InputError, match="names all 1000"):
        forget_set(train, written(tmp_path, "\n".join(map(str, train.index.tolist()))))
    with pytest.raises(InputError, match="names all"):
        forget_set(train[train.y == 3], "class=3")
    with pytest.raises(InputError, match="no sample of this class"):
        forget_set(train[train.y != 3], "class=3")


def test_kinds_of_forget_sets(train: Data) -> None:
    forget, retain = forget_set(train, "random=0.1")
    assert (len(forget), len(retain)) == (100, 900)
    assert not torch.isin(forget.index, retain.index).any()
    assert forget.index.tolist() == random_set(train, 100)[0].index.tolist()
    assert forget.index.tolist() != random_set(train, 100, seed=1)[0].index.tolist()
    marked = replace(train, fields={"groups": train.y % 3, "bags": torch.zeros(1000, 2)})
    forget, retain = forget_set(marked, "groups=2")
    assert set(forget.y.tolist()) == {2, 5, 8}
    part, rest = forget_set(train, "subclass=3:1")
    assert set(part.y.tolist()) == {3}
    assert (rest.y == 3).any()
    assert part.index.tolist() == sub_class_set(train, 3, which=1)[0].index.tolist()


def test_sub_classes_are_found_and_ordered_by_size() -> None:
    g = torch_rng(0, "blobs")
    kind = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    x = torch.cat([centres[kind] + torch.randn(60, 2, generator=g), torch.randn(40, 2, generator=g)])
    y = torch.cat([torch.ones(60), torch.zeros(40)]).long()
    shuffled = torch.randperm(100, generator=g)
    data = Data(x[shuffled], y[shuffled], ("a", "b"), bounds=(-99.0, 99.0))
    truth = torch.cat([kind, torch.full((40,), -1)])[shuffled]
    assert sub_classes(data, 1, clusters=3).tolist() == truth.tolist()
    assert sub_classes(data, 1, clusters=3, points=-data.x, seed=4).tolist() == truth.tolist()
    assert torch.equal(sub_class_set(data, 1, clusters=3, which=2)[0].index, data.index[truth == 2])


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("random=1.5", "a share between 0 and 1"),
        ("random=0.0", "a share between 0 and 1"),
        ("subclass=x", "the number of a class"),
        ("subclass=3:4", "expected 0 to 3"),
        ("subclass=99", "0 samples"),
        ("groups=x", "an integer value"),
        ("groups=7", "0 of 1000 training samples"),
        ("group=1", "no such file; expected class=NAME"),
    ],
)
def test_bad_kinds(train: Data, spec: str, match: str) -> None:
    marked = replace(train, fields={"groups": train.y % 3})
    with pytest.raises(InputError, match=match) as error:
        forget_set(marked, spec)
    assert "\n" not in str(error.value)


def test_retraining_is_the_recipe_from_fresh_weights(subject: Subject, train: Data) -> None:
    forget, retain = forget_set(train, "class=0")
    assert subject.recipe is not None
    expected = subject.recipe.fit(fresh(subject.model, seed=4), retain, seed=4)
    found = Retrain().forget(subject, forget, retain, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))
    bare = Subject(subject.model, subject.test, train)
    with pytest.raises(AccessError, match="recipe"):
        Retrain().forget(bare, forget, retain, seed=0)


def test_no_epochs_change_nothing_and_one_ascent_step_is_exact(subject: Subject, train: Data) -> None:
    forget, retain = forget_set(train, "class=0")
    for method in (FineTune(epochs=0), NegGrad(epochs=0)):
        same = method.forget(subject, forget, retain, seed=0)
        assert all(torch.equal(a, b) for a, b in zip(same.parameters(), subject.model.parameters(), strict=True))
    # One whole-batch step up and one down lie opposite each other around the start.
    one = NegGrad(epochs=1, lr=0.5, momentum=0.0, batch_size=1000)
    up, down = one.forget(subject, forget, retain, seed=0), one.control(subject, forget, retain, seed=0)
    loss = torch.nn.functional.cross_entropy(subject.model(forget.x), forget.y)
    gradients = torch.autograd.grad(loss, list(subject.model.parameters()))
    for u, d, p, g in zip(up.parameters(), down.parameters(), subject.model.parameters(), gradients, strict=True):
        assert torch.allclose(u, p + 0.5 * g, atol=1e-6)
        assert torch.allclose(d, p - 0.5 * g, atol=1e-6)


def test_an_ascent_that_diverges_is_reported(subject: Subject, train: Data) -> None:
    forget, retain = forget_set(train, "class=0")
    with pytest.raises(InputError, match="expected finite"):
        NegGrad(epochs=50, lr=1e6).forget(subject, forget, retain, seed=0)
    for bad in ({"lr": 0.0}, {"epochs": -1}, {"lr": float("nan")}):
        with pytest.raises(InputError, match="expected epochs"):
            NegGrad(**bad)
        with pytest.raises(InputError, match="expected epochs"):
            FineTune(**bad)
