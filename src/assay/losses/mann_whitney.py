"""The Mann-Whitney loss: every positive of a batch above every negative, across queries."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from assay.losses.contrastive import check_temperature
from assay.losses.multiple_negatives import Positives, sides
from assay.runtime.errors import InputError, unknown


class MannWhitneyLoss(nn.Module):
    """log(1 + exp(-(s_p - s_n) / tau)) over positive scores p and negative scores n (Sheikholeslami et al., 2025,
    arXiv:2510.00137).

    Queries are not told apart: "global" ``pairs`` compare each positive with the negatives of all rows, so that scores
    become comparable between queries. "mean" divides by the number of pairs: 1 - AUC of the batch is at most this
    over log 2, for every tau. "paper" is the paper's mean over positives of the sum over negatives. "within_query"
    compares a positive with its own row only (RankNet within a query, a baseline, blind to offsets of a query).
    ``sample`` compares each positive with that many random negatives of the batch, drawn by ``generator``, torch's
    own unless given (not from the paper, for large batches; "global" only); ``chunk`` handles so many positives at a
    time and computes each chunk's terms anew in the backward pass: the same value in less memory.

    ``scores`` (b, m), finite; ``target`` (b,) int64 names each row's positive column, or is a mask (b, m) of positives;
    ``ignore`` (b, m) marks entries that are neither, whatever ``target`` says of them. Returns a scalar > 0, summed in
    float32 at least. Raises InputError for other options and shapes, and where no positive or no negative is left.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    batchwise: ClassVar[bool] = True

    def __init__(
        self,
        temperature: float = 1.0,
        reduction: Literal["mean", "paper"] = "mean",
        pairs: Literal["global", "within_query"] = "global",
        chunk: int | None = None,
        sample: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature("MannWhitneyLoss", temperature)
        if reduction not in ("mean", "paper"):
            raise unknown("reduction of MannWhitneyLoss", str(reduction), ("mean", "paper"))
        if pairs not in ("global", "within_query"):
            raise unknown("pairs of MannWhitneyLoss", str(pairs), ("global", "within_query"))
        if any(v is not None and v < 1 for v in (chunk, sample)) or (sample is not None and pairs != "global"):
            given = f"chunk={chunk}, sample={sample}, pairs={pairs!r}"
            raise InputError(f"MannWhitneyLoss: {given}; expected numbers >= 1 or None, sample with global pairs only")
        self.reduction, self.pairs, self.chunk, self.sample, self.generator = reduction, pairs, chunk, sample, generator

    def forward(
        self, scores: Float[Tensor, "b m"], target: Positives, ignore: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, ""]:
        """The loss of ``scores`` whose positives ``target`` names."""
        positive, negative = sides("MannWhitneyLoss", scores, target, ignore)
        scaled = scores.to(torch.promote_types(scores.dtype, torch.float32)) / self.temperature
        ours = scaled[positive]
        if self.pairs == "within_query":
            row = positive.nonzero()[:, 0]
            count = negative[row].sum()
            if int(count) == 0:
                raise InputError("MannWhitneyLoss: no query has a positive and a negative; expected at least one")
            total = torch.where(negative[row], F.softplus(scaled[row] - ours[:, None]), 0.0).sum()
            return total / (len(ours) if self.reduction == "paper" else count)
        theirs = scaled[negative]
        if self.sample is not None:
            chosen = torch.randint(len(theirs), (len(ours), self.sample), generator=self.generator)
            mean = F.softplus(theirs[chosen.to(theirs.device)] - ours[:, None]).mean()
        else:
            parts = ours.split(self.chunk or len(ours))
            sums = [_above(part, theirs) if self.chunk is None else _again(part, theirs) for part in parts]
            mean = torch.stack(sums).sum() / (len(ours) * len(theirs))
        return mean if self.reduction == "mean" else mean * len(theirs)

    def from_embeddings(self, queries: Float[Tensor, "b d"], documents: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
        """The loss of inner products; document i belongs to query i, those from the b-th on are hard negatives."""
        if queries.dim() != 2 or documents.dim() != 2 or queries.shape[1] != documents.shape[1]:
            shapes = f"{tuple(queries.shape)} and {tuple(documents.shape)}"
            raise InputError(f"MannWhitneyLoss: embeddings {shapes}; expected (b, d) and (m, d)")
        loss: Tensor = self(queries @ documents.T, torch.arange(len(queries), device=queries.device))
        return loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}, pairs={self.pairs!r}"


def _above(ours: Float[Tensor, " p"], theirs: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The sum over all pairs of the two."""
    return F.softplus(theirs - ours[:, None]).sum()


def _again(ours: Float[Tensor, " p"], theirs: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """As ``_above``, its terms computed anew in the backward pass."""
    total: Tensor = checkpoint(_above, ours, theirs, use_reentrant=False)
    return total
