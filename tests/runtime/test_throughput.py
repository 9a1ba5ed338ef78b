"""Switches change the speed, not the findings; a batch that does not fit is cut until it does."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.attacks import PGD, Linf
from assay.audit import audit
from assay.audit.robustness import fooled
from assay.runtime import throughput as module
from assay.runtime.errors import InputError
from assay.runtime.inference import features, predict
from assay.runtime.store import Store
from assay.runtime.throughput import Throughput, Tuned, exact, reduced, tuned
from assay.subject import Subject

FEW = 16


class Narrow(nn.Module):
    """Out of memory above FEW samples; notes the sizes of the batches that it took."""

    def __init__(self, model: nn.Module, least: int = 0) -> None:
        super().__init__()
        self.inner, self.least = model, least
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.least < len(x) <= FEW:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.sizes.append(len(x))
        out: Tensor = self.inner(x)
        return out


def test_batches_are_halved_until_they_fit_and_the_size_is_kept(digits: Subject) -> None:
    model = Narrow(digits.model)
    found = Tuned(model, Throughput())
    assert torch.allclose(predict(found, digits.test.x[:100]), predict(digits.model, digits.test.x[:100]), atol=1e-5)
    assert model.sizes == [13] * 7 + [9]  # 100 -> 50 -> 25 -> 13
    model.sizes.clear()
    predict(found, digits.test.x[:20])
    assert model.sizes == [13, 7]


def test_gradients_flow_through_the_pieces_one_at_a_time(digits: Subject) -> None:
    model = Narrow(digits.model)
    x = digits.test.x[:40]
    slopes = []
    for net in (Tuned(model, Throughput()), digits.model):
        z = x.clone().requires_grad_()
        slopes.append(torch.autograd.grad(net(z).logsumexp(1).sum(), z)[0])
    assert torch.allclose(*slopes, atol=1e-6)
    assert model.sizes == [10] * 8  # each piece again when its turn comes in the backward pass


def test_an_attack_goes_on_after_running_out_of_memory(digits: Subject) -> None:
    attack, x, y = PGD(ball=Linf(0.1), steps=3), digits.test.x[:50], digits.test.y[:50]
    here = attack(Tuned(Narrow(digits.model), Throughput()), x, y, seed=0)
    assert torch.allclose(here, attack(digits.model, x, y, seed=0), atol=1e-4)


class Scarce(torch.autograd.Function):
    """The identity, whose backward pass is out of memory above FEW samples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        if len(slope) > FEW:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return slope


class Heavy(nn.Module):
    """A model that fits forward at any size, and backward up to FEW samples."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(Scarce.apply(x))
        return out


def test_the_size_is_found_with_the_backward_pass_where_gradients_are_used(digits: Subject) -> None:
    model, x, y = Heavy(digits.model), digits.test.x[:50], digits.test.y[:50]
    found = [tuned(model, Throughput(channels_last=True), x, gradient=g) for g in (True, False)]
    assert [net.fits for net in found] == [13, None]
    attack = PGD(ball=Linf(0.1), steps=3)
    assert torch.allclose(attack(found[0], x, y, seed=0), attack(digits.model, x, y, seed=0), atol=1e-4)
    with pytest.raises(torch.OutOfMemoryError):
        attack(found[1], x, y, seed=0)


class Fixed(nn.Module):
    """Scores that the input has no say in: none with a gradient, or those of a parameter."""

    def __init__(self, learnt: bool) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.arange(10.0), requires_grad=learnt)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores.expand(len(x), 10)


@pytest.mark.parametrize("learnt", [True, False])
def test_a_model_without_a_gradient_to_its_input_is_taken(learnt: bool, digits: Subject) -> None:
    net = tuned(Fixed(learnt), Throughput(precision="bf16"), digits.test.x[:4])
    assert predict(net, digits.test.x[:4]).argmax(1).tolist() == [9] * 4


def test_a_single_sample_that_does_not_fit_is_one_line(digits: Subject) -> None:
    with pytest.raises(InputError, match="out of memory on a single sample"):
        predict(Tuned(Narrow(digits.model, least=FEW), Throughput()), digits.test.x[:2])


def test_other_errors_pass_and_watched_layers_are_not_cut(digits: Subject) -> None:
    with pytest.raises(RuntimeError, match=r"shape|size|channels"):
        Tuned(digits.model, Throughput())(torch.zeros(3, 2, 8, 8))
    watched = Tuned(Narrow(digits.model), Throughput())
    layer = next(n for n, m in watched.named_modules() if isinstance(m, nn.Linear))
    with pytest.raises(InputError, match="while layers are watched"):
        features(watched, digits.test.x[:40], [layer])


def test_nothing_switched_on_is_the_model_itself(digits: Subject) -> None:
    assert tuned(digits.model, Throughput(), digits.test.x[:2]) is digits.model
    assert not reduced(digits.model)
    with pytest.raises(InputError, match="unknown precision 'fp16'"):
        Throughput(precision="fp16")  # type: ignore[arg-type]


def test_bf16_rounds_and_exact_does_not(digits: Subject) -> None:
    net, x = tuned(digits.model, Throughput(precision="bf16"), digits.test.x[:2]), digits.test.x[:64]
    full = predict(digits.model, x)
    rounded = predict(net, x)
    assert reduced(net)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - full).abs().max()) < 0.1 * float(full.abs().max())
    with exact(net):
        assert not reduced(net)
        assert predict(net, x).equal(full)
    assert predict(net, x).equal(rounded)


class Deaf(nn.Module):
    """A model whose bfloat16 passes are useless to an attack: they see the input through a coarse grid."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out + 50 * torch.nn.functional.one_hot(out.argmax(1), 10) * torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("spoil", [False, True])
