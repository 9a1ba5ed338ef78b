"""Federated averaging."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data, dirichlet_split
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.executor import Work, run_shared, session
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import derive, torch_rng
from assay.training import Plan, State, Trainer, fit

Weights = Mapping[str, Tensor]
OPTIONS = {
    "loss": ("ce", "absolute"),
    "weighting": ("uniform", "size"),
    "buffers": ("average", "local"),
    "server": ("sgd", "momentum", "adam"),
}


@dataclass(frozen=True)
class Round:
    """The global model after a round, on the data of all clients, each client weighted as in the aggregation.

    ``robust_loss`` and ``robust_acc`` are those under the inner attack, made anew against the global model (without one
    they are the clean ones). ``drift`` is the root mean square distance of the clients' weights from their mean.
    """

    robust_loss: float
    clean_acc: float
    robust_acc: float
    drift: float


@dataclass(frozen=True, eq=False)
class Federation:
    """What a run gives: ``model_``, the global model; ``history_``, one entry a round (none where not tracked)."""

    model_: nn.Module
    history_: tuple[Round, ...]


def fedavg(states: Sequence[Weights], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of the floating-point tensors of state dicts, in float64; ``weights``, one each, sum to 1.

    Integers (counters of batches) have no mean and are left out. InputError unless names and shapes agree, for no state
    and for other weights.
    """
    if not states or len(weights) != len(states) or not abs(math.fsum(weights) - 1) <= 1e-6:
        found = f"{len(states)} state dicts, {len(weights)} weights with the sum {math.fsum(weights):.6g}"
        raise InputError(f"fedavg: {found}; expected one or more, and weights for each that sum to 1")
    first = {k: v.shape for k, v in states[0].items()}
    for state in states[1:]:
        if {k: v.shape for k, v in state.items()} != first:
            raise InputError("fedavg: state dicts differ in names or shapes; expected those of one architecture")
    floating = [k for k, v in states[0].items() if v.is_floating_point()]
    shares = torch.tensor(weights, dtype=torch.float64)
    return {k: torch.tensordot(shares, torch.stack([s[k].double() for s in states]), dims=1) for k in floating}


