"""Fine-tuning leaks membership: the loss after over the loss before tells almost every text that was trained on.

A character-level GPT-2 learns tinyshakespeare without some segments of 64 characters; then it is fine-tuned on 200 of
those for three epochs, and 200 others are non-members. What decides: FLoRa's area under the ROC curve and its true
positives at 1% false ones, against the loss alone. Exact: the norm of all gradients is that of one backward pass; the
ratios are one for equal models and for no step, and the weights stay; a small step lowers the loss by lr |grad|^2; and
logits have the rank of the hidden width, so that the stolen layer explains them. Support: growth with the epochs, all
attacks on the base model and a bag of characters are at chance, extraction from a model that copies, and the tier of
pre-training, where the base is trained further on more segments and only its gradients are known.

Smaller than first planned, so that five seeds take about two minutes of one core: one layer of width 96 and a context
of 64 (not two of 64, and 96), 300 steps of 16 for the base, and so fine-tuning at 1e-3 (not 5e-4); bounds are as
planned. Three epochs do not make so small a model repeat a text, so extraction has a model of its own that is
fine-tuned further on a few texts. The best single norm is chosen on the attack's training texts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn import datasets
from torch import Tensor, nn

from assay.data import Batch, Data, load_text
from assay.papers.model import Claim, Paper, Scale, Table
from assay.privacy import (
    ALoRaMIA,
    FineTuneExtractor,
    FLoRaMIA,
    GradNormMIA,
    LossMIA,
    MinKMIA,
    ModelStealing,
    SupervisedMIA,
    TextInference,
    ZlibLoRaMIA,
    ZlibMIA,
    gradient_features,
    tpr_at_fpr,
)
from assay.privacy.llm_mia.base import Texts, next_losses, vocabulary
from assay.runtime.errors import InputError
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.runtime.statistics import point
from assay.training import Plan, State, fit

ORDERS = (1, 2, float("inf"))
THIN = 16  # the width of the network whose output layer is stolen; it has to be below the number of characters
CLOSE = 0.8  # the share of characters from which on a suffix counts as extracted

PAPER = Paper(
    slug="pandora-mia",
    title="Pandora's White-Box: Increased Training Data Leakage in Open LLMs",
    authors="Jeffrey G. Wang, Jason Wang, Marvin Li, Seth Neel",
    year=2024,
    arxiv="2402.17012",
    room="privacy",
    also=("language",),
    kind="method",
    implements=(
        "privacy.FLoRaMIA",
        "privacy.ALoRaMIA",
        "privacy.GradNormMIA",
        "privacy.SupervisedMIA",
        "privacy.ModelStealing",
        "privacy.gradient_features",
        "privacy.LossMIA",
        "privacy.ZlibMIA",
        "privacy.ZlibLoRaMIA",
        "privacy.MinKMIA",
        "privacy.FineTuneExtractor",
        "privacy.extraction_rates",
        "privacy.membership_rates",
        "privacy.tpr_at_fpr",
    ),
    claim="The loss of a fine-tuned language model over that of its base tells the texts it was fine-tuned on.",
    headline="Pythia, the Pile: FLoRa is near perfect after one epoch; over half of the fine-tuning set is extracted "
    "after three; supervised attacks on gradients beat black-box ones in pre-training.",
    peers=("pandora_llm", "open-unlearning"),
    baselines=("LOSS",),
    shams={"shuffled-reference": "the base losses are permuted over the evaluated texts before the ratio is taken"},
    scales=(
        Scale("smoke", 1, {"text": "descriptions", "length": 24, "width": 16, "layers": 1, "base": 25, "members": 40,
                           "epochs": 3, "fpr": 0.1, "tier": 20, "tier_epochs": 2, "copied": 4, "copying": 15, "n": 3}),
        Scale("claim", 5, {"text": "tinyshakespeare", "length": 64, "width": 96, "layers": 1, "base": 300,
                           "members": 200, "epochs": 3, "fpr": 0.01, "tier": 200, "tier_epochs": 4, "copied": 24,
                           "copying": 100, "n": 8}),
        Scale("gpu", 5, {"text": "tinyshakespeare", "length": 96, "width": 256, "layers": 4, "base": 3000,
                         "members": 1000, "epochs": 3, "fpr": 0.01, "tier": 1000, "tier_epochs": 4, "copied": 200,
                         "copying": 400, "n": 20}),
    ),
)  # fmt: skip


class _Letters:
    """The tokenizer of a text's own characters."""

    def __init__(self, text: str) -> None:
        self.letters = sorted(set(text))
        self.number = {c: i for i, c in enumerate(self.letters)}

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.number[c] for c in text]}

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return ["".join(self.letters[i] for i in row) for row in rows]


