"""Fine-tuning data out of a language model: continue known prefixes, and rank what comes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.privacy.llm_mia import FLoRaMIA, LossMIA, TextInference
from assay.privacy.llm_mia.base import vocabulary
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import Draws
from assay.runtime.statistics import point

RANKERS = ("flora", "loss")


@torch.no_grad()
def sampled(model: nn.Module, prefixes: Int[Tensor, "n p"], length: int, draws: Draws) -> Int[Tensor, "n m"]:
    """``length`` tokens after each prefix, drawn at temperature 1 by one uniform number each."""
    out = model(input_ids=prefixes, use_cache=True)
    tokens: list[Tensor] = []
    for _ in range(length):
        mass = out.logits[:, -1].double().softmax(1).cumsum(1)
        u = draws.uniform(1).double().to(mass.device) * mass[:, -1:]
        tokens.append(torch.searchsorted(mass, u).clamp_max(mass.shape[1] - 1))
        if len(tokens) < length:
            out = model(input_ids=tokens[-1], past_key_values=out.past_key_values, use_cache=True)
    return torch.cat(tokens, 1)


@dataclass(frozen=True)
class FineTuneExtractor:
    """Guess how training texts go on: ``n`` suffixes for each known prefix from the fine-tuned model, the best by its
    loss ratio (Wang et al., 2024, arXiv:2402.17012, fine-tuned data extraction).

    ``prefix_len`` tokens are known, ``suffix_len`` are drawn at temperature 1 without a penalty; ``ranker`` "flora"
    takes the candidate whose whole text has the least L(x; ft_model) / L(x; base_model), "loss" that of the least
    L(x; ft_model). Models: causal ones of transformers with one vocabulary; they stay as they are. InputError for other
    options.
    """

    kind: ClassVar[str] = "function"

    ft_model: nn.Module
    base_model: nn.Module
    _: KW_ONLY
    prefix_len: int = 50
    suffix_len: int = 50
    n: int = 20
    ranker: Literal["flora", "loss"] = "flora"
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.ranker not in RANKERS:
            raise unknown("ranker of FineTuneExtractor", self.ranker, RANKERS)
        if min(self.prefix_len, self.suffix_len, self.n, self.batch_size) < 1:
            given = f"prefix_len={self.prefix_len}, suffix_len={self.suffix_len}, n={self.n}"
            raise InputError(f"FineTuneExtractor: {given}; expected at least 1 of each")

    def scorer(self) -> TextInference:
        """What ranks the candidates."""
        if self.ranker == "loss":
            return LossMIA(self.ft_model, batch_size=self.batch_size)
        return FLoRaMIA(self.ft_model, self.base_model, batch_size=self.batch_size)

    def extract(self, prefixes: Int[Tensor, "b p"], *, seed: int) -> dict[str, Tensor]:
        """ "candidates" (b, n, m) int64, their "scores" (b, n), and of each prefix the "best" (b, m).

        What is drawn after a prefix follows from its row and the seed. InputError for prefixes of another length, and
        where prefix and suffix are longer than the model reads.
        """
        longest = getattr(getattr(self.ft_model, "config", None), "max_position_embeddings", None)
        if longest is not None and self.prefix_len + self.suffix_len > longest:
            total = self.prefix_len + self.suffix_len
            raise InputError(f"FineTuneExtractor: {total} tokens; the model reads {longest}; expected no more")
        if (
            prefixes.dtype != torch.int64
            or prefixes.dim() != 2
            or prefixes.shape[1] != self.prefix_len
            or not len(prefixes)
        ):
            given = f"{prefixes.dtype} {tuple(prefixes.shape)}"
            raise InputError(f"FineTuneExtractor: prefixes are {given}; expected int64 (b, {self.prefix_len})")
        if int(prefixes.min()) < 0 or int(prefixes.max()) >= vocabulary(self.ft_model):
            raise InputError(f"FineTuneExtractor: ids up to {int(prefixes.max())}; expected tokens of the model")
        candidates = self.candidates(prefixes, seed=seed)
        whole = torch.cat((prefixes[:, None].expand(-1, self.n, -1), candidates), 2)
        scores = self.scorer().score(whole.flatten(0, 1)).unflatten(0, (len(prefixes), self.n))
        best = candidates[torch.arange(len(prefixes)), scores.argmax(1)]
        return {"best": best, "candidates": candidates, "scores": scores}

    def candidates(self, prefixes: Int[Tensor, "b p"], *, seed: int) -> Int[Tensor, "b n m"]:
        """The suffixes that the fine-tuned model draws."""
        rows = prefixes.repeat_interleave(self.n, 0)
        draws, device = Draws(seed, "suffix", torch.arange(len(rows))), device_of(self.ft_model)
        with evaluating(self.ft_model):
            parts = [
                sampled(self.ft_model, rows[k].to(device), self.suffix_len, draws.select(k)).cpu()
                for k in torch.arange(len(rows)).split(self.batch_size)
            ]
        return torch.cat(parts).unflatten(0, (len(prefixes), self.n))


def extraction_rates(found: dict[str, Tensor], truth: Int[Tensor, "b m"]) -> dict[str, float]:
    """Of the suffixes ``truth``: "precision", the share that the best candidate is exactly; "hamming", the mean share
    of tokens on which they agree; "multi_precision" and "multi_hamming", the same of any and of the closest candidate;
    "auc", how well the score tells exact candidates from others (NaN where there are none, or no others).
    """
    best, candidates = found["best"], found["candidates"]
    if truth.shape != best.shape:
        raise InputError(f"extraction_rates: truth {tuple(truth.shape)}; expected {tuple(best.shape)}")
    agree = (candidates == truth[:, None]).double().mean(2)
    hamming, exact = (best == truth).double().mean(1), agree == 1
    table: Float[Tensor, "k 2"] = torch.stack((found["scores"].flatten(), exact.flatten().double()), 1)
    told = point("auroc", table.numpy()) if 0 < int(exact.sum()) < exact.numel() else float("nan")
    return {
        "precision": float((hamming == 1).double().mean()),
        "hamming": float(hamming.mean()),
        "multi_precision": float(exact.any(1).double().mean()),
        "multi_hamming": float(agree.amax(1).mean()),
        "auc": told,
    }
