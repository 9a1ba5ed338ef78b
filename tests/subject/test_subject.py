from __future__ import annotations

import copy
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import assay
from assay.data import Data, load_data
from assay.nets import MLP, ResNet, SmallCNN
from assay.runtime.errors import AccessError, BudgetError, InputError
from assay.runtime.inference import predict
from assay.subject import Access, Oracle, Subject, fresh
from assay.subject.aligned import aligned
from assay.subject.subject import model_hash


def bare() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_saving_and_loading_round_trips_exactly(digits: Subject, tmp_path: Path) -> None:
    back = assay.load(digits.save(tmp_path / "s"))
    assert model_hash(back.model) == model_hash(digits.model)
    for split in ("train", "holdout", "test"):
        assert getattr(back, split).hash == getattr(digits, split).hash
    assert (back.recipe, back.access, back.name, back.task) == (digits.recipe, digits.access, digits.name, digits.task)


@pytest.mark.parametrize("net", [MLP((1, 8, 8), 10, (8, 4)), SmallCNN((1, 8, 8)), ResNet((1, 8, 8), 10, 4, (1, 1))])
def test_every_network_round_trips_with_foreign_data(net: nn.Module, tmp_path: Path) -> None:
    data = replace(load_data("digits")[:40], name="mine", fields={"groups": torch.arange(40)})
    subject = Subject(net.eval(), data)
    back = assay.load(subject.save(tmp_path / "s"))
    assert predict(back.model, data.x).equal(predict(net, data.x))
    assert back.test.hash == subject.test.hash
    assert back.test.fields["groups"].equal(subject.test.fields["groups"])


def test_folders_do_not_depend_on_the_encoding_of_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "text_encoding", lambda encoding, _level=2: encoding or "ascii")
    subject = Subject(SmallCNN((1, 8, 8)), replace(load_data("digits")[:10], name="größe"), name="modèle 模型")
    back = assay.load(subject.save(tmp_path / "s"))
    assert (back.name, back.test.name) == (subject.name, subject.test.name)


def test_the_holdout_is_never_audited(digits: Subject) -> None:
    assert digits.holdout is not None
    assert not torch.isin(digits.holdout.index, digits.test.index).any()
    assert len(digits.holdout) == round(0.2 * 797)


def test_fresh_weights_are_new_and_seeded(digits: Subject) -> None:
    a, b, c = fresh(digits.model, seed=1), fresh(digits.model, seed=1), fresh(digits.model, seed=2)
    assert model_hash(a) == model_hash(b) != model_hash(c)
    for model in (digits.model, bare()):
        wide = copy.deepcopy(model).double()
        assert {p.dtype for p in fresh(wide, seed=1).parameters()} == {torch.float64}
    assert model_hash(fresh(bare(), seed=1)) == model_hash(fresh(bare(), seed=1)) != model_hash(bare())


