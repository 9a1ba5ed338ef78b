"""Training in several processes that share each batch: the same weights as in one process, up to rounding.

Every process runs ``training.fit`` with the same seed, hence on the same batches, and its objective sees the rows that
the process owns. Lightning Fabric starts the processes and torch.distributed sums their gradients (gloo on CPUs, NCCL
on CUDA). The sum is made inside the objective and not by torch's DistributedDataParallel wrapper: that one counts on
one forward pass for one backward pass, and an objective may attack the model, or call it several times, for one.

A sample belongs to one process for the whole run, by its position in the data set, so that what an objective keeps of a
sample (``State.ema``) stays where the sample is. The objective has to be a mean over samples. What it draws from
torch's global generator (dropout) is drawn by each process for its own rows, so that such a run is as good, not equal.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import AssayError, InputError
from assay.runtime.inference import device_of
from assay.training.engine import State, fit
from assay.training.trainer import Trainer

Sum = Callable[[Tensor], Tensor]


def fit_distributed(trainer: Trainer, model: nn.Module, data: Data, *, seed: int, processes: int = 2) -> nn.Module:
    """A copy of ``model`` trained by ``processes`` processes of this machine; the input model is untouched.

    On CUDA each process takes a device. Raises InputError for a trainer that does more than state an objective, for a
    model with batch normalisation (each process would see the statistics of its own rows), or where the package
    lightning-fabric is missing; AssayError where a process is lost.
    """
    where = f"{type(trainer).__name__} in {processes} processes"
    check_inputs(where, data.x, data.y, data.bounds)
    _check(trainer, model, processes, where)
    if processes == 1:
        return trainer.fit(model, data, seed=seed)
    try:
        import lightning_fabric as fabric
    except ImportError as error:
        raise InputError(f"{where}: lightning-fabric is not installed; expected pip install 'assay[fabric]'") from error
    device = device_of(model).type
    launcher = fabric.Fabric(
        accelerator="cuda" if device == "cuda" else "cpu", devices=processes, num_nodes=1, strategy="ddp_spawn"
    )
    start = copy.deepcopy(model).cpu()
    try:
        found = launcher.launch(partial(_joined, trainer, start, data, seed))
    except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise AssayError(f"{where}: a process failed ({lines[-1].strip()})") from error
    if isinstance(found, str):
        raise InputError(found)
    trained = copy.deepcopy(model)
    trained.load_state_dict(load(found))
    return trained.eval()


def _check(trainer: Trainer, model: nn.Module, processes: int, where: str) -> None:
    if processes < 1:
        raise InputError(f"{where}; expected at least one process")
    if not isinstance(trainer, Trainer) or type(trainer).fit is not Trainer.fit:
        raise InputError(f"{where}: it trains in its own way; expected a trainer that states an objective only")
    norm = next((n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None)
    if norm is not None and processes > 1:
        raise InputError(
            f"{where}: {norm!r} normalises over the batch, of which each process has a part; expected a model without "
            "batch normalisation, or one process"
        )


def _joined(trainer: Trainer, model: nn.Module, data: Data, seed: int, fabric: Any) -> bytes | str:
    """``_train``, and then the processes part: gloo's threads abort a process that ends while they run."""
    try:
        return _train(trainer, model, data, seed, fabric)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _train(trainer: Trainer, model: nn.Module, data: Data, seed: int, fabric: Any) -> bytes | str:
    """What one process does: the trained state as safetensors, or the one line that says why there is none."""

    def total(value: Tensor) -> Tensor:
        summed: Tensor = fabric.all_reduce(value, reduce_op="sum")
        return summed

    shared = SharedObjective(trainer, total, fabric.global_rank, fabric.world_size)
    try:
        trained = fit(model.to(fabric.device), data, shared, trainer.plan(), seed=seed)
    except AssayError as error:
        return str(error)
    state = save({name: value.cpu().contiguous().clone() for name, value in trained.state_dict().items()})
    digest = hashlib.sha256(state).hexdigest()
    if fabric.broadcast(digest, src=0) != digest:
        raise AssayError(f"process {fabric.global_rank} ended with other weights than process 0")
    return state


@dataclass(frozen=True)
class SharedObjective:
    """The trainer's objective on the rows of process ``rank`` out of ``world``; its value and gradient are those of the
    whole batch. ``total`` sums a tensor over the processes."""

    trainer: Trainer
    total: Sum
    rank: int
    world: int

    def __call__(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        parameters = [p for p in model.parameters() if p.requires_grad]
        mine = (state.rows(batch.index) % self.world == self.rank).nonzero()[:, 0]
        value, grads = batch.x.new_zeros(()), list[Tensor | None]([None] * len(parameters))
        if len(mine):
            fields = {k: v[mine] for k, v in batch.fields.items()}
            own = Batch(batch.x[mine], batch.y[mine], batch.index[mine], fields)
            loss = self.trainer.objective(model, own, state) * (len(mine) / len(batch.x))
            grads = list(torch.autograd.grad(loss, parameters, allow_unused=True))
            value = loss.detach()
        used = [value.new_tensor(float(g is not None)) for g in grads]
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
        joined = self.total(torch.cat([value.view(1), torch.stack(used), *(g.flatten() for g in flat)]))
        loss_sum, counts, summed = joined.split([1, len(used), joined.numel() - 1 - len(used)])
        parts = summed.split([p.numel() for p in parameters])
        if not torch.isfinite(loss_sum):
            return loss_sum[0]
        return loss_sum[0] + sum(
            ((p - p.detach()) * g.view_as(p)).sum()  # zero, with the summed gradient as its slope
            for p, g, k in zip(parameters, parts, counts, strict=True)
            if k > 0
        )
