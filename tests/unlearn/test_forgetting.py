"""The forgetting table, on models whose every number is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.statistics import wilson
from assay.subject import Subject
from assay.unlearn import forgetting


class Table(nn.Module):
    """Sample i (its input is i / 100) is put into class ``predicted[i]`` with the logit ``sure[i]``."""

    def __init__(self, predicted: Tensor, sure: Tensor) -> None:
        super().__init__()
        self.register_buffer("predicted", predicted)
        self.register_buffer("sure", sure)

    def forward(self, x: Tensor) -> Tensor:
        i = (x[:, 0] * 100).round().long()
        return torch.nn.functional.one_hot(self.predicted[i], 3) * self.sure[i, None]


Y = torch.arange(90) % 3
X = torch.arange(90).float()[:, None] / 100
CLASSES = ("a", "b", "c")


@pytest.fixture
def subject() -> Subject:
    train, test = Data(X[:60], Y[:60], CLASSES), Data(X[60:], Y[60:], CLASSES)
    return Subject(Table(Y, torch.full((90,), 5.0)), test, train, holdout=test[:3])


def rows(subject: Subject, models: dict[str, nn.Module], forget: Tensor, seconds: dict[str, float]) -> list[dict]:
    train = subject.training("the test")
    return forgetting(subject, models, train[forget], train[~forget], seconds, seed=0)


def test_class_forgetting_by_hand(subject: Subject) -> None:
    wrong = torch.where(Y == 0, 1, Y)  # class a is called b
    sure = torch.full((90,), 5.0)
    models = {"subject": subject.model, "unlearned": subject.model, "retrained": Table(wrong, sure)}
    first, second, last = rows(subject, models, Y[:60] == 0, {"unlearned": 1.0, "retrained": 4.0})
    assert (first["forget_accuracy"], first["retain_accuracy"], first["test_accuracy"]) == (1, 1, 1)
    assert (last["forget_accuracy"], last["retain_accuracy"], last["test_accuracy"]) == pytest.approx((0, 1, 2 / 3))
    assert (last["test_accuracy_forgotten"], last["test_accuracy_others"]) == (0, 1)
    assert (last["forget_accuracy_low"], last["forget_accuracy_high"]) == wilson(0, 20)
    assert first["membership_auc"] == last["membership_auc"] == 0.5  # every loss is the same: all ties
    assert (first["time_ratio"], second["time_ratio"], last["time_ratio"]) == (None, 0.25, 1.0)
    # |1 - 0| for the forgotten, 0 for the retained, the other classes and the AUC
    assert first["gap"] == second["gap"] == 0.25
    assert last["gap"] == 0


def test_membership_reads_the_loss_of_the_same_classes(subject: Subject) -> None:
    train_sure = torch.where(torch.arange(90) < 60, 5.0, 1.0)
    hidden = torch.where(torch.arange(90) < 60, 1.0, 5.0)
    only_other = torch.where((torch.arange(90) >= 60) & (Y != 0), 9.0, 5.0)
    models = {"leaks": Table(Y, train_sure), "hides": Table(Y, hidden), "other": Table(Y, only_other)}
    forget = (Y[:60] == 0) & (torch.arange(60) < 30)
    leaks, hides, other = rows(subject, models, forget, {})
    assert (leaks["membership_auc"], hides["membership_auc"], other["membership_auc"]) == (1.0, 0.0, 0.5)
    assert leaks["test_accuracy_forgotten"] is None  # a part of a class is not a class
    assert leaks["gap"] is None
    assert leaks["seconds"] is None
    assert len({tuple(r) for r in (leaks, hides, other)}) == 1


def test_a_class_that_the_test_set_lacks(subject: Subject) -> None:
    kept = subject.test[subject.test.y != 0]
    lacking = Subject(subject.model, kept, subject.train, holdout=kept[:3])
    (row,) = rows(lacking, {"retrained": subject.model}, Y[:60] == 0, {})
    assert row["membership_auc"] is None
    assert row["test_accuracy_forgotten"] is None
    assert row["test_accuracy_others"] == 1
    assert row["gap"] == 0