def test_attacks_keep_their_strength(digits: Subject, spoil: bool) -> None:
    """Whoever float32 breaks is broken, and whoever counts as broken is broken in float32."""
    model = Deaf(digits.model) if spoil else digits.model
    net, data = tuned(model, Throughput(precision="bf16"), digits.test.x[:2]), digits.test[:96]
    attack = PGD(ball=Linf(0.05), steps=5)
    full, found = fooled(attack, model, data, 0), fooled(attack, net, data, 0)
    assert 0 < int(full.sum()) < len(data)
    assert bool(found[full].all())
    extra = int((found & ~full).sum())
    assert extra <= 0.05 * len(data)


def test_an_audit_under_bf16_says_what_one_in_float32_says(
    digits: Subject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, only = Store(tmp_path_factory.mktemp("own")), ["accuracy", "robustness.linf", "cost"]
    full = audit(digits, only=only[:2], limit=128, store=store)
    fast = audit(digits, only=only[:2], limit=128, store=store, throughput=Throughput(precision="bf16"))
    assert fast.meta["throughput"]["precision"] == "bf16"
    name = "robustness.linf.accuracy@0.1"
    assert full[name].high is not None
    assert fast[name].value <= full[name].high  # type: ignore[operator]
    assert abs(fast["accuracy.top1"].value - full["accuracy.top1"].value) <= 0.02  # type: ignore[operator]
    assert (fast.samples[name].values <= full.samples[name].values).mean() >= 0.99


def test_channels_last_and_compiled_models_say_the_same(digits: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []

    def traced(model: nn.Module, **options: object) -> object:
        calls.append(model)
        return plain(model, backend="eager", **options)

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    x, weights = digits.test.x[:64], copy.deepcopy(digits.model.state_dict())
    net = tuned(digits.model, Throughput(channels_last=True, compile=True), x[:2])
    assert torch.allclose(predict(net, x), predict(digits.model, x), atol=1e-4)
    assert torch.allclose(predict(net, x[:33]), predict(digits.model, x[:33]), atol=1e-4)
    assert len(calls) == 1
    assert next(p for p in net.parameters() if p.dim() == 4).is_contiguous(memory_format=torch.channels_last)
    assert all(v.equal(weights[k]) for k, v in digits.model.state_dict().items())


def test_a_model_that_cannot_be_compiled_is_one_line(digits: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module, **options: object) -> object:
        raise RuntimeError("no compiler\nanywhere")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(InputError, match=r"--compile: the model fails under them \(no compiler anywhere\)"):
        tuned(digits.model, Throughput(compile=True), digits.test.x[:2])


def test_tf32_is_set_while_a_piece_runs_and_put_back(digits: Subject) -> None:
    net = tuned(digits.model, Throughput(precision="tf32"), digits.test.x[:2])
    flag = torch.backends.cuda.matmul
    before = flag.allow_tf32
    with module.products(net):
        assert flag.allow_tf32 is True
        with exact(net):
            assert flag.allow_tf32 is False
        assert flag.allow_tf32 is True
    assert flag.allow_tf32 == before
    assert partial(predict, net)(digits.test.x[:4]).equal(predict(digits.model, digits.test.x[:4]))
