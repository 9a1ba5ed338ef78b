"""WEAT, MART, AWP, MAIL and GAIRAT against what they say they do; the sampler on a robust network."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Batch, Data, load_data
from assay.defenses import AWP, GAIRAT, MAIL, MART, TRADES, WEAT, PGDTraining, RobustSGLD, gairat_weights, mail_weights
from assay.defenses.trades import START
from assay.generate import ClassPCA, class_pca
from assay.losses import WEATLoss, energy_weights
from assay.nets import MLP, ResNet
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import Draws, derive, seeded
from assay.training import State, Supervised


def net() -> MLP:
    with seeded(0, "test"):
        return MLP()


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


def batch_of(data: Data, n: int = 32) -> tuple[Batch, State]:
    return data.batch(torch.arange(n)), State(5, data, 10)


class Even(WEATLoss):
    def weights(self, logits: Tensor) -> Tensor:
        return torch.ones(len(logits))


class EvenWEAT(WEAT):
    def criterion(self) -> WEATLoss:
        return Even(self.variant, self.beta)


def test_weat_with_even_weights_is_trades(data: Data) -> None:
    options = {"eps": 0.1, "attack_steps": 3, "epochs": 1}
    a, b = EvenWEAT(**options).fit(net(), data[:200], seed=0), TRADES(**options).fit(net(), data[:200], seed=0)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("variant", "beta"), [("nat", 6.0), ("adv", 7.0)])
def test_weat_is_the_published_procedure_written_out(data: Data, variant: str, beta: float) -> None:
    """The released function, step by step on the same noise: attack in evaluation mode, loss in training mode."""
    with seeded(0, "test"):
        model = ResNet((1, 8, 8), width=4, blocks=(1,)).double()
    batch, state = batch_of(data.with_x(data.x.double()))
    method = WEAT(variant=variant, beta=beta, eps=0.1)  # type: ignore[arg-type]
    found = method.objective(copy.deepcopy(model).train(), batch, state)  # the loss moves batch statistics
    x = batch.x
    noise = Draws(derive(5, 0), "Drift/0", batch.index).normal(1, 8, 8).double()
    model.eval()
    x_adv = (x + START * noise).clamp(0, 1)
    for _ in range(10):
        x_adv.requires_grad_()
        drift = F.kl_div((model(x_adv).softmax(1) + 1e-12).log(), model(x).softmax(1), reduction="sum")
        (slope,) = torch.autograd.grad(drift, x_adv)
        x_adv = (x_adv.detach() + 0.025 * slope.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    model.train()
    logits, logits_adv = model(x), model(x_adv)
    w = 1 / torch.log(1 + torch.exp(logits.detach().logsumexp(1).abs()))
    own = F.cross_entropy(logits if variant == "nat" else logits_adv, batch.y, reduction="none")
    drift = F.kl_div((logits_adv.softmax(1) + 1e-12).log(), logits.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(found, (w * own).mean() + beta * (w * drift).mean(), rtol=0, atol=1e-9)


def test_weat_weighs_uncertain_samples_more(data: Data) -> None:
    model = WEAT(eps=0.1, attack_steps=3, epochs=8).fit(net(), data, seed=0)
    logits = predict(model, data.x)
    w, confidence = energy_weights(logits), logits.softmax(1).amax(1)
    sure = confidence > confidence.median()
    assert float(w[~sure].mean()) > 1.03 * float(w[sure].mean())


def test_mart_attacks_by_the_cross_entropy_from_next_to_the_sample(data: Data) -> None:
    model, (batch, state) = net(), batch_of(data)
    x_adv = MART(eps=0.1).worst(model, batch, state)
    assert float((x_adv - batch.x).abs().max()) <= 0.1 + 1e-6
    assert F.cross_entropy(model(x_adv), batch.y) > F.cross_entropy(model(batch.x), batch.y) + 0.05
    one = MART(eps=0.1, attack_steps=1, step_size=1e-9).worst(model, batch, state)
    inside = (batch.x > 0.01) & (batch.x < 0.99)
    assert 0.5 * START < float((one - batch.x)[inside].std()) < 2 * START


@pytest.mark.parametrize("on", ["pgd", "trades"])
def test_awp_descends_along_the_gradient_at_the_perturbed_weights(data: Data, on: str) -> None:
    model, (batch, state) = net(), batch_of(data)
    method = AWP(eps=0.1, on=on, gamma=0.02, attack_steps=3)  # type: ignore[arg-type]
    loss = method.objective(model, batch, state)
    found = torch.autograd.grad(loss, list(model.parameters()))
    base = TRADES(eps=0.1, attack_steps=3) if on == "trades" else None
    x_adv = base.worst(model, batch, state) if base else method.worst(model, batch, state)

    def outer(m: nn.Module) -> Tensor:
        return base.outer(m, batch.x, x_adv, batch.y) if base else F.cross_entropy(m(x_adv), batch.y)

    slopes = torch.autograd.grad(outer(model), list(model.parameters()))
    moved = net()
    with torch.no_grad():
        for p, g in zip(moved.parameters(), slopes, strict=True):
            if p.dim() > 1:
                p += 0.02 * p.norm() * g / g.norm()
    expected = torch.autograd.grad(outer(moved), list(moved.parameters()))
    assert outer(moved) > outer(model)
    torch.testing.assert_close(loss, outer(moved))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_awp_without_gamma_is_pgd_training_and_its_first_pass_leaves_batch_statistics_alone(data: Data) -> None:
    options = {"eps": 0.1, "attack_steps": 2, "epochs": 1}
    with seeded(0, "test"):
        model = ResNet((1, 8, 8), width=4, blocks=(1,))
    a = AWP(gamma=0.0, **options).fit(model, data[:96], seed=0)
    b = PGDTraining(**options).fit(model, data[:96], seed=0)
    for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_awp_moves_nothing_that_is_unused_or_frozen(data: Data, frozen: bool) -> None:
    """With every matrix frozen only biases train, which AWP leaves in place: it is training on PGD's points."""
    model, (batch, state) = net(), batch_of(data)
    model.spare = nn.Linear(3, 3)
    for p in model.parameters():
        p.requires_grad_(not frozen or p.dim() == 1)
    method = AWP(eps=0.1, gamma=0.02, attack_steps=2)
    loss = method.objective(model, batch, state)
    x_adv = method.worst(model, batch, state)
    v = method.perturbation(model, batch.x, x_adv, batch.y)
    assert set(v) == (set() if frozen else {"body.1.weight", "head.weight"})
    assert (loss > F.cross_entropy(model(x_adv), batch.y)) != frozen


