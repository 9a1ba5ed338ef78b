"""From a noise-conditioned encoder to a classifier for smoothing."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.certify.consistency_training import ConsistencyTraining
from assay.certify.level_classifier import LevelClassifier
from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import seeded
from assay.training import fit

EMBEDDING = re.compile(r"\b(patch_embed|cls_token|pos_embed|place)\b")  # what stands before a transformer's blocks
START = 2e-5  # deviation of the new head's weights


def consistency_finetune(
    encoder: nn.Module,
    data: Data,
    *,
    sigma: float,
    levels: Float[Tensor, " m"],
    lbd: float = 10.0,
    eta: float = 0.5,
    m: int = 2,
    epochs: int = 100,
    batch_size: int = 1024,
    lr: float = 2e-4,
    layer_decay: float = 0.85,
    seed: int,
) -> LevelClassifier:
    """Encoder and a new linear head trained at the noise ``sigma`` by ``ConsistencyTraining`` (AdamW, 10% warm-up).

    Lei et al., 2025, arXiv:2501.13094; lbd 10 at sigma = 0.25 and 20 at 0.5 and 1 there. Of an encoder with ``blocks``
    0 to k - 1, block i learns at lr x ``layer_decay``^(k - i), the embedding of patches at layer_decay^(k + 1), the
    rest and the head at lr. ``levels`` are those on which the encoder was trained (``RRCMPretrainer.levels``), and
    ``encoder`` is untouched. Raises InputError on options out of range.
    """
    check_inputs("consistency_finetune", data.x, data.y, data.bounds)
    if not 0 < layer_decay <= 1:
        raise InputError(f"consistency_finetune: layer_decay={layer_decay}; expected 0 < layer_decay <= 1")
    training = ConsistencyTraining(sigma=sigma, m=m, lbd=lbd, eta=eta, epochs=epochs, batch_size=batch_size, lr=lr)
    head = new_head(encoder, data, seed)
    start = LevelClassifier(copy.deepcopy(encoder), head, sigma=sigma, levels=levels, bounds=data.bounds)
    start.requires_grad_(True)
    factors = layer_factors(start, layer_decay)

    def optimizer(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        groups = [{"params": [p], "lr": lr * f} for p, f in zip(parameters, factors, strict=True)]
        return torch.optim.AdamW(groups, lr, weight_decay=0.0)

    plan = replace(training.plan(), optimizer=optimizer, warmup=0.1)
    trained = fit(start, data, training.objective, plan, seed=seed)
    if not isinstance(trained, LevelClassifier):
        raise TypeError(f"training gave {type(trained).__name__}")
    return trained


def new_head(encoder: nn.Module, data: Data, seed: int) -> nn.Linear:
    """A linear layer of nearly equal logits for the representations of ``encoder``."""
    device = device_of(encoder)
    with evaluating(encoder), torch.no_grad():
        width = encoder(data.x[:1].to(device), torch.ones(1, device=device)).shape[1]
    with seeded(seed, "head"):
        head = nn.Linear(width, len(data.classes))
        nn.init.trunc_normal_(head.weight, std=START)
    nn.init.zeros_(head.bias)
    return head.to(device)


def layer_factors(classifier: LevelClassifier, decay: float) -> list[float]:
    """The factor of the learning rate of every parameter, in their order (Bao et al., 2022, arXiv:2106.08254)."""
    names = [name for name, _ in classifier.named_parameters()]
    places = [re.search(r"\bblocks\.(\d+)\.", name) for name in names]
    depth = 1 + max((int(p[1]) for p in places if p), default=-1)
    return [
        decay ** (depth - int(place[1])) if place else decay ** (depth + 1) if EMBEDDING.search(name) else 1.0
        for name, place in zip(names, places, strict=True)
    ]
