"""What sequential recommenders share: scores of all items after every prefix, and training for the next item."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.recommend.items import allowed, check_sequences, top_items, windows
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating
from assay.training import Plan, State, fit

ROWS = 512  # sequences in one pass


class Recommender(nn.Module):
    """Scores of items 0 (padding) to ``n_items`` after every prefix of rows (n, l) of items, padded with 0 on the left.

    The scores after a prefix do not depend on what follows it, nor on where in the row it lies. A subclass states
    ``states``; its ``items`` is an embedding (n_items + 1, d), and scores are products with it.
    """

    def __init__(self, n_items: int, length: int, width: int) -> None:
        super().__init__()
        if n_items < 2 or length < 1 or width < 1:
            raise InputError(f"recommender: {n_items} items, length {length}, width {width}; expected >= 2, 1 and 1")
        self.n_items, self.length, self.width = n_items, length, width
        self.items = nn.Embedding(n_items + 1, width, padding_idx=0)
        nn.init.normal_(self.items.weight, std=width**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_items + 1))

    def states(self, rows: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """What is known of the user after each item."""
        raise TypeError(f"{type(self).__name__} states no states")

    def score(self, states: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """The scores of all items in the given states."""
        return states @ self.items.weight.T + self.bias

    def forward(self, rows: Int[Tensor, "n l"]) -> Float[Tensor, "n v"]:
        """Scores (n, n_items + 1) of the next item."""
        return self.score(self.states(rows)[:, -1])

    def recommend(self, rows: Int[Tensor, "n l"], k: int) -> Int[Tensor, "n k"]:
        """The k best items that are not in the row, best first, on the CPU: all that a victim tells.

        InputError for other rows than a Recommender takes, unknown items, and fewer than k items outside a row.
        """
        self._check_rows(rows)
        found, device = [], device_of(self)
        with evaluating(self), torch.no_grad():
            for part in rows.split(ROWS):
                part = part.to(device)
                scores = allowed(self(part), part)
                best = top_items(scores, k)
                if (scores.gather(1, best) == -torch.inf).any():
                    raise InputError(f"recommend: k is {k}; expected at most as many as the items outside each row")
                found.append(best.cpu())
        return torch.cat(found) if found else torch.zeros(0, k, dtype=torch.int64)

    def _check_rows(self, rows: Tensor) -> None:
        """InputError unless rows are items of this recommender, with padding on the left alone."""
        if (
            rows.dim() != 2
            or rows.dtype != torch.int64
            or not 1 <= rows.shape[1] <= self.length
            or (rows[:, -1] == 0).any()
        ):
            expected = f"int64 (n, <= {self.length}) that ends in an item"
            raise InputError(f"recommend: rows are {rows.dtype} {tuple(rows.shape)}; expected {expected}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) <= self.n_items:
            span = f"[{int(rows.min())}, {int(rows.max())}]"
            raise InputError(f"recommend: rows span {span}; expected items 1 to {self.n_items}, 0 as padding")
        if ((rows[:, :-1] > 0) & (rows[:, 1:] == 0)).any():
            raise InputError("recommend: a row has padding behind an item; expected it on the left alone")


def places(rows: Int[Tensor, "n l"]) -> Int[Tensor, "n l"]:
    """The place of each item counted from the first one of its row, 0 on; so a prefix has the same places anywhere."""
    return ((rows > 0).cumsum(1) - 1).clamp_min(0)


def blocked(rows: Int[Tensor, "n l"]) -> Bool[Tensor, "n l l"]:
    """What each place must not attend to: later places and padding, but always itself."""
    length = rows.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=rows.device).triu(1)
    own = torch.eye(length, dtype=torch.bool, device=rows.device)
    return (later | (rows == 0)[:, None]) & ~own


def sequence_data(rows: Int[Tensor, "n l"], n_items: int, **fields: Tensor) -> Data:
    """Rows as a data set: ``rows`` and other tensors are fields, x their numbers as floats."""
    classes = tuple(map(str, range(n_items + 1)))
    fields = {"rows": rows, **fields}
    return Data(rows.float(), rows[:, -1], classes, bounds=(0.0, float(n_items)), name="sequences", fields=fields)


def next_item_loss(model: Recommender, rows: Int[Tensor, "n l"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of every item of the rows but the first, after its prefix."""
    states, following = model.states(rows[:, :-1]), rows[:, 1:]
    known = (rows[:, :-1] > 0) & (following > 0)
    return F.cross_entropy(model.score(states[known]), following[known])


def train_next_item(
    model: Recommender, sequences: Sequence[Int[Tensor, " t"]], plan: Plan, *, seed: int
) -> Recommender:
    """A copy of ``model`` trained to predict each next item of the sequences (cut into windows of its length + 1)."""
    check_sequences("train_next_item", sequences, model.n_items)
    rows = windows(sequences, model.length + 1)
    rows = rows[(rows > 0).sum(1) > 1]

    def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
        assert isinstance(net, Recommender)
        return next_item_loss(net, batch.fields["rows"])

    trained = fit(model, sequence_data(rows, model.n_items), objective, plan, seed=seed)
    assert isinstance(trained, Recommender)
    return trained
