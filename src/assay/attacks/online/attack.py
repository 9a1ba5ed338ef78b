"""The attack on a stream: a surrogate's attack values each item, and an online rule decides which are sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.base import Attack, Untargeted
from assay.attacks.online.base import OnlinePicker
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict

Value = Literal["ce", "margin"]


def attack_values(
    surrogate: nn.Module, x_adv: Float[Tensor, "n ..."], y: Int[Tensor, " n"], value_fn: Value = "ce"
) -> Float[Tensor, " n"]:
    """What each attacked item is worth by the surrogate, float64: its cross-entropy, or its margin over the label."""
    logits = predict(surrogate, x_adv).double()
    return F.cross_entropy(logits, y, reduction="none") if value_fn == "ce" else Untargeted(y).margin(logits)


@dataclass(frozen=True, kw_only=True)
class OnlineAttack:
    """Attack at most k of the n items of a stream that is seen once (Mladenovic et al., 2021, arXiv:2103.02014).

    Each item is attacked on the ``surrogate``, valued there (``value_fn``: see attack_values), and sent or not for good
    by ``selector``, before the next is looked at. The stream gives batches (x, y) of any size: decisions are made item
    by item, and random numbers follow the position in the stream, so that batches do not matter and none is drawn
    before those before it are decided. Raises InputError for a stream of more than n items, and as the attack does.
    """

    kind: ClassVar[str] = "function"

    attack: Attack
    surrogate: nn.Module
    selector: OnlinePicker
    value_fn: Value = "ce"

    def __post_init__(self) -> None:
        if self.value_fn not in get_args(Value):
            raise unknown("value_fn of OnlineAttack", str(self.value_fn), get_args(Value))
        if not isinstance(self.attack, Attack) or not isinstance(self.selector, OnlinePicker):
            given = f"{type(self.attack).__name__} and {type(self.selector).__name__}"
            raise InputError(f"OnlineAttack: attack and selector are {given}; expected an Attack and an OnlinePicker")

    def __call__(self, batches: Iterable[tuple[Tensor, Tensor]], *, seed: int) -> dict[str, Tensor]:
        """``indices`` (m,) of the items sent, their ``x_adv`` (m, ...), and the ``values`` (items,) of all seen."""
        stream, sent, values = self.selector.stream(), [], []
        for x, y in batches:
            index = torch.arange(stream.count, stream.count + len(x))
            x_adv = self.attack(self.surrogate, x, y, seed=seed, index=index)
            worth = attack_values(self.surrogate, x_adv, y, self.value_fn)
            taken = [stream.observe(value) for value in worth.tolist()]
            sent.append(x_adv[torch.tensor(taken)])
            values.append(worth)
        if not values:
            raise InputError("OnlineAttack: the stream is empty; expected at least one batch")
        indices = torch.tensor(stream.selected, dtype=torch.int64)
        return {"indices": indices, "x_adv": torch.cat(sent), "values": torch.cat(values)}
