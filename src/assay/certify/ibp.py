"""Certified robustness by interval bound propagation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.certify.base import Certificate, Certifier, Region
from assay.certify.bounds.checked import checked_graph, run_of
from assay.certify.bounds.graph import Graph
from assay.certify.bounds.module import Method, lower_of, margins
from assay.certify.bounds.perturbation import LpBall
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, device_of, evaluating, predict

Specification = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class IBP(Certifier):
    """Whether every margin z_pred - z_j stays positive over the linf ball of radius ``eps`` cut to ``bounds``.

    Gowal et al., 2018, arXiv:1810.12715, section 3. The linear operators after the last activation are merged with the
    margins ("elision of the last layer", eq. 7 there), which is tighter than comparing the bounds of two logits.
    Deterministic: confidence 1. ``eps`` > 0 is in the data's units; ``bounds`` None leaves the ball whole. Raises
    InputError on an operator without a rule (see Intervals).
    """

    methods: ClassVar[tuple[Method, ...]] = ("IBP",)

    eps: float = 8 / 255
    bounds: tuple[float, float] | None = (0.0, 1.0)
    batch_size: int = BATCH

    def __post_init__(self) -> None:
        if not 0 < self.eps < float("inf"):
            raise InputError(f"{type(self).__name__}: eps is {self.eps}; expected a finite number above 0")
        if self.batch_size < 1:
            raise InputError(f"{type(self).__name__}: batch_size is {self.batch_size}; expected at least 1")

    @property
    def region(self) -> Region:
        """The ball."""
        return Region("linf", self.eps, self.bounds)

    def certify(
        self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], *, seed: int = 0
    ) -> Certificate:
        check_inputs(type(self).__name__, x, y, self.bounds)
        logits = predict(model, x, batch_size=self.batch_size)
        self._check(y, logits)
        prediction = logits.argmax(1)
        robust = torch.zeros(len(x), dtype=torch.bool)
        for method in self.methods:
            left = (~robust).nonzero()[:, 0]
            if len(left):
                robust[left] = self._margins(model, x[left], prediction[left], method) > 0
        radius = self.eps * robust.double()  # float32 might round it up
        return Certificate(robust & (prediction == y), prediction, radius)

    def margins(self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Lower bounds (n,) of min over j != y of z_y - z_j, float64: the best of the methods."""
        check_inputs(type(self).__name__, x, y, self.bounds)
        self._check(y, predict(model, x[:1]))
        return torch.stack([self._margins(model, x, y, method) for method in self.methods]).amax(0)

    def _check(self, y: Tensor, logits: Tensor) -> None:
        """Raise InputError unless there are two classes at least, and y names some of them."""
        where = type(self).__name__
        if logits.dim() != 2 or logits.shape[1] < 2:
            shape = tuple(logits.shape)
            raise InputError(f"{where}: the model gives shape {shape}; expected logits (n, c) of two classes or more")
        check_labels(where, y, len(y), logits.shape[1])

    def _margins(self, model: nn.Module, x: Tensor, y: Tensor, method: Method) -> Float[Tensor, " n"]:
        parts = []
        with evaluating(model), torch.no_grad():
            graph, device = checked_graph(model, x), device_of(model)
            for chunk, label in zip(x.split(self.batch_size), y.split(self.batch_size), strict=True):

                def rows(out: Tensor, label: Tensor = label.to(device)) -> Tensor:
                    return margins(label, out.shape[1], out)

                parts.append(self.lower(graph, model, chunk, rows, method).amin(1).cpu())
        return torch.cat(parts)

    def lower(self, graph: Graph, model: nn.Module, x: Tensor, C: Specification, method: Method) -> Tensor:
        """Lower bounds (n, s) on the rows that C gives for outputs like its argument."""
        run = run_of(graph, model, x, LpBall.of(self.region), method)
        return lower_of(run, C(run.values[run.graph.output].lower), method)