def test_weights_by_steps_and_margins_stay_finite_where_they_vanish() -> None:
    """Alike samples have weights of 1, however small the weights are before they are scaled."""
    ones = torch.ones(2)
    assert gairat_weights(torch.tensor([10, 10]), 10, -60.0).equal(ones)
    sure = torch.tensor([[30.0, 0.0], [30.0, 0.0]])
    assert mail_weights(sure, torch.tensor([0, 0]), slope=500.0).equal(ones)


def test_weights_of_mail_by_hand_and_burn_in(data: Data) -> None:
    logits, y = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), torch.tensor([0, 0])
    p = logits.softmax(1)
    w = torch.sigmoid(-2.0 * torch.stack((p[0, 0] - p[0, 1], p[1, 0] - p[1, 1])))
    torch.testing.assert_close(mail_weights(logits, y), w / w.mean())
    model, (batch, state) = net(), batch_of(data)
    options = {"eps": 0.1, "attack_steps": 2}
    early, plain = MAIL(**options).objective(model, batch, state), TRADES(**options).objective(model, batch, state)
    torch.testing.assert_close(early, plain)
    assert MAIL(burn_in=0.0, **options).objective(model, batch, state) > plain


def test_gairat_counts_the_steps_that_an_attack_needs(data: Data) -> None:
    model = Supervised(epochs=5).fit(net(), data, seed=0)
    batch, state = batch_of(data, 60)
    x_adv, kappa = GAIRAT(eps=0.2, attack_steps=6).attacked(model, batch, state)
    assert set(kappa.tolist()) <= set(range(7))
    assert 0 < float(kappa.float().mean()) < 6
    fooled = model(x_adv).argmax(1) != batch.y
    assert float(kappa[fooled].float().mean()) < float(kappa[~fooled].float().mean())
    w = gairat_weights(kappa, 6)
    assert float(w.mean()) == pytest.approx(1)
    order = kappa.argsort()
    assert bool((w[order].diff() <= 1e-6).all())
    ratio = (1 + torch.tanh(torch.tensor(4.0))) / (1 + torch.tanh(torch.tensor(-6.0)))
    ends = gairat_weights(torch.tensor([0, 10]), 10)
    torch.testing.assert_close(ends[0] / ends[1], ratio, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (WEAT, {"variant": "both"}),
        (WEAT, {"beta": -1.0}),
        (MART, {"beta": -1.0}),
        (AWP, {"on": "mart"}),
        (AWP, {"gamma": -0.1}),
        (AWP, {"beta": -1.0}),
        (MAIL, {"slope": 0.0}),
        (MAIL, {"beta": -1.0}),
        (GAIRAT, {"burn_in": 2.0}),
    ],
)
def test_impossible_options(cls: type, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        cls(**options)


@pytest.fixture(scope="module")
def pca(data: Data) -> ClassPCA:
    return class_pca(data)


@pytest.mark.parametrize("energy", ["joint", "marginal", "conditional"])
@pytest.mark.parametrize("method", ["sgld", "heun"])
def test_sampler_goes_down_its_energy_in_bounds(data: Data, pca: ClassPCA, energy: str, method: str) -> None:
    model = Supervised(epochs=3).fit(net(), data, seed=0)
    y = torch.arange(10).repeat(3)
    options = {"model": model, "class_pca": pca, "energy": energy, "method": method, "step": 0.05}
    x, start = RobustSGLD(**options).sample(y, seed=0), RobustSGLD(**options, steps=0).sample(y, seed=0)
    assert torch.equal(start, pca.draw(y, seed=0))
    assert x.shape == (30, 1, 8, 8)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1

    def height(points: Tensor) -> Tensor:
        z = predict(model, points)
        joint, marginal = -z.gather(1, y[:, None])[:, 0], -z.logsumexp(1)
        return {"joint": joint, "marginal": marginal, "conditional": joint - marginal}[energy]

    assert float((height(x) < height(start)).float().mean()) > 0.9
    assert torch.equal(RobustSGLD(**options).sample(y, seed=0), x)
    assert not torch.equal(RobustSGLD(**options).sample(y, seed=1), x)
    torch.testing.assert_close(RobustSGLD(**options).sample(y[:7], seed=0), x[:7], rtol=0, atol=1e-4)


def test_two_steps_of_the_sampler_by_hand(pca: ClassPCA) -> None:
    model, y = net(), torch.tensor([3, 8])
    x = pca.draw(y, seed=4)
    velocity = torch.zeros_like(x)
    for _ in range(2):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(-model(x).gather(1, y[:, None]).sum(), x)
        velocity = 0.8 * velocity - 0.5 / 2 * slope
        x = (x.detach() + velocity).clamp(0, 1)
    found = RobustSGLD(model=model, class_pca=pca, noise=0.0, steps=2).sample(y, seed=4)
    torch.testing.assert_close(found, x)


def test_a_robust_network_keeps_samples_near_the_data_and_an_ordinary_one_does_not(data: Data, pca: ClassPCA) -> None:
    """The paper's claim with its negative control: distance to the nearest held-out image of the class."""
    held, y, near = load_data("digits:test"), torch.arange(10).repeat(10), {}
    for name, trainer in {"robust": PGDTraining(epochs=12, eps=0.2), "ordinary": Supervised(epochs=12)}.items():
        model = trainer.fit(net(), data, seed=0)
        x = RobustSGLD(model=model, class_pca=pca, sigma=0.1, step=0.1).sample(y, seed=0).flatten(1)
        distance = torch.cdist(x, held.x.flatten(1)).masked_fill(y[:, None] != held.y, torch.inf)
        near[name] = float(distance.amin(1).mean())
    assert near["robust"] < 0.7 * near["ordinary"], near


@pytest.mark.parametrize(
    "options", [{"energy": "free"}, {"method": "euler"}, {"step": 0.0}, {"momentum": 1.0}, {"noise": -1.0}]
)
def test_impossible_samplers(pca: ClassPCA, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        RobustSGLD(model=net(), class_pca=pca, **options)  # type: ignore[arg-type]
