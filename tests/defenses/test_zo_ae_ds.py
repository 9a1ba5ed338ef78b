"""Zeroth-order gradients against closed forms and automatic differentiation, and denoisers trained on answers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.certify import RandomizedSmoothing
from assay.data import Data, load_data
from assay.defenses import (
    ConvDecoder,
    ConvEncoder,
    Denoised,
    DenoisedSmoothing,
    DenoiseMap,
    DnCNN,
    ZOAEDenoisedSmoothing,
    cge_gradient,
    rge_gradient,
    zo_surrogate_loss,
)
from assay.nets import SmallCNN
from assay.papers import zo_ae_ds as paper
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.subject import Subject, load
from assay.training import Supervised

AE = {"latent": 4, "kernel": 2, "stride": 2, "ae_epochs": 2, "depth": 3, "width": 4, "batch_size": 50, "sigma": 0.3}


@pytest.fixture(scope="module")
def train() -> Data:
    return load_data("digits:train")[:150]


@pytest.fixture(scope="module")
def box(train: Data) -> nn.Module:
    with seeded(0, "box"):
        net = SmallCNN(widths=(4, 8), hidden=16)
    return Supervised(epochs=6, lr=5e-3).fit(net, train, seed=0)


def cubes(points: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, 12, dtype=torch.float64)
    return (points.flatten(1) ** 3 * weights).sum(1) + points.flatten(1).prod(1)


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_coordinates_one_by_one_are_the_gradient_whatever_the_chunk(chunk: int) -> None:
    z = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    point = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cubes(point).sum(), point)
    torch.testing.assert_close(cge_gradient(cubes, z, mu=1e-4, chunk=chunk), expected, rtol=1e-5, atol=1e-6)


def test_random_directions_do_not_depend_on_the_chunk_and_are_drawn_for_each_sample() -> None:
    z = torch.zeros(3, 6, dtype=torch.float64)

    def line(points: Tensor) -> Tensor:
        return points.sum(1)

    found = rge_gradient(line, z, q=8, generator=torch.Generator().manual_seed(2))
    assert not found[0].allclose(found[1])
    one = rge_gradient(line, z[:1], q=4000, generator=torch.Generator().manual_seed(2))
    assert float((one - 1).abs().max()) < 0.15
    assert found.equal(rge_gradient(line, z, q=8, generator=torch.Generator().manual_seed(2)))


def test_a_single_coordinate_has_an_exact_random_estimate() -> None:
    z = torch.tensor([[0.7], [-2.0]], dtype=torch.float64)
    found = rge_gradient(lambda p: 3 * p[:, 0], z, q=5)
    torch.testing.assert_close(found, torch.full_like(z, 3.0))


@pytest.mark.parametrize("seed", range(2))
def test_the_exact_checks_of_the_paper_and_that_its_shams_break_them(seed: int) -> None:
    method, sham = (kind(estimator="cge", mu=1e-4) for kind in (ZOAEDenoisedSmoothing, paper._RepeatOrder))
    assert paper._quadratic(seed, method) <= 1e-5 < 0.1 < paper._quadratic(seed, sham)
    assert paper._chain(seed, method) <= 1e-5 < 0.1 < paper._chain(seed, sham)
    assert paper._linear(seed, None) <= 0.05 < 0.5 < paper._linear(seed, "missing-dimension")
    assert paper._radius(seed) <= 1e-9


def test_the_surrogate_holds_the_estimate_fixed() -> None:
    z, ghat = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    zo_surrogate_loss(z, ghat).backward()
    torch.testing.assert_close(z.grad, ghat.detach() / 4)
    assert ghat.grad is None


def test_the_denoiser_starts_as_the_identity_and_shapes_fit() -> None:
    x = torch.rand(2, 1, 28, 28)
    assert DnCNN(1, 5, 4).eval()(x).equal(x)
    z = ConvEncoder()(x)
    assert z.shape == (2, 12, 4, 4)
    assert ConvDecoder()(z).shape == x.shape


@pytest.mark.parametrize("estimator", ["fo", "rge", "cge"])
def test_a_model_that_gives_arrays_is_enough_unless_gradients_go_through_it(
    estimator: str, train: Data, box: nn.Module
) -> None:
    def answers(x: Tensor) -> np.ndarray:
        with torch.no_grad():
            return box(x).numpy()

    options = {**AE, "estimator": estimator, "q": 6, "steps": 3}
    method = ZOAEDenoisedSmoothing(**options)  # type: ignore[arg-type]
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in box.state_dict().items()}
    fitted = method.fit(box, train, seed=1)
    assert torch.get_rng_state().equal(state)
    assert all(before[k].equal(v) for k, v in box.state_dict().items())
    assert not fitted.training
    if estimator == "fo":
        with pytest.raises(InputError, match="module"):
            method.fit(answers, train, seed=1)
        return
    blind = method.fit(answers, train, seed=1)
    assert predict(blind, train.x).equal(predict(fitted, train.x))
    each = 6 + 1 if estimator == "rge" else 2 * fitted.purify.latent(train.x[:1])[0].numel()
    assert blind.queries_ == len(train) + 3 * 50 * each
    assert [h["queries"] for h in blind.history_][-1] == blind.queries_


def test_estimates_lower_the_loss_as_gradients_do(train: Data, box: nn.Module) -> None:
    def cost(model: Denoised) -> float:
        noisy = train.x + 0.4 * torch.randn(train.x.shape, generator=torch.Generator().manual_seed(0))
        return float(F.cross_entropy(predict(model, noisy), predict(box, train.x).argmax(1)))

    start = DenoisedSmoothing(sigma=0.4, depth=3, width=4, batch_size=50, lr=1e-2, q=64, steps=0)
    alone = cost(start.fit(box, train, seed=0))
    for estimator in ("fo", "rge", "cge"):
        assert cost(replace(start, estimator=estimator, steps=30).fit(box, train, seed=0)) < alone - 0.05


def test_scopes_train_what_they_name(train: Data, box: nn.Module) -> None:
    def moved(scope: str) -> list[bool]:
        method = ZOAEDenoisedSmoothing(**{**AE, "estimator": "fo", "scope": scope})  # type: ignore[arg-type]
        maps = [replace(method, steps=k).fit(box, train, seed=0).purify for k in (0, 2)]
        pairs = [[getattr(m, part) for m in maps] for part in ("denoiser", "encoder", "decoder")]
        return [any(not p.equal(q) for p, q in zip(a.parameters(), b.parameters(), strict=True)) for a, b in pairs]

    assert moved("part") == [True, False, False]
    assert moved("whole") == [True, True, False]
    assert moved("whole_plus") == [True, True, True]


def test_images_may_be_recovered_in_place_of_classes(train: Data) -> None:
    def brighter(x: Tensor) -> Tensor:
        return x.sqrt()

    def off(answers: Tensor, target: Tensor) -> Tensor:
        return (answers - target).square().flatten(1).mean(1)

    method = ZOAEDenoisedSmoothing(**{**AE, "steps": 2}, loss=off)  # type: ignore[arg-type]
    fitted = method.fit(brighter, train, seed=0)
    assert fitted(train.x[:3]).shape == train.x[:3].shape


def test_probabilities_and_labels(train: Data, box: nn.Module) -> None:
    soft = nn.Sequential(box, nn.Softmax(1)).eval()
    scores, probabilities = predict(box, train.x), predict(soft, train.x)
    plain, said = DenoisedSmoothing(), DenoisedSmoothing(probabilities=True)
    torch.testing.assert_close(said.losses(probabilities, train.y), plain.losses(scores, train.y), rtol=1e-3, atol=1e-4)
    assert DenoisedSmoothing(target="label").targets(box, train).equal(train.y)
    assert DenoisedSmoothing().targets(box, train).equal(scores.argmax(1))


def test_a_pretrained_denoiser_removes_noise(train: Data, box: nn.Module) -> None:
    method = DenoisedSmoothing(sigma=0.3, depth=3, width=8, batch_size=50, lr=1e-2, steps=0, pretrain_denoiser=10)
    denoiser = method.fit(box, train, seed=0).purify
    noisy = train.x + 0.3 * torch.randn(train.x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert float(F.mse_loss(denoiser(noisy), train.x)) < 0.7 * 0.09


def test_a_repaired_subject_is_smoothed_saved_and_loaded(train: Data, box: nn.Module, tmp_path: Path) -> None:
    subject = Subject(model=box, test=load_data("digits:test")[:40], train=train)
    method = DenoisedSmoothing(sigma=0.3, depth=3, width=4, q=2, steps=1, batch_size=50)
    fitted = method.repair(subject, seed=0)
    assert isinstance(fitted, Denoised)
    assert isinstance(fitted.purify, DenoiseMap)
    assert method.control(subject, seed=0) is None
    x, y = subject.test.x[:4], subject.test.y[:4]
    assert RandomizedSmoothing(sigma=0.3, n0=5, n=20).certify(fitted, x, y).radius.shape == (4,)
    subject.with_model(fitted).save(tmp_path / "subject")
    assert predict(load(str(tmp_path / "subject")).model, x).equal(predict(fitted, x))


def test_a_model_in_training_mode_stays_there_and_is_defended_in_evaluation_mode(train: Data) -> None:
    with seeded(0, "dropout"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).train()
    fitted = DenoisedSmoothing(depth=3, width=4, q=1, steps=1, batch_size=8).fit(model, train[:8], seed=0)
    assert model.training
    assert model[2].training
    assert torch.equal(fitted(train.x[:4]), fitted(train.x[:4]))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 8, 8), {}, "Kernel size"),
        ((1, 32, 32), {}, "28, 28"),
        ((1, 96, 96), {"kernel": 4, "stride": 2, "latent": 12}, "at most 4096"),
    ],
)
def test_an_autoencoder_that_does_not_fit_the_images(
    shape: tuple[int, ...], options: dict[str, int], message: str
) -> None:
    data = Data(torch.rand(2, *shape), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(InputError, match=message):
        ZOAEDenoisedSmoothing(depth=3, width=2, ae_epochs=0, **options).prepare(data, seed=0)


def test_bad_input(train: Data, box: nn.Module) -> None:
    for options in ({"sigma": 0.0}, {"mu": -1.0}, {"q": 0}, {"estimator": "spsa"}, {"target": "clean"}):
        with pytest.raises(InputError):
            DenoisedSmoothing(**options)
    with pytest.raises(InputError, match="whole_plus"):
        ZOAEDenoisedSmoothing(scope="whole_plus")
    with pytest.raises(InputError, match="both or neither"):
        ZOAEDenoisedSmoothing(encoder=nn.Identity())
    wide = Data(torch.rand(2, 3, 40, 40), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(InputError, match="expected at most 4096"):
        DenoisedSmoothing(estimator="cge").fit(box, wide, seed=0)
    with pytest.raises(InputError, match="scores"):
        DenoisedSmoothing(depth=3, width=4, steps=1).fit(lambda x: box(x).argmax(1), train, seed=0)
    z = torch.zeros(3, 2)
    for call in (
        lambda: cge_gradient(lambda p: p, z),
        lambda: cge_gradient(cubes, z, mu=0.0),
        lambda: rge_gradient(lambda p: p.sum(1), z, q=0),
        lambda: rge_gradient(lambda p: 0.0, z),  # type: ignore[arg-type, return-value]
        lambda: cge_gradient(cubes, torch.zeros(0, 2)),
        lambda: zo_surrogate_loss(z, z[:1]),
    ):
        with pytest.raises(InputError):
            call()
