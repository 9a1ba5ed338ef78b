"""A linear regressor on the unit embedding of an encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.represent.simsiam import first_features
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict
from assay.runtime.random import Draws, seeded
from assay.training import Plan, State, fit

PENALTIES = tuple(10.0**k for k in range(-5, 3))


class UnitRegressor(nn.Module):
    """centre + scale x a linear map of encoder(x) / |encoder(x)|, (n, 1)."""

    centre: Tensor
    scale: Tensor

    def __init__(self, encoder: nn.Module, width: int, centre: float, scale: float) -> None:
        super().__init__()
        self.encoder, self.linear = encoder, nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("centre", torch.tensor(centre))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n 1"]:
        return self.centre + self.scale * self.linear(F.normalize(self.encoder(x), dim=1))


def targets(data: Data) -> Float[Tensor, " n"]:
    """The field "target" of the data where they have one, else their labels, as floats. InputError for targets that are
    not one finite number a sample."""
    found = data.fields.get("target", data.y).float()
    if found.shape != (len(data),) or not torch.isfinite(found).all():
        raise InputError(f"embedding_regressor: targets {tuple(found.shape)}; expected finite numbers ({len(data)},)")
    return found


def embedding_regressor(
    encoder: nn.Module,
    data: Data,
    kind: Literal["ridge", "l1"] = "ridge",
    *,
    tune: bool = False,
    plan: Plan | None = None,
    augment: Callable[[Tensor, Draws], Tensor] | None = None,
    seed: int = 0,
) -> UnitRegressor:
    """A regressor of ``data``'s targets on a copy of ``encoder``.

    "ridge" fits the linear map alone in closed form, its penalty chosen by leave-one-out error; nothing is random.
    "l1" minimises the mean absolute error under ``plan`` (by default 100 epochs), of the linear map alone, the encoder
    in evaluation mode, or with ``tune`` of the encoder too; from an untrained one that is plain supervised regression.
    ``augment`` changes the images of "l1". Parameters of the encoder require a gradient as before. Targets as
    ``targets``. Raises InputError for another kind, ``tune`` with "ridge" and fewer than two samples.
    """
    check_inputs("embedding_regressor", data.x, data.y, data.bounds)
    if kind not in ("ridge", "l1"):
        raise unknown("kind of embedding_regressor", str(kind), ("ridge", "l1"))
    if kind == "ridge" and tune:
        raise InputError("embedding_regressor: tune with 'ridge'; expected 'l1', which trains by gradients")
    y = targets(data)
    if len(y) < 2:
        raise InputError(f"embedding_regressor: {len(y)} sample; expected at least two")
    features = first_features("embedding_regressor", encoder, data.x)
    embedded = F.normalize(predict(encoder, data.x), dim=1)
    spread = float(y.std())
    with seeded(seed, "regressor"):
        model = UnitRegressor(copy.deepcopy(encoder), embedded.shape[1], float(y.mean()), spread or 1.0)
    model.linear.to(features.dtype)
    if kind == "ridge":
        fitted = RidgeCV(PENALTIES).fit(embedded.double().numpy(), ((y - model.centre) / model.scale).double().numpy())
        with torch.no_grad():
            model.linear.weight.copy_(torch.from_numpy(fitted.coef_)[None])
            model.linear.bias.fill_(float(fitted.intercept_))
        return model.eval()
    if not tune:
        model.encoder.requires_grad_(False)

    def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
        net.get_submodule("encoder").train(tune)
        wanted = batch.fields.get("target", batch.y).float()
        return (net(batch.x)[:, 0] - wanted).abs().mean()

    trained = fit(model, data, objective, plan or Plan(epochs=100, lr=1e-3), seed=seed, augment=augment)
    if not isinstance(trained, UnitRegressor):
        raise TypeError(f"training gave {type(trained).__name__}")
    for new, given in zip(trained.encoder.parameters(), encoder.parameters(), strict=True):
        new.requires_grad_(given.requires_grad)
    return trained
