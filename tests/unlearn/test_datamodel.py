"""Matching outputs: closed-form oracles, and datamodels that are exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from assay.curate import subset_masks
from assay.curate.attribution import linear_datamodel
from assay.data import load_data
from assay.nets import MLP
from assay.papers.datamodel_matching import _Stack, exact_checks, least_squares
from assay.runtime.errors import AccessError, InputError
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded, torch_rng
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import DatamodelDirect, DatamodelMatching, OracleMatching, datamodel_logits
from assay.unlearn.references import trained


@pytest.fixture(scope="module")
def subject() -> Subject:
    train, recipe = load_data("digits:train")[:60], Supervised(epochs=4)
    with seeded(0, "net"):
        start = MLP(train.shape, 10, (8,))
    return Subject(recipe.fit(start, train, seed=0), load_data("digits:test"), train, recipe=recipe)


def test_the_papers_exact_checks() -> None:
    found = exact_checks(5)
    assert found["ridge"] < 1e-6
    assert max(found[k] for k in ("subsets", "ols", "klom", "nothing")) < 1e-10
    assert least_squares(5, "wrong-sign") > 1e-3
    assert least_squares(5, "wrong-rows") > 1e-3


def test_what_is_matched_is_the_forget_set_and_a_draw_of_the_rest(subject: Subject) -> None:
    forget, retain = subject.train[:5], subject.train[5:]
    method = OracleMatching(retain_multiplier=2.0, forget_multiplier=3)
    at = method.chosen(forget, retain, seed=1)
    assert torch.equal(at.index[:15], forget.index.repeat(3))
    assert torch.isin(at.index[15:], retain.index).all()
    assert len(at.index[15:].unique()) == 10
    assert torch.equal(at.index, method.chosen(forget, retain, seed=1).index)
    assert not torch.equal(at.index, method.chosen(forget, retain, seed=2).index)
    assert len(replace(method, retain_multiplier=0.0).chosen(forget, retain, seed=1)) == 15


def test_the_oracles_are_retrained_and_averaged(subject: Subject) -> None:
    forget, retain = subject.train[:5], subject.train[5:]
    at = OracleMatching().chosen(forget, retain, seed=3)
    each = torch.stack([predict(trained(subject, retain, seed=derive(3, "oracle", k)).model, at.x) for k in range(2)])
    mean = OracleMatching(oracles=2).targets(subject, forget, retain, at, seed=3)
    assert torch.allclose(mean, each.mean(0))
    soft = OracleMatching(oracles=2, loss="ce").targets(subject, forget, retain, at, seed=3)
    assert torch.allclose(soft.softmax(1), each.softmax(2).mean(0), atol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_matching_reaches_its_targets(subject: Subject, loss: str) -> None:
    forget, retain = subject.train[:5], subject.train[5:]
    with seeded(9, "other"):
        other = MLP(subject.train.shape, 10, (8,))
    method = OracleMatching(loss=loss, epochs=150, lr=0.02, decay=0.98)
    at = method.chosen(forget, retain, seed=0)
    goal = predict(other, at.x)
    model = replace(method, oracle_logits=goal).forget(subject, forget, retain, seed=0)
    before, after = ((predict(m, at.x).softmax(1) - goal.softmax(1)).abs().mean() for m in (subject.model, model))
    assert after < 0.15 * before
    held = replace(method, oracle_logits=goal, l2_to_origin=1e4).forget(subject, forget, retain, seed=0)
    moved = [
        sum(
            float((p - q).detach().square().sum())
            for p, q in zip(m.parameters(), subject.model.parameters(), strict=True)
        )
        for m in (model, held)
    ]
    assert moved[1] < 0.05 * moved[0]


def test_a_table_and_the_regression_it_comes_from_predict_alike(subject: Subject) -> None:
    forget, retain = subject.train[:5], subject.train[5:]
    method = DatamodelMatching(attribution="regression", models=12, reg=2.0, epochs=2)
    at = method.chosen(forget, retain, seed=3)
    by_rule = method.targets(subject, forget, retain, at, seed=3)
    masks = subset_masks(60, 12, 0.5, seed=3)
    nets = [trained(subject, subject.train[m], seed=derive(3, "datamodel", t)).model for t, m in enumerate(masks)]
    beta, _ = linear_datamodel(masks, torch.stack([predict(n, at.x) for n in nets]), 2.0)
    table = replace(method, attribution=beta[:5])
    assert torch.allclose(table.targets(subject, forget, retain, at, seed=3), by_rule, atol=1e-4)
    served = DatamodelDirect(attribution="regression", models=12, reg=2.0).forget(subject, forget, retain, seed=3)
    assert torch.allclose(predict(served, at.x), by_rule, atol=1e-4)
    same = [
        predict(m, at.x)
        for m in (method.forget(subject, forget, retain, seed=3), table.forget(subject, forget, retain, seed=3))
    ]
    assert torch.allclose(*same, atol=1e-3)


def test_nothing_removed_changes_nothing_and_shapes_must_fit() -> None:
    logits = torch.randn(7, 4, 3, generator=torch_rng(0, "z"), dtype=torch.float64)
    assert torch.equal(datamodel_logits(logits, torch.zeros(0, 7, 3)), logits)
    beta = torch.randn(2, 7, 3, generator=torch_rng(0, "b"), dtype=torch.float64)
    assert torch.allclose(datamodel_logits(logits, beta, 2.0)[:, 1], logits[:, 1] - 2 * beta.sum(0))
    for wrong in (beta[:, :6], beta[..., :2], beta[0]):
        with pytest.raises(InputError, match="same order"):
            datamodel_logits(logits, wrong)


def test_frozen_norms_keep_their_statistics(subject: Subject) -> None:
    with seeded(0, "norm"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).eval()
    other = subject.with_model(model)
    forget, retain = subject.train[:5], subject.train[5:]
    for frozen in (True, False):
        method = DatamodelMatching(attribution=torch.ones(5, 20, 10), epochs=1, eval_norm=frozen)
        after = method.forget(other, forget, retain, seed=0)
        assert torch.equal(after[2].running_mean, model[2].running_mean) == frozen  # type: ignore[index]


def test_bad_options(subject: Subject) -> None:
    forget, retain = subject.train[:5], subject.train[5:]
    for call in (
        lambda: OracleMatching(oracles=0),
        lambda: OracleMatching(lr=0.0),
        lambda: OracleMatching(retain_multiplier=-1.0),
        lambda: DatamodelMatching(rate=1.0),
        lambda: DatamodelMatching(multiplier=float("nan")),
        lambda: DatamodelDirect(attribution=torch.ones(5, 20, 10)),
        lambda: DatamodelMatching(attribution=torch.ones(4, 20, 10)).forget(subject, forget, retain, seed=0),
        lambda: DatamodelMatching(attribution=torch.ones(5, 19, 10)).forget(subject, forget, retain, seed=0),
        lambda: OracleMatching(oracle_logits=torch.ones(19, 10)).forget(subject, forget, retain, seed=0),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
    with pytest.raises(InputError, match="attribution"):
        DatamodelMatching(attribution="lasso")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="loss"):
        OracleMatching(loss="l1")  # type: ignore[arg-type]
    with pytest.raises(AccessError, match="recipe"):
        OracleMatching().forget(replace(subject, recipe=None), forget, retain, seed=0)


def test_a_stack_trains_each_network_by_itself() -> None:
    stack: nn.Module = _Stack(3, seed=0)
    x: Tensor = torch.rand(5, 1, 8, 8, generator=torch_rng(0, "x"))
    assert stack(x).shape == (5, 3, 10)
    stack(x)[:, 1].sum().backward()
    assert all((p.grad[[0, 2]] == 0).all() and p.grad[1].any() for p in stack.parameters() if p.grad is not None)
