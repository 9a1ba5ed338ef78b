"""Handing over to complete verifiers: the samples that bounds left undecided, as ONNX and VNN-LIB files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.certify.base import Certifier, Region
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating


@dataclass(frozen=True)
class HandOver:
    """What was written for a complete verifier.

    certified (n,) bool: settled by the certifier; wrong (n,) bool: misread as they are, or broken by a known attack;
    undecided (m,) int64: the rest, of which ``queries`` holds one VNN-LIB file each; ``model`` is the ONNX file and
    ``instances`` the list of (model, query, timeout) that VNN-COMP's tools read.
    """

    certified: Bool[Tensor, " n"]
    wrong: Bool[Tensor, " n"]
    undecided: Int[Tensor, " m"]
    queries: tuple[Path, ...]
    model: Path
    instances: Path


def vnnlib_query(lower: Float[Tensor, ...], upper: Float[Tensor, ...], y: int, classes: int) -> str:
    """The query "is there an input in the box that is not read as ``y``?" in VNN-LIB (Demarchi et al., 2023).

    ``lower`` <= ``upper``: one sample's box, flattened in row order into X_0, X_1, ...; the logits are Y_0 to
    Y_{classes - 1}. A solver that answers "unsat" proves that y keeps the largest logit on the whole box.
    """
    if lower.shape != upper.shape or not (lower <= upper).all():
        raise InputError(
            f"vnnlib: ends of shapes {tuple(lower.shape)} and {tuple(upper.shape)}; expected one shape, lower <= upper"
        )
    if classes < 2 or not 0 <= y < classes:
        raise InputError(f"vnnlib: label {y} of {classes} classes; expected 0 to classes - 1, and two classes at least")
    ends = list(zip(lower.flatten().tolist(), upper.flatten().tolist(), strict=True))
    lines = [f"(declare-const X_{i} Real)" for i in range(len(ends))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i, (low, high) in enumerate(ends):
        lines += [f"(assert (>= X_{i} {_real(low)}))", f"(assert (<= X_{i} {_real(high)}))"]
    others = " ".join(f"(and (>= Y_{j} Y_{y}))" for j in range(classes) if j != y)
    return "\n".join([*lines, f"(assert (or {others}))", ""])


def _real(value: float) -> str:
    """A decimal without an exponent, which not every reader takes."""
    return f"{value:.20f}".rstrip("0") + "0"


def export_onnx(model: nn.Module, example: Float[Tensor, "n ..."], path: str | Path) -> Path:
    """Write ``model`` in evaluation mode for one sample shaped as those of ``example``: input "x", output "logits".

    Needs the extra ``assay[onnx]``; InputError without it, or where an operator has no counterpart in ONNX.
    """
    path = Path(path)
    try:
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise InputError("export_onnx: onnxscript is not installed; expected pip install 'assay[onnx]'") from error
    with evaluating(model), torch.no_grad():
        try:
            torch.onnx.export(
                model, (example[:1],), str(path), input_names=["x"], output_names=["logits"], dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            detail = " ".join(str(error).split())[:160]
            raise InputError(f"export_onnx: {type(model).__name__} cannot be exported ({detail})") from error
    return path


def hand_over(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    region: Region,
    certifier: Certifier,
    folder: str | Path,
    *,
    broken: Bool[Tensor, " n"] | None = None,
    timeout: int = 300,
) -> HandOver:
    """Certify, and write a query for each sample that is read as y, not certified, and not known to be ``broken``.

    ``region`` is a linf ball, and the one that ``certifier`` decides (its ``region``, as IBP and CROWN have one).
    Files: model.onnx, <index>.vnnlib and instances.csv with ``timeout`` seconds a query.
    """
    check_inputs("hand_over", x, y, region.bounds)
    if region.norm != "linf":
        raise InputError(f"hand_over: a region in {region.norm}; expected linf, which is a box")
    own = getattr(certifier, "region", None)
    if own != region:
        raise InputError(f"hand_over: {type(certifier).__name__} decides {own}; expected {region}, as is asked")
    if broken is not None and (broken.shape != (len(x),) or broken.dtype != torch.bool):
        raise InputError(
            f"hand_over: broken is {broken.dtype} of shape {tuple(broken.shape)}; expected bool ({len(x)},)"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = certifier.certify(model, x, y)
    wrong = found.prediction != y if broken is None else (found.prediction != y) | broken
    undecided = (~found.verdict & ~wrong).nonzero()[:, 0]
    with evaluating(model), torch.no_grad():
        classes = model(x[:1]).shape[1]
    check_labels("hand_over", y, len(x), classes)
    path, (lower, upper) = export_onnx(model, x, folder / "model.onnx"), region.box(x)
    queries = []
    for i in undecided.tolist():
        queries.append(folder / f"{i}.vnnlib")
        queries[-1].write_text(vnnlib_query(lower[i], upper[i], int(y[i]), classes), encoding="ascii")
    instances = folder / "instances.csv"
    with instances.open("w", newline="", encoding="ascii") as file:
        csv.writer(file).writerows([path.name, q.name, timeout] for q in queries)
    return HandOver(found.verdict, wrong, undecided, tuple(queries), path, instances)
