"""What is forgotten: the choice of the forget set, and the exact cases of each unlearner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import AccessError, InputError
from assay.runtime.random import seeded
from assay.subject import Subject, fresh
from assay.training import Supervised
from assay.unlearn import FineTune, NegGrad, Retrain, forget_set


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
