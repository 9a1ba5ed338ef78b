"""BEYOND's parts against their definitions; nearest neighbours; attacks that know of the detector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from assay.attacks import Linf, Targeted, Untargeted
from assay.data import Data, load_data
from assay.detect import (
    BEYOND,
    KNN,
    BeyondAdaptiveAttack,
    OrthogonalPGD,
    robust_accuracy_with_rejection,
)
from assay.detect.beyond import FittedBEYOND
from assay.detect.orthogonal_pgd import without
from assay.nets import MLP, SmallCNN
from assay.represent import Augmentation
from assay.runtime.errors import InputError
from assay.runtime.inference import features
from assay.runtime.random import seeded, torch_rng
from assay.training import Supervised

STILL = Augmentation(scale=(1.0, 1.0), ratio=1.0, flip=False, jitter=0.0, grayscale=0.0)
SOME = Augmentation(scale=(0.8, 1.0), flip=False, jitter=0.0, noise=0.1)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train").limit(300)


@pytest.fixture(scope="module")
def model(data: Data) -> nn.Module:
    with seeded(0, "init"):
        start = MLP(hidden=(32,))
    return Supervised(epochs=20).fit(start, data, seed=0)


@pytest.fixture(scope="module")
def method(data: Data) -> BEYOND:
    with seeded(1, "init"):
        start = SmallCNN(widths=(8, 8), hidden=32)
    branch = Supervised(epochs=12).fit(start, load_data("digits:train"), seed=1)
    with seeded(2, "init"):
        projector = nn.Linear(32, 8)
    assert isinstance(branch, SmallCNN)
    return BEYOND(ssl_backbone=branch.body, ssl_projector=projector, ssl_classifier=branch.head, augment=SOME, k=8, K=3)


def fitted_of(method: BEYOND, model: nn.Module, data: Data) -> FittedBEYOND:
    fitted = method.fit(model, data)
    assert isinstance(fitted, FittedBEYOND)
    return fitted


def test_views_that_change_nothing_leave_the_label_term_alone(method: BEYOND, model: nn.Module, data: Data) -> None:
    fitted, x = fitted_of(replace(method, augment=STILL), model, data[:50]), data.x[60:90]
    assert float((fitted.details(x)["sim"] - 1).abs().max()) < 1e-5
    with torch.no_grad():
        logits = fitted.classifier_(fitted.backbone_(x)).double()
        label = model(x).argmax(1)
    cosine = logits.gather(1, label[:, None])[:, 0] / logits.norm(dim=1)
    torch.testing.assert_close(fitted.score(x), -(0.8 * cosine + 0.2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("K", [1, 3, 8])
def test_score_is_the_kth_largest_whatever_the_order(
    method: BEYOND, model: nn.Module, data: Data, alpha: float, K: int
) -> None:
    fitted = fitted_of(replace(method, alpha=alpha, K=K), model, data[:10])
    g = torch_rng(0, "parts")
    s, agreement = torch.rand(20, 8, generator=g), torch.rand(20, 8, generator=g)
    q = alpha * agreement + (1 - alpha) * s
    expected = -np.sort(q.numpy(), 1)[:, ::-1][:, K - 1]
    np.testing.assert_allclose(fitted.combined(s, agreement).numpy(), expected, rtol=1e-6)
    order = torch.randperm(8, generator=g)
    torch.testing.assert_close(fitted.combined(s[:, order], agreement[:, order]), fitted.combined(s, agreement))


def test_hard_labels_alone_are_an_order_statistic_of_votes(method: BEYOND, model: nn.Module, data: Data) -> None:
    fitted = fitted_of(replace(method, alpha=1.0, consistency="hard"), model, data[:10])
    x = data.x[20:60]
    votes = fitted.details(x)["label_agree"].sum(1)
    assert torch.equal(fitted.score(x), -(votes >= 3).double())


def test_the_label_is_the_target_s(method: BEYOND, model: nn.Module, data: Data) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(10)[torch.full((len(x),), 7)] + 0 * x.flatten(1).sum(1, keepdim=True)

    right = fitted_of(method, model, data[:20]).details(data.x[:60])["label_agree"]
    seven = fitted_of(method, Constant(), data[:20]).details(data.x[:60])["label_agree"]
    assert float(right.double().mean()) > 0.7
    assert float(seven.double().mean()) < 0.3


def test_offsets_of_logits_matter_unless_centred(method: BEYOND, model: nn.Module, data: Data) -> None:
    g = torch_rng(0, "logits")
    logits, label = torch.randn(4, 8, 10, generator=g), torch.arange(4)
    plain, centred = (fitted_of(replace(method, centred=c), model, data[:5]) for c in (False, True))
    assert not torch.allclose(plain.label_term(logits + 3, label), plain.label_term(logits, label))
    torch.testing.assert_close(centred.label_term(logits + 3, label), centred.label_term(logits, label))


@pytest.mark.parametrize("mode", ["counts", "order_stat"])
def test_refusals_keep_the_rate_on_the_data_of_fit(method: BEYOND, model: nn.Module, data: Data, mode: str) -> None:
    fitted = fitted_of(replace(method, mode=mode), model, data)  # type: ignore[arg-type]
    assert float(fitted.predict(data.x, 0.1).double().mean()) <= 0.1
    noise = torch.rand(60, 1, 8, 8, generator=torch_rng(0, "noise"))
    assert fitted.predict(noise, 0.1).dtype == torch.bool
    if mode == "counts":
        votes, near = fitted.counts(noise).T
        torch.testing.assert_close(fitted.score(noise), 1 - torch.minimum(votes, near).double() / 8)
        with pytest.raises(InputError, match="fpr"):
            fitted.predict(noise, 0.0)


def test_bad_options(method: BEYOND, model: nn.Module, data: Data) -> None:
    options: tuple[dict, ...] = ({"K": 0}, {"K": 9}, {"alpha": 1.5}, {"mode": "median"}, {"consistency": "firm"})
    for bad in (*options, {"ssl_projector": None}):
        with pytest.raises(InputError, match="BEYOND"):
            replace(method, **bad).fit(model, data[:5])


def test_robust_accuracy_counts_refusals_for_attacks_and_against_clean_inputs() -> None:
    correct, rejected = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert robust_accuracy_with_rejection(correct, rejected, adversarial=True) == 0.75
    assert robust_accuracy_with_rejection(correct, rejected, adversarial=False) == 0.25
    with pytest.raises(InputError, match="shapes"):
        robust_accuracy_with_rejection(correct, rejected[:2], adversarial=True)


def test_nearest_neighbours_are_scikit_learns(model: nn.Module, data: Data) -> None:
    fitted = KNN(k=5).fit(model, data)
    layer = fitted.layer_  # type: ignore[attr-defined]
    bank, probe = (
        nn.functional.normalize(features(model, x, [layer])[layer].double()).numpy()
        for x in (data.x, load_data("digits:test").x[:40])
    )
    expected = NearestNeighbors(n_neighbors=5).fit(bank).kneighbors(probe)[0][:, -1]
    np.testing.assert_allclose(fitted.score(load_data("digits:test").x[:40]).numpy(), expected, atol=1e-6)
    with pytest.raises(InputError, match="k=0"):
        KNN(k=0).fit(model, data)


def test_without_leaves_no_component() -> None:
    a, b = (torch.randn(6, 1, 4, 4, generator=torch_rng(k, "ab")) for k in (0, 1))
    rest = without(a, b)
    assert float((rest * b).sum((1, 2, 3)).abs().max()) < 1e-4
    torch.testing.assert_close(without(rest, b), rest, atol=1e-5, rtol=0)
    assert torch.equal(without(a, torch.zeros_like(b)), a)


def test_attacks_that_know_of_the_detector(method: BEYOND, model: nn.Module, data: Data) -> None:
    fitted, x, y = fitted_of(method, model, data[:100]), data.x[100:130], data.y[100:130]
    t = (y + 1) % 10
    attack = BeyondAdaptiveAttack(ball=Linf(0.3), steps=10, step_size=0.2, detector=fitted, samples=4)
    found = attack.run(model, x, Targeted(t), seed=0).x_adv
    assert float((found - x).abs().max()) <= 0.3 + 1e-6
    with torch.no_grad():
        before, after = (attack.neighbour_loss(z, t).mean() for z in (x, found))
    assert float(after) < float(before)
    assert torch.equal(found, attack.run(model, x, Targeted(t), seed=0).x_adv)
    with pytest.raises(InputError, match="expected Targeted"):
        attack.run(model, x, Untargeted(y), seed=0)
    other = OrthogonalPGD(ball=Linf(0.3), steps=10, detector=fitted).run(model, x, Untargeted(y), seed=0)
    assert float(other.success.double().mean()) > 0.5
    assert float((other.x_adv - x).abs().max()) <= 0.3 + 1e-6