@dataclass(frozen=True, kw_only=True)
class FedAvg(Trainer):
    """Clients train on their own data, a server averages what they learned (McMahan et al., 2017, arXiv:1602.05629).

    In each round every client starts from the global weights U and takes ``local_steps`` steps, with a fresh optimiser,
    which gives W_c; then U moves by ``global_lr`` x mean_c (W_c - U). With ``global_lr`` 1 that is algorithm 1 of the
    paper. The plan's steps (or its epochs, on the data of all) are the steps that a client takes over all rounds, its
    schedule runs over the rounds; ``rounds`` overrides both. ``fit`` shares the data among ``clients`` by their labels,
    with Dirichlet concentration ``alpha``; ``run`` takes the clients' data as they are.

    ``participation``: the share of the clients, drawn anew, that a round involves. ``weighting``: clients count alike
    or by their number of samples. ``buffers``: running statistics are averaged each round, or stay with each client
    and are averaged at the end; integer buffers stay as they are. ``server``: the mean difference is applied as it is,
    with momentum 0.9, or by Adam (Reddi et al., 2021, arXiv:2003.00295, algorithm 2: betas 0.9 and 0.99, tau 1e-3).
    ``loss``: cross-entropy, or |f(x) - t| of networks with one output, t = -1 and 1 for labels 0 and 1.
    ``on`` and ``jobs``: where the clients of a round run, as in run_shared; the result is the same.
    """

    contract: ClassVar[bool] = False

    schedule: Literal["constant", "cosine", "onecycle", "linear", "multistep"] = "constant"
    clients: int = 4
    alpha: float = 0.5
    rounds: int | None = None
    local_steps: int = 5
    global_lr: float = 1.0
    participation: float = 1.0
    weighting: Literal["uniform", "size"] = "uniform"
    buffers: Literal["average", "local"] = "average"
    server: Literal["sgd", "momentum", "adam"] = "sgd"
    loss: Literal["ce", "absolute"] = "ce"
    on: str = "local"
    jobs: int = 1

    def __post_init__(self) -> None:
        for name, choices in OPTIONS.items():
            if getattr(self, name) not in choices:
                raise unknown(f"{name} of {type(self).__name__}", str(getattr(self, name)), choices)
        if self.clients < 1 or self.local_steps < 1 or (self.rounds is not None and self.rounds < 0):
            found = f"clients={self.clients}, local_steps={self.local_steps}, rounds={self.rounds}"
            raise InputError(f"{type(self).__name__}: {found}; expected clients, local_steps >= 1, rounds >= 0")
        if not self.global_lr > 0 or not 0 < self.participation <= 1:
            found = f"global_lr={self.global_lr}, participation={self.participation}"
            raise InputError(f"{type(self).__name__}: {found}; expected a rate above 0 and a share in (0, 1]")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor, data: Data, seed: int) -> Tensor:
        """The inputs that a client trains on; here the samples themselves."""
        return x

    def losses(self, outputs: Tensor, y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each sample."""
        if self.loss == "absolute":
            if outputs.shape != y.shape:
                where = f"{type(self).__name__}: loss 'absolute' of outputs {tuple(outputs.shape)}"
                raise InputError(f"{where}; expected ({len(y)},), one number a sample")
            return (outputs - (2 * y - 1)).abs()
        return F.cross_entropy(outputs, y, reduction="none")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        x = self.craft(model, batch.x, batch.y, batch.index, state.data, derive(state.seed, state.step))
        return self.losses(model(x), batch.y).mean()

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        """A trained copy of ``model``, from the data of ``clients`` clients."""
        self.plan()
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)
        parts = dirichlet_split(data.y, self.clients, self.alpha, seed=seed)
        return self.run(model, [data[rows] for rows in parts], seed=seed, track=False, **options).model_

    def run(
        self,
        model: nn.Module,
        clients: Sequence[Data],
        *,
        seed: int,
        track: bool = True,
        until: float | None = None,
        **options: Any,
    ) -> Federation:
        """Train on the clients' data; their order does not matter. ``track`` measures the global model each round.

        With ``until`` the run ends at the first round whose robust loss is at most that. ``options`` go to
        training.fit. The input model is untouched.
        """
        if not clients or (until is not None and not track):
            raise InputError(f"{type(self).__name__}: {len(clients)} clients, track={track}; expected clients, tracked")
        for client in clients:
            check_inputs(type(self).__name__, client.x, client.y, client.bounds)
        clients = sorted(clients, key=lambda c: c.hash)
        server, history, plan = _Server(self, model), list[Round](), self.plan()
        total = plan.total(sum(map(len, clients)))
        rounds = -(-total // self.local_steps) if self.rounds is None else self.rounds
        with session(self.on, self.jobs):
            for t in range(rounds):
                local = replace(plan, steps=self.local_steps, schedule="constant", lr=plan.lr * plan.factor(t, rounds))
                drift = server.round(clients, local, derive(seed, "round", t), options)
                if track:
                    history.append(Round(*self.measure(server.model, clients, seed=derive(seed, "measure", t)), drift))
                    if until is not None and history[-1].robust_loss <= until:
                        break
        return Federation(server.result(), tuple(history))

    def local(self, model: nn.Module, client: Data, plan: Plan, *, seed: int, **options: Any) -> nn.Module:
        """What one client makes of the global model in one round."""
        return fit(model, client, self.objective, plan, seed=seed, **options)

    def shares(self, clients: Sequence[Data]) -> list[float]:
        """The weight of each client, summing to 1."""
        sizes = [len(c) if self.weighting == "size" else 1 for c in clients]
        return [s / sum(sizes) for s in sizes]

    def measure(self, model: nn.Module, clients: Sequence[Data], *, seed: int) -> tuple[float, float, float]:
        """Robust loss, clean accuracy and robust accuracy of a model on the clients' data, as in Round."""
        rows = []
        with evaluating(model):
            for c in clients:
                x, y = c.x.to(device_of(model)), c.y.to(device_of(model))
                worst = self.craft(model, x, y, c.index, c, seed)
                with torch.no_grad():
                    clean, robust = model(x), model(worst)
                hits = [(self.predicted(o) == y).double().mean() for o in (clean, robust)]
                rows.append(torch.stack([self.losses(robust, y).double().mean(), *hits]))
        mean = torch.tensor(self.shares(clients), dtype=torch.float64) @ torch.stack(rows).cpu()
        return float(mean[0]), float(mean[1]), float(mean[2])

    def predicted(self, outputs: Tensor) -> Int[Tensor, " n"]:
        """The labels that outputs stand for."""
        return (outputs > 0).long() if self.loss == "absolute" else outputs.argmax(1)

    def plain(self) -> FedAvg:
        """The same federation without the method's ingredient."""
        return FedAvg(**{name: getattr(self, name) for name in FEDERATED})


FEDERATED = tuple(f.name for f in fields(FedAvg))


def _train(method: FedAvg, model: nn.Module, client: Data, plan: Plan, seed: int, options: Weights) -> Weights:
    return {k: v.cpu() for k, v in method.local(model, client, plan, seed=seed, **options).state_dict().items()}


class _Server:
    """The global model, the server's optimiser, and the buffers that stay with clients."""

    def __init__(self, method: FedAvg, model: nn.Module) -> None:
        self.method, self.model = method, copy.deepcopy(model).eval()
        self.own: dict[str, Weights] = {}
        # Every name of every parameter: one that is shared has several in a state dict, of which one is a master's.
        self.trained = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        # float64: the mean of float32 weights, and with one client the sum U + (W - U), lose nothing.
        self.master = [p.detach().cpu().double() for p in self.model.parameters()]
        if method.server == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
                self.master, method.global_lr, betas=(0.9, 0.99), eps=1e-3
            )
        else:
            momentum = 0.9 if method.server == "momentum" else 0.0
            self.optimizer = torch.optim.SGD(self.master, method.global_lr, momentum)

    def round(self, clients: Sequence[Data], plan: Plan, seed: int, options: Any) -> float:
        """One round; the drift of its clients."""
        method = self.method
        m = max(round(method.participation * len(clients)), 1)
        drawn = torch.randperm(len(clients), generator=torch_rng(seed, "participation"))[:m].sort().values
        chosen = [clients[i] for i in drawn.tolist()]
        works = [Work(partial(_train, method, self._for(c), c, plan, derive(seed, c.hash), options)) for c in chosen]
        results = dict(run_shared(works, {}, on=method.on, jobs=method.jobs))
        states, shares = [results[i] for i in range(m)], method.shares(chosen)
        mean = fedavg(states, shares)
        names = [name for name, _ in self.model.named_parameters()]
        spread = [sum(float((s[k].double() - mean[k]).square().sum()) for k in names) for s in states]
        if method.buffers == "local":
            buffers = [name for name in mean if name not in self.trained]
            self.own |= {c.hash: {k: s[k] for k in buffers} for c, s in zip(chosen, states, strict=True)}
            mean = {k: v for k, v in mean.items() if k not in buffers}
        self._apply(mean, names)
        return float(torch.tensor(spread, dtype=torch.float64) @ torch.tensor(shares, dtype=torch.float64)) ** 0.5

    def result(self) -> nn.Module:
        """The global model, with the mean of the buffers that stayed with clients."""
        if self.own:
            own = list(self.own.values())
            self.model.load_state_dict(fedavg(own, [1 / len(own)] * len(own)), strict=False)
        return self.model

    def _for(self, client: Data) -> nn.Module:
        if client.hash not in self.own:
            return self.model
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.own[client.hash], strict=False)
        return model

    @torch.no_grad()
    def _apply(self, mean: Weights, names: Sequence[str]) -> None:
        """The server's step along the mean difference; averaged buffers replace the old ones."""
        for master, (name, parameter) in zip(self.master, self.model.named_parameters(), strict=True):
            master.copy_(parameter)
            master.grad = master - mean[name]
        self.optimizer.step()
        moved = {k: v for k, v in mean.items() if k not in self.trained}
        moved |= dict(zip(names, self.master, strict=True))
        self.model.load_state_dict(moved, strict=False)
