"""The score, the perturbation against closed forms and a loop by hand, generators, oracles, and what is reported."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.nets import MLP
from assay.papers.foundation_robustness import by_hand
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded, torch_rng
from assay.training import Supervised
from assay.vision import (
    CLIPZeroShot,
    ConvAE,
    Ensemble,
    FMREvaluator,
    HFVQModel,
    ImageGenerator,
    PCAAutoencoder,
    TamingVQGAN,
    fmr_score,
    sparse_mask,
)


@pytest.fixture(scope="module")
def train() -> Data:
    return load_data("digits:train")[:300]


@pytest.fixture(scope="module")
def test() -> Data:
    return load_data("digits:test")[:40]


@pytest.fixture(scope="module")
def pca(train: Data) -> PCAAutoencoder:
    return PCAAutoencoder.fit(train, 12)


@pytest.fixture(scope="module")
def nets(train: Data) -> list[nn.Module]:
    found = []
    for k in range(3):
        with seeded(k, "fmr"):
            start = MLP(hidden=(16,))
        found.append(Supervised(epochs=12, lr=1e-2).fit(start, train, seed=k))
    return found


@pytest.fixture(scope="module")
def evaluator(pca: PCAAutoencoder, nets: list[nn.Module]) -> FMREvaluator:
    return FMREvaluator(generator=pca, oracle=Ensemble(nets[1:]), budget=8, step_size=0.2)


def test_the_score() -> None:
    assert fmr_score(0.8, 0.6) == pytest.approx(75)
    assert fmr_score(0.5, 0.6) == pytest.approx(120)
    with pytest.warns(RuntimeWarning, match="accuracy is 0"):
        assert math.isnan(fmr_score(0.0, 0.1))


def test_no_budget_returns_the_originals(evaluator: FMREvaluator, nets: list[nn.Module], test: Data) -> None:
    report = replace(evaluator, budget=0).evaluate(nets[0], test)
    assert report.images.equal(test.x)
    assert report.pa == report.sa
    assert report.fmr == 100
    assert not report.steps.any()
    assert report.oracle_agreement == 1


def test_images_are_those_of_a_loop_by_hand(evaluator: FMREvaluator, nets: list[nn.Module], test: Data) -> None:
    images, steps, eligible = evaluator.perturb(nets[0], test)
    rows = eligible.nonzero()[:, 0]
    expected, numbers = by_hand(nets[0], evaluator.generator, evaluator.oracle, test.x[rows], test.y[rows], 8, 0.2)
    torch.testing.assert_close(images[rows], expected, atol=1e-5, rtol=0)
    assert steps[rows].tolist() == numbers
    assert images[~eligible].equal(test.x[~eligible])
    assert {0, 8} < set(numbers)


def test_the_report_by_hand(evaluator: FMREvaluator, nets: list[nn.Module], test: Data) -> None:
    report = evaluator.evaluate(nets[0], test)
    hit = predict(nets[0], report.images).argmax(1) == test.y
    oracle = predict(evaluator.oracle, report.images) == test.y
    known = predict(evaluator.oracle, test.x) == test.y
    assert report.pa == pytest.approx(float(hit.double().mean()))
    assert report.sa == pytest.approx(float((predict(nets[0], test.x).argmax(1) == test.y).double().mean()))
    assert report.fmr == pytest.approx(100 * report.pa / report.sa)
    assert report.per_class[3] == pytest.approx(float(hit[test.y == 3].double().mean()))
    assert report.eligible.equal(known)
    assert report.oracle_agreement == float(oracle[known].double().mean()) == 1
    assert report.rejections == pytest.approx(float((report.steps[known] < 8).double().mean()))
    torch.testing.assert_close(report.distance, (report.images - test.x).flatten(1).norm(dim=1))
    assert report.pa < report.sa


def test_the_oracle_scores_100_on_itself_and_is_left_behind_without_its_stop(
    pca: PCAAutoencoder, nets: list[nn.Module], test: Data
) -> None:
    own = FMREvaluator(generator=pca, oracle=nets[1], budget=8, step_size=0.2)
    assert own.evaluate(nets[1], test).fmr == 100
    free = replace(own, oracle_stop=False).evaluate(nets[1], test)
    assert free.oracle_agreement < 0.9
    assert free.steps[free.eligible].eq(8).all()


def test_batches_and_seeds_do_not_matter(evaluator: FMREvaluator, nets: list[nn.Module], test: Data) -> None:
    state, weights = torch.get_rng_state(), nets[0].head.weight.clone()  # type: ignore[operator, union-attr]
    whole = evaluator.perturb(nets[0], test)
    parts = evaluator.perturb(nets[0], test, seed=5, batch_size=7)
    torch.testing.assert_close(whole[0], parts[0], atol=1e-5, rtol=0)
    assert whole[1].equal(parts[1])
    assert torch.get_rng_state().equal(state)
    assert weights.equal(nets[0].head.weight)  # type: ignore[arg-type, union-attr]


def test_the_transfer_matrix_has_the_reports_on_its_diagonal(
    evaluator: FMREvaluator, nets: list[nn.Module], test: Data
) -> None:
    found = evaluator.transfer_matrix({"a": nets[0], "b": nets[1]}, test)
    assert set(found) == {(i, j) for i in "ab" for j in "ab"}
    assert found["a", "a"] == pytest.approx(evaluator.evaluate(nets[0], test).fmr)
    images = evaluator.perturb(nets[0], test)[0]
    rates = [(predict(nets[1], x).argmax(1) == test.y).double().mean() for x in (images, test.x)]
    assert found["a", "b"] == pytest.approx(float(100 * rates[0] / rates[1]))


class Pixels(ImageGenerator):
    """The pixels themselves."""

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, 8, 8)


def test_a_mask_moves_some_latents_only_and_one_step_is_the_gradient(
    evaluator: FMREvaluator, nets: list[nn.Module], test: Data
) -> None:
    mask = torch.arange(64) % 4 == 0
    one = replace(evaluator, generator=Pixels(), mask=mask, budget=1, oracle_stop=False)
    images, steps, eligible = one.perturb(nets[0], test)
    x = test.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(nets[0](x), test.y, reduction="sum"), x)
    expected = test.x + (0.2 * grad * mask.view(8, 8)) * eligible.view(-1, 1, 1, 1)
    torch.testing.assert_close(images, expected)
    assert steps.equal(eligible.long())


def test_the_mask_finds_the_latents_that_tell_the_label() -> None:
    g = torch_rng(0, "mask")
    y = torch.arange(200) % 2
    x = 0.3 * torch.rand(200, 1, 2, 5, generator=g)
    x[:, 0, 1, 2] += 0.5 * y
    mask = sparse_mask(Pixels(), Data(x, y, ("a", "b")), 0.1)
    assert mask.nonzero()[:, 0].tolist() == [7]
    with pytest.raises(InputError, match="fraction"):
        sparse_mask(Pixels(), Data(x, y, ("a", "b")), 0.0)
    with pytest.raises(InputError, match="one class"):
        sparse_mask(Pixels(), Data(x, y * 0, ("a", "b")), 0.1)


def test_an_autoencoder_needs_as_many_places_as_codes(test: Data) -> None:
    with pytest.raises(InputError, match="codes=64"):
        ConvAE.fit(test[:1], seed=0, width=4, down=1, steps=2)


def test_the_reconstruction_is_a_control(evaluator: FMREvaluator, nets: list[nn.Module], test: Data) -> None:
    recon = evaluator.generator(test.x)
    report = replace(evaluator, baseline="recon", budget=0).evaluate(nets[0], test)
    assert report.images.equal(recon)
    expected = float((predict(nets[0], recon).argmax(1) == test.y).double().mean())
    assert report.sa == report.pa == report.reconstruction == pytest.approx(expected)


def test_what_is_told_and_refused(evaluator: FMREvaluator, nets: list[nn.Module], test: Data) -> None:
    with pytest.warns(RuntimeWarning, match="reconstructions"):
        replace(evaluator, max_recon_error=1e-6).evaluate(nets[0], test)
    with pytest.raises(InputError, match="oracle's accuracy"):
        replace(evaluator, min_oracle_acc=1.0).evaluate(nets[0], test.with_y((test.y + 1) % 10))
    for options in ({"budget": -1}, {"step_size": 0.0}, {"baseline": "other"}):
        with pytest.raises(InputError):
            replace(evaluator, **options)
    with pytest.raises(InputError, match="spans"):
        evaluator.evaluate(nets[0], Data(test.x * 2, test.y, test.classes, (0.0, 2.0)))
    with pytest.raises(InputError, match="k=500"):
        PCAAutoencoder.fit(test, 500)
    with pytest.raises(InputError, match="halve"):
        ConvAE((1, 6, 6), down=2)


def test_principal_components_keep_what_they_span(train: Data) -> None:
    full = PCAAutoencoder.fit(train, 60)
    torch.testing.assert_close(full(train.x), train.x, atol=2e-2, rtol=0)
    errors = [float((PCAAutoencoder.fit(train, k)(train.x) - train.x).square().sum()) for k in (2, 8, 32)]
    assert errors == sorted(errors, reverse=True)


def test_codes_are_the_nearest_and_pass_gradients_straight_through(train: Data) -> None:
    net = ConvAE.fit(train, seed=0, codes=16, width=8, down=1, steps=200, lr=0.01).eval()
    z = net.encode(train.x[:3]).detach().requires_grad_()
    code = net.nearest(z)
    place, book = z.detach()[1, :, 2, 3], net.codebook.detach()
    assert code[1, :, 2, 3].equal(book[(book - place).norm(dim=1).argmin()])
    weight = torch.rand(net.decode(z).shape, generator=torch_rng(0, "w"))
    (through,) = torch.autograd.grad((net.decode(z) * weight).sum(), z)
    fixed = code.detach().requires_grad_()
    (direct,) = torch.autograd.grad((net.decoder(fixed) * weight).sum(), fixed)
    torch.testing.assert_close(through, direct)
    assert float((net(train.x).detach() - train.x).square().mean()) < 0.7 * float(train.x.var())
    assert len(net.codebook) == 16


def test_adapters_of_pretrained_autoencoders() -> None:
    class Diffusers(nn.Module):
        def encode(self, x: Tensor) -> Any:
            return SimpleNamespace(latents=3 * x)

        def decode(self, z: Tensor) -> Any:
            return SimpleNamespace(sample=z / 3)

    class Taming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.quant_conv = nn.Identity(), nn.Identity()

        def quantize(self, z: Tensor) -> tuple[Tensor, None, None]:
            return z, None, None

        def decode(self, z: Tensor) -> Tensor:
            return z

    x = torch.rand(2, 3, 4, 4, generator=torch_rng(0, "x"))
    for generator in (HFVQModel(Diffusers()), TamingVQGAN(Taming())):
        torch.testing.assert_close(generator(x), x)
        assert float(generator.decode(generator.encode(x) * 9).max()) <= 1


def test_ensembles_vote() -> None:
    class Says(nn.Module):
        def __init__(self, *labels: int) -> None:
            super().__init__()
            self.labels = torch.tensor(labels)

        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(3)[self.labels]

    members, x = [Says(0, 1, 2), Says(0, 2, 2), Says(0, 1, 1)], torch.zeros(3, 1)
    assert Ensemble(members)(x).tolist() == [0, 1, 2]
    assert Ensemble(members, "unanimous")(x).tolist() == [0, -1, -1]
    for arguments in (([],), (members, "other")):
        with pytest.raises(InputError):
            Ensemble(*arguments)  # type: ignore[arg-type]


def test_clip_without_training_agrees_with_its_own_logits() -> None:
    hf = pytest.importorskip("transformers")
    part: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {**part, "vocab_size": 30, "max_position_embeddings": 8, "eos_token_id": 29, "bos_token_id": 28}
    config = hf.CLIPConfig(
        text_config=text, vision_config={**part, "image_size": 16, "patch_size": 8}, projection_dim=12
    )
    with seeded(0, "clip"):
        model = hf.CLIPModel(config).eval()
    prompts = torch.tensor([[[28, 3, 29]], [[28, 4, 29]], [[28, 5, 29]]])
    oracle = CLIPZeroShot(model, prompts).eval()
    x = torch.rand(2, 3, 16, 16, generator=torch_rng(0, "x"))
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (x - mean[:, None, None]) / std[:, None, None]
    own = model(input_ids=prompts[:, 0], pixel_values=pixels).logits_per_image
    torch.testing.assert_close(oracle(x), own, atol=1e-4, rtol=1e-4)
    assert oracle(x[:, :1]).shape == (2, 3)
    with pytest.raises(InputError, match="templates"):
        CLIPZeroShot(model, prompts[:, 0])
