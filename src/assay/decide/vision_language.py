"""What a guard needs of a vision-language model: the scores of its answers, and the confidence of its sentences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, device_of, evaluating


@torch.no_grad()
def answer_logits(model: nn.Module, inputs: Mapping[str, Tensor], *, batch_size: int = BATCH) -> Float[Tensor, "n c"]:
    """Logits over answers, float32 on the CPU, of a model such as ViltForQuestionAnswering, in evaluation mode.

    ``inputs`` are the model's keyword arguments, one row a question (input_ids, pixel_values ...). The model returns
    logits (b, c), or an object that has them as ``logits``. InputError for no rows, unequal numbers of rows, and other
    outputs.
    """
    rows = {len(t) for t in inputs.values()}
    if len(rows) != 1 or 0 in rows:
        raise InputError(f"answer_logits: {sorted(rows)} rows; expected inputs with one row each a question")
    found, device = [], device_of(model)
    with evaluating(model):
        for start in range(0, rows.pop(), batch_size):
            out = model(**{name: t[start : start + batch_size].to(device) for name, t in inputs.items()})
            logits = getattr(out, "logits", out)
            if not isinstance(logits, Tensor) or logits.dim() != 2 or not torch.isfinite(logits).all():
                raise InputError(f"answer_logits: {type(model).__name__} gave no finite logits; expected (b, c)")
            found.append(logits.float().cpu())
    return torch.cat(found)


def sequence_confidence(
    logits: Float[Tensor, "n t v"], tokens: Int[Tensor, "n t"], mask: Bool[Tensor, "n t"] | None = None
) -> Float[Tensor, " n"]:
    """Mean log-probability of the tokens of each sentence, at most 0 (Ao, 2023, arXiv:2308.03176, for captions).

    ``logits`` at each place are those that its token was chosen by, -inf for one that may not be; ``mask`` is true
    where a token counts: what stands elsewhere, -100 say, has no meaning. Half precision is computed, and given, in
    float32. InputError for other shapes, NaN and infinite logits, tokens outside the vocabulary, and a sentence without
    tokens.
    """
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    if logits.dim() != 3 or tokens.shape != logits.shape[:2] or mask.shape != tokens.shape:
        shapes = f"{tuple(logits.shape)}, {tuple(tokens.shape)}, {tuple(mask.shape)}"
        raise InputError(f"sequence_confidence: {shapes}; expected (n, t, v), (n, t), (n, t)")
    outside = mask & ((tokens < 0) | (tokens >= logits.shape[2]))
    if tokens.numel() == 0 or outside.any() or not mask.any(1).all():
        raise InputError("sequence_confidence: an empty sentence or a token outside the vocabulary; expected neither")
    tokens = tokens.masked_fill(~mask, 0)
    if not (logits[mask] < torch.inf).all():
        raise InputError("sequence_confidence: logits hold NaN or infinite values; expected finite ones or -inf")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = wide.log_softmax(2).gather(2, tokens[:, :, None])[:, :, 0]
    return each.masked_fill(~mask, 0).sum(1) / mask.sum(1)