@dataclass(frozen=True)
class _Shuffled(FLoRaMIA):
    seed: int = field(default=0, kw_only=True)

    def reference(self, texts: Texts) -> Tensor:
        base = super().reference(texts)
        return base[torch.randperm(len(base), generator=torch_rng(self.seed, "shuffled"))]


@cache
def corpus(name: str) -> str:
    """tinyshakespeare of ``$ASSAY_DATA/text``, or the descriptions that come with scikit-learn's data sets."""
    if name == "descriptions":
        return "".join(load().DESCR for load in (datasets.load_digits, datasets.load_wine, datasets.load_diabetes))
    return load_text(name)


def segments(scale: Scale, seed: int) -> tuple[dict[str, Tensor], _Letters]:
    """Disjoint segments in random order: fine-tuned on, not fine-tuned on, those of the other tiers, and the rest."""
    text, length = corpus(scale["text"]), scale["length"]
    letters = _Letters(text)
    ids = torch.tensor(letters(text)["input_ids"])
    rows = ids[: len(ids) // length * length].view(-1, length)
    rows = rows[torch.from_numpy(numpy_rng(seed, "segments").permutation(len(rows)))]
    sizes = {"members": scale["members"], "others": scale["members"], "copied": scale["copied"]}
    sizes |= {f"{who} {use}": scale["tier"] for who in ("inside", "outside") for use in ("known", "tested")}
    parts = rows.split([*sizes.values(), len(rows) - sum(sizes.values())])
    return dict(zip([*sizes, "rest"], parts, strict=True)), letters


def network(size: int, length: int, width: int, layers: int, seed: int) -> nn.Module:
    """A GPT-2 with random weights and no dropout."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("pandora-mia: transformers is missing; expected pip install 'assay[hf]'") from error
    config = transformers.GPT2Config(
        vocab_size=size, n_positions=length, n_embd=width, n_layer=layers, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with seeded(seed, "gpt2"):
        return transformers.GPT2LMHeadModel(config)


def taught(net: nn.Module, ids: Tensor, seed: int, after: list[nn.Module] | None = None, **plan: Any) -> nn.Module:
    """``net`` trained on segments by AdamW; ``after`` gets a copy of it at the end of every epoch."""
    data = Data(torch.zeros(len(ids), 1), torch.zeros(len(ids), dtype=torch.int64), ("text", "none"))
    chosen = Plan(optimizer="adamw", weight_decay=0.01, **plan)

    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        rows = ids[batch.index]
        return next_losses(model(input_ids=rows).logits, rows).mean()

    def keep(models: Any, state: State) -> None:
        if after is not None and state.step % -(-len(ids) // chosen.batch_size) == 0:
            after.append(copy.deepcopy(models["model"]).eval())

    return fit(net, data, objective, chosen, seed=seed, hooks=[keep])


def judged(attack: TextInference, inside: Tensor, outside: Tensor, fpr: float) -> dict[str, float]:
    """AUC and true positives at ``fpr`` of an attack on members and others."""
    scores = attack.score(torch.cat((inside, outside))).numpy()
    y = np.repeat([1, 0], [len(inside), len(outside)])
    return {"auc": area(scores, y), "tpr": tpr_at_fpr(y, scores, fpr)}


def area(scores: np.ndarray, y: np.ndarray) -> float:
    """The area under the ROC curve."""
    return point("auroc", np.stack([scores, y.astype(float)], 1))


def exact(base: nn.Module, x: Tensor, queries: Tensor) -> dict[str, float]:
    """Differences from what each identity says, on a float64 copy of the base; of stealing, on a thin network."""
    net = copy.deepcopy(base).double().eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    plain = LossMIA(net).texts(x)
    single = copy.deepcopy(net)
    F.cross_entropy(single(input_ids=x[:1]).logits[0, :-1], x[0, 1:]).backward()
    whole = torch.cat([p.grad.flatten() for p in single.parameters() if p.grad is not None])
    norms = [-float(GradNormMIA(net, p=p, where="all").score(x[:1])) for p in ORDERS]
    lr = 1e-6
    fall = -LossMIA(net).score(x) * (1 - ALoRaMIA(net, lr=lr).ratio(plain))
    predicted = lr * GradNormMIA(net, where="all").score(x).square()
    moved = sum(int((state[k] != v).sum()) for k, v in net.state_dict().items())
    thin = network(vocabulary(base), queries.shape[1], THIN, 1, 0).double().eval()
    stolen = ModelStealing().fit(thin, queries)
    values = stolen.singular_values_
    with torch.no_grad():
        logits = thin(input_ids=x).logits
    left = stolen.latents(logits) @ stolen.head_.T - logits
    return {
        "norms": max(abs(n / float(whole.norm(p)) - 1) for n, p in zip(norms, ORDERS, strict=True)),
        "equal": float((FLoRaMIA(net, copy.deepcopy(net)).score(x) + 1).abs().max()),
        "still": float((ALoRaMIA(net, lr=0.0).score(x) - 1).abs().max()) + moved,
        "first": float((fall / predicted - 1).abs().max()),
        "rank": float(values[THIN] / values[0]),
        "residual": float(left.abs().max() / logits.abs().max()),
    }


def null(base: nn.Module, parts: dict[str, Tensor], letters: _Letters, seed: int) -> list[dict[str, Any]]:
    """Every attack on the base model, which saw neither members nor others, and a classifier of their characters."""
    members, others, size = parts["members"], parts["others"], len(letters.letters)
    attacks: dict[str, TextInference] = {
        "LOSS": LossMIA(base),
        "zlib": ZlibMIA(base, tokenizer=letters),
        "Min-k%": MinKMIA(base),
        "GradNorm": GradNormMIA(base),
        "ALoRa": ALoRaMIA(base, lr=1e-2),
    }
    rows = [{"arm": f"base, {n}", "null": judged(a, members, others, 1.0)["auc"]} for n, a in attacks.items()]

    def counts(x: Tensor) -> Tensor:
        return nn.functional.one_hot(x, size).sum(1).double()

    half = len(members) // 2
    bag = SupervisedMIA(features=counts, clf="logreg").fit(members[:half], others[:half], seed=seed)
    scores = bag.score(torch.cat((members[half:], others[half:]))).numpy()
    y = np.repeat([1, 0], [len(members) - half, len(others) - half])
    return [*rows, {"arm": "bag of characters", "bag": area(scores, y)}]


def extracted(base: nn.Module, texts: Tensor, scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Shares of suffixes got back, to four characters in five, from a model that copies and from the base."""
    copying = taught(
        base, texts, derive(seed, "copying"), steps=scale["copying"], batch_size=len(texts), lr=3e-3, schedule="linear"
    )
    half, rows = scale["length"] // 2, []
    for arm, model in (("copying", copying), ("base", base)):
        extractor = FineTuneExtractor(model, base, prefix_len=half, suffix_len=half, n=scale["n"])
        found = extractor.extract(texts[:, :half], seed=derive(seed, "extract"))
        best, all_ = ((found[k] == truth).double().mean(-1) for k, truth in
                      (("best", texts[:, half:]), ("candidates", texts[:, None, half:])))  # fmt: skip
        shares = {"share": (best >= CLOSE).double().mean(), "any": (all_ >= CLOSE).double().mean()}
        rows.append({"arm": f"extraction, {arm}", **{k: float(v) for k, v in shares.items()}})
    return rows


def tier(base: nn.Module, parts: dict[str, Tensor], scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Attacks without a reference on the base trained further, as in pre-training: losses, norms, and classifiers."""
    known, tested = ((parts[f"inside {use}"], parts[f"outside {use}"]) for use in ("known", "tested"))
    inside = torch.cat((known[0], tested[0]))
    plan = {"epochs": scale["tier_epochs"], "batch_size": 16, "lr": 1e-3, "schedule": "linear"}
    model = taught(base, inside, derive(seed, "tier"), **plan)
    told = {k: gradient_features(model, torch.cat(v)) for k, v in (("known", known), ("tested", tested))}
    y = np.repeat([1, 0], [len(tested[0]), len(tested[1])])
    norms = {use: [area(-column.numpy(), y) for column in rows.T] for use, rows in told.items()}
    chosen = int(np.argmax(norms["known"]))
    oriented = ALoRaMIA(model, lr=1e-2).oriented(known[0][:50], known[1][:50])
    rows = [{"arm": "tier, LOSS", "tier": judged(LossMIA(model), *tested, 1.0)["auc"]}]
    rows += [{"arm": "tier, ALoRa", "tier": judged(oriented, *tested, 1.0)["auc"]}]
    rows += [
        {"arm": "tier, GradNorm", "tier": norms["tested"][1]},
        {"arm": "tier, best norm", "tier": norms["tested"][chosen]},
    ]
    for clf in ("mlp", "logreg"):
        attack = SupervisedMIA(features=lambda x: x, clf=clf)
        fitted = attack.fit(*told["known"].split(len(known[0])), seed=seed)
        rows.append({"arm": f"tier, {clf}", "tier": area(fitted.score(told["tested"]).numpy(), y)})
    return rows


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The base, what fine-tuning made of it after every epoch, and the rows that no sham changes."""
    parts, letters = segments(scale, seed)
    start = network(len(letters.letters), scale["length"], scale["width"], scale["layers"], seed)
    base = taught(
        start, parts["rest"], derive(seed, "base"), steps=scale["base"], batch_size=16, lr=4e-3, schedule="onecycle"
    )
    epochs: list[nn.Module] = []
    plan = {"epochs": scale["epochs"], "batch_size": 8, "lr": 1e-3, "schedule": "constant"}
    taught(base, parts["members"], derive(seed, "fine-tuning"), epochs, **plan)
    told = partial(judged, inside=parts["members"], outside=parts["others"], fpr=scale["fpr"])
    rows = [{"arm": "LOSS", "epoch": k + 1, **told(LossMIA(m))} for k, m in enumerate(epochs)]
    others = {"zlibLoRa": ZlibLoRaMIA(epochs[-1], tokenizer=letters), "Min-k%": MinKMIA(epochs[-1])}
    rows += [{"arm": arm, "epoch": len(epochs), **told(attack)} for arm, attack in others.items()]
    rows += null(base, parts, letters, seed)
    rows += [*extracted(base, parts["copied"], scale, seed), *tier(base, parts, scale, seed)]
    rows.append({"arm": "exact", **exact(base, parts["others"][:4], parts["rest"][: THIN + 30])})
    return {"base": base, "epochs": epochs, "told": told, "rows": rows}


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """FLoRa after every epoch, beside what the setup measured."""
    kind = partial(_Shuffled, seed=seed) if sham == "shuffled-reference" else FLoRaMIA
    told = [given["told"](kind(model, given["base"])) for model in given["epochs"]]
    rows = [{"arm": "FLoRa", "epoch": k + 1, **row} for k, row in enumerate(told)]
    return Table.of([*rows, *given["rows"]])


def claims(table: Table) -> list[Claim]:
    """FLoRa after the last epoch decides, with the identities."""
    last, sham = int(table.values("epoch").max()), ("shuffled-reference",)

    def rate(column: str, arm: str, epoch: int = last) -> np.ndarray:
        return table.per_seed(column, arm=arm, epoch=epoch)

    flora, loss = rate("auc", "FLoRa"), rate("auc", "LOSS")
    tpr = rate("tpr", "FLoRa")
    return [
        Claim("AUC of FLoRa after three epochs", flora, at_least=0.90, refuted_by=sham),
        Claim("AUC of FLoRa less that of the loss", flora - loss, at_least=0.10, refuted_by=sham),
        Claim("members found by FLoRa at 1% false positives", tpr, at_least=0.3, refuted_by=sham),
        Claim("members found at 1%: FLoRa less three times the loss", tpr - 3 * rate("tpr", "LOSS"), at_least=0.0),
        *identities(table),
        *support(table, [rate("auc", "FLoRa", e) for e in range(1, last + 1)]),
    ]


def identities(table: Table) -> list[Claim]:
    """What holds exactly, in float64."""
    texts = {
        "norms": ("norm of all gradients, by layers, against one backward pass: relative difference", 1e-6),
        "equal": ("FLoRa of equal models is one: largest difference", 0.0),
        "still": ("ALoRa of no step is one, and no weight moves: difference and number of changed weights", 0.0),
        "first": ("fall of the loss by a small step against lr |grad|^2: relative difference", 1e-3),
        "rank": ("singular value of logits beyond the hidden width over the first", 1e-5),
        "residual": ("logits less what the stolen layer makes of its latents, relative to the largest", 1e-8),
    }
    found = [(text, table.per_seed(column, np.max), bound) for column, (text, bound) in texts.items()]
    return [Claim(text, observed, at_most=bound, rule="exact") for text, observed, bound in found]


def support(table: Table, growth: list[np.ndarray]) -> list[Claim]:
    """What does not decide."""

    def arm(column: str, name: str) -> np.ndarray:
        return table.per_seed(column, arm=name)

    def beyond(name: str, reference: str) -> np.ndarray:
        return arm("tier", f"tier, {name}") - arm("tier", f"tier, {reference}")

    worst = table.per_seed("null", lambda v: np.abs(v - 0.5).max())
    share, chance = arm("share", "extraction, copying"), arm("any", "extraction, copying")
    found = {
        "AUC of FLoRa: its least growth from an epoch to the next": (np.diff(growth, axis=0).min(0), 0.0),
        "suffixes extracted, ranked by FLoRa less a random choice": (share - chance, 0.0),
        "suffixes extracted, less five times those of the base": (share - 5 * arm("share", "extraction, base"), 0.05),
        "pre-training: AUC of GradNorm less the loss": (beyond("GradNorm", "LOSS"), -0.02),
        "pre-training: AUC of the supervised network less the best norm": (beyond("mlp", "best norm"), 0.02),
        "pre-training: AUC of the supervised regression less the best norm": (beyond("logreg", "best norm"), 0.02),
    }
    return [
        Claim("all attacks on the base model: largest distance of the AUC from 1/2", worst, at_most=0.08, key=False),
        Claim("a bag of characters: AUC", arm("bag", "bag of characters"), at_least=0.42, at_most=0.58, key=False),
        *(Claim(text, observed, at_least=bound, key=False) for text, (observed, bound) in found.items()),
    ]


def figure(table: Table) -> Figure:
    """AUC and true positives at 1% of FLoRa and the loss after every epoch, one dot a seed."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = drawing.subplots(1, 2)
    epochs = sorted({int(e) for e in table.values("epoch")})
    for axes, column, title in (
        (left, "auc", "area under the ROC curve"),
        (right, "tpr", "found at 1% false positives"),
    ):
        for arm in ("FLoRa", "LOSS"):
            values = np.stack([table.per_seed(column, arm=arm, epoch=e) for e in epochs])
            (line,) = axes.plot(epochs, values.mean(1), "-o", label=arm)
            axes.plot(epochs, values, "o", ms=3, alpha=0.5, color=line.get_color())
        axes.set(xlabel="epochs of fine-tuning", xticks=epochs, title=title)
    left.legend(frameon=False)
    return drawing