def test_a_folder_of_an_untrusted_factory_is_refused(digits: Subject, tmp_path: Path) -> None:
    digits.save(tmp_path / "s")
    toml = tmp_path / "s" / "subject.toml"
    toml.write_text(toml.read_text().replace("assay.nets.small:SmallCNN", "os:system"))
    with pytest.raises(InputError, match="not trusted: pass --trust os"):
        assay.load(tmp_path / "s")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "subject.toml").write_text("= nonsense"), "not valid TOML"),
        (lambda f: (f / "subject.toml").unlink(), "no subject.toml"),
        (lambda f: (f / "model.safetensors").write_bytes(b"junk"), "safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
        (lambda f: (f / "subject.toml").write_text('name = "x"'), "missing"),
        (
            lambda f: (f / "subject.toml").write_text(
                (f / "subject.toml").read_text().replace("test.safe", "../test.safe")
            ),
            "outside",
        ),
        (
            lambda f: (f / "subject.toml").write_text(
                (f / "subject.toml").read_text().replace("classes = 10", "classes = 9")
            ),
            "do not fit",
        ),
    ],
)
def test_a_damaged_folder_gives_one_line(digits: Subject, tmp_path: Path, damage: object, message: str) -> None:
    folder = digits.save(tmp_path / "s")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        assay.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_subject(
    digits: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    folder, move = digits.save(tmp_path / "s"), os.rename

    def broken(source: Path, target: Path) -> None:
        if Path(target) == folder and (Path(source) / "subject.toml").read_text().count("newer"):
            raise error
        move(source, target)

    monkeypatch.setattr(os, "rename", broken)
    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(type(error)):
        replace(digits, name="newer").save(folder)
    assert assay.load(folder).name == digits.name
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_saving_over_something_else_is_refused(digits: Subject, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="is no subject"):
        digits.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(InputError, match="is a file"):
        digits.save(tmp_path / "mine" / "thesis.txt")


def test_module_factory_with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(bare().state_dict(), tmp_path / "w.pt")
    subject = assay.load(f"mynet:make@{tmp_path}/w.pt", data="digits")
    assert predict(subject.model, subject.test.x).equal(predict(bare(), subject.test.x))
    back = assay.load(subject.save(tmp_path / "s"), trust=("mynet",))
    assert model_hash(back.model) == model_hash(subject.model)
    with pytest.raises(InputError, match="expected --data"):
        assay.load("mynet:make")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(InputError, match="cannot be read"):
        assay.load(f"mynet:make@{tmp_path}/whole.pt", data="digits")


def test_a_subject_of_a_factory_takes_weights_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mysubject.py").write_text(
        "from torch import nn\nfrom assay.data import load_data\nfrom assay.subject import Subject\n"
        "def make():\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "    return Subject(net, load_data('digits:train'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(bare().state_dict(), tmp_path / "w.pt")
    subject = assay.load(f"mysubject:make@{tmp_path}/w.pt", data="digits")
    assert predict(subject.model, subject.test.x).equal(predict(bare(), subject.test.x))
    assert subject.holdout is not None
    assert subject.test.name == subject.holdout.name == "digits:test"
    with pytest.raises(InputError, match="no such file"):
        assay.load(f"mysubject:make@{tmp_path}/none.pt")


@pytest.mark.parametrize("name", ["digitz", "/no/such", "json:nope", "no_such_module:f"])
def test_an_unknown_subject_is_one_line(name: str) -> None:
    with pytest.raises(InputError):
        assay.load(name)


def test_an_oracle_counts_and_keeps_its_budget() -> None:
    oracle = Oracle(lambda x: x @ torch.eye(3), access=Access.DECISION, budget=5)
    assert oracle(torch.eye(3)).tolist() == [0, 1, 2]
    with pytest.raises(AccessError, match=r"SCORE.*DECISION"):
        oracle.scores(torch.eye(3))
    with pytest.raises(BudgetError, match="3 of 5"):
        oracle(torch.eye(3))
    assert oracle.queries == 3


def test_models_that_differ_only_in_their_code_have_other_hashes() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    one = Doubled(2, 2)

    class Doubled(nn.Linear):  # type: ignore[no-redef]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(x)

    other = Doubled(2, 2)
    other.load_state_dict(one.state_dict())
    assert model_hash(one) != model_hash(other)


def test_models_of_every_float_type_are_hashed() -> None:
    assert len({model_hash(bare().to(t)) for t in (torch.float32, torch.bfloat16, torch.float16)}) == 3


def _split(classes: str, name: str, high: float = 1.0) -> Data:
    y = torch.arange(40) % len(classes)
    x = torch.zeros(40, 3).scatter_(1, y[:, None] % 3, high)
    return Data(x, y, tuple(classes), (0.0, high), name)


def test_labels_of_splits_are_matched_by_the_names_of_their_classes() -> None:
    test, train = _split("abc", "te"), _split("cab", "tr", 2.0)
    subject = aligned(Subject(nn.Linear(3, 3), test, train=train))
    assert subject.train is not None
    assert subject.train.classes == ("a", "b", "c")
    assert [subject.train.classes[k] for k in subject.train.y] == [train.classes[k] for k in train.y]
    assert (subject.train.bounds, subject.test.bounds) == ((0.0, 2.0), (0.0, 1.0))
    assert aligned(subject) is subject
    with pytest.raises(InputError, match=r"classes a, b, C; expected a, b, c, as in 'te'"):
        aligned(Subject(nn.Linear(3, 3), test, train=_split("abC", "tr")))


@pytest.mark.parametrize(("test", "train"), [("abc", "ab"), ("ab", "abc")])
def test_numbered_classes_that_a_split_lacks_are_added(test: str, train: str) -> None:
    subject = aligned(Subject(nn.Linear(3, 3), _split(test, "te"), train=_split(train, "tr")))
    assert {d.classes for d in (subject.test, subject.train, subject.holdout) if d} == {("a", "b", "c")}
