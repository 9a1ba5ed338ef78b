"""What each sham of the BEYOND paper changes, and nothing besides."""

import pytest
import torch
from torch import nn

from assay.data import load_data
from assay.detect import BEYOND
from assay.nets import MLP
from assay.papers import beyond as paper
from assay.runtime.random import seeded


@pytest.fixture(scope="module")
def fitted() -> paper.FittedBEYOND:
    with seeded(0, "nets"):
        target, branch, projector = MLP(), MLP(hidden=(16,)), nn.Linear(16, 6)
    method = BEYOND(
        ssl_backbone=branch.body, ssl_projector=projector, ssl_classifier=branch.head, augment=paper.VIEWS, k=4, K=2
    )
    found = method.fit(target, load_data("digits:train")[:40])
    assert isinstance(found, paper.FittedBEYOND)
    return found


def test_exact_checks_hold_and_rolled_views_break_the_identity(fitted: paper.FittedBEYOND) -> None:
    x = load_data("digits:test").x[:20]
    real, rolled, own = (paper.exact(fitted, x, 0, s) for s in (None, "rolled-neighbours", "own-label"))
    assert real["identity"] < 1e-4 < 0.01 < rolled["identity"]
    assert own["identity"] < 1e-4
    assert max(r["order"] for r in (real, rolled, own)) < 1e-12


def test_own_label_changes_the_label_and_keeps_the_views(fitted: paper.FittedBEYOND) -> None:
    x, own = load_data("digits:test").x[:20], paper._as(paper._OwnLabel, fitted)
    assert torch.equal(own.neighbours(x), fitted.neighbours(x))
    with torch.no_grad():
        label = fitted.classifier_(fitted.backbone_(x)).argmax(1)
    assert torch.equal(own.decision(x), label)
    assert not torch.equal(fitted.decision(x), label)
    rolled = paper._as(paper._Rolled, fitted)
    assert torch.equal(rolled.neighbours(x)[1:], fitted.neighbours(x)[:-1])
