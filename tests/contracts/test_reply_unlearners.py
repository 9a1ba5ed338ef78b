"""The contract of unlearners of language models, over every exported one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import assay.language as room
from assay.data import Batch, Data
from assay.language import Replies, ReplyUnlearner, probability
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import Plan, State, fit

transformers = pytest.importorskip("transformers", reason="the extra assay[hf] (transformers) is not installed")

OPTIONS: dict[str, dict[str, Any]] = {
    "RMU": {"layer": "transformer.h.1", "params": ("transformer.h.0.mlp", "transformer.h.1"), "alpha": 1.0}
}
METHODS = [
    c
    for c in (getattr(room, n) for n in room.__all__)
    if inspect.isclass(c) and issubclass(c, ReplyUnlearner) and c is not ReplyUnlearner
]
unlearners = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


def make(cls: type[ReplyUnlearner], **options: Any) -> ReplyUnlearner:
    given: dict[str, Any] = {"steps": 4, "batch_size": 4, "lr": 5e-3, "warmup": 0.0, "schedule": "constant"}
    return cls(**{**given, **OPTIONS.get(cls.__name__, {}), **options})


def tokens(n: int, seed: int) -> Replies:
    rng = torch.Generator().manual_seed(seed)
    draw = torch.randint(1, 20, (n, 7), generator=rng).tolist()
    return Replies.of([r[:3] for r in draw], [r[3 : 5 + k % 3] for k, r in enumerate(draw)])


@pytest.fixture(scope="module")
def parts() -> tuple[Replies, Replies]:
    return tokens(4, 1), tokens(6, 2)


@pytest.fixture(scope="module")
def model(parts: tuple[Replies, Replies]) -> nn.Module:
    """A tiny GPT-2 that knows the replies of both sets by heart."""
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with seeded(0, "test"):
        start = transformers.GPT2LMHeadModel(config)
    both = Replies(*(torch.cat([getattr(p, k) for p in parts]) for k in ("ids", "labels", "attention")))

    def objective(net: nn.Module, batch: Batch, state: State) -> torch.Tensor:
        return room.mean_nll(net, both)

    clock = Data(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), ("a", "b"))
    return fit(start, clock, objective, Plan(steps=100, lr=1e-2, batch_size=2), seed=0)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_suite_sees_methods() -> None:
    assert {c.__name__ for c in METHODS} == {"GradAscent", "GradDiff", "NPO", "RMU"}


@unlearners
def test_same_seed_same_model_and_nothing_else_changes(
    cls: type[ReplyUnlearner], model: nn.Module, parts: tuple[Replies, Replies]
) -> None:
    before, ids = {k: v.clone() for k, v in model.state_dict().items()}, parts[1].ids.clone()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = make(cls, steps=1).forget(model, *parts, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert same_state(first, make(cls, steps=1).forget(model, *parts, seed=1))
    assert not same_state(first, make(cls, steps=1).forget(model, *parts, seed=2))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(parts[1].ids, ids)
    assert not any(m.training or m._forward_hooks for m in (*model.modules(), *first.modules()))
    assert all(p.requires_grad and p.grad is None for net in (model, first) for p in net.parameters())


@unlearners
def test_forgets_more_than_it_loses(
    cls: type[ReplyUnlearner], model: nn.Module, parts: tuple[Replies, Replies]
) -> None:
    known = [probability(model, p)["agg_value"] for p in parts]
    after = make(cls, steps=8).forget(model, *parts, seed=0)
    left = [probability(after, p)["agg_value"] for p in parts]
    assert min(known) > 0.7
    assert left[0] < known[0] - 0.2
    if cls is not room.GradAscent:
        assert left[0] / known[0] < left[1] / known[1]


@unlearners
def test_bad_input(cls: type[ReplyUnlearner], model: nn.Module, parts: tuple[Replies, Replies]) -> None:
    method = make(cls)
    if method.retains:
        with pytest.raises(InputError, match="no replies to retain"):
            method.forget(model, parts[0], seed=0)
    with pytest.raises(InputError, match="input embeddings"):
        method.forget(nn.Linear(2, 2), *parts, seed=0)
    with pytest.raises(InputError, match="lr"):
        make(cls, lr=-1.0).forget(model, *parts, seed=0)
