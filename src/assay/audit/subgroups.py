"""Subgroups: the worst of the groups that the data name, and of slices found without them."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor

from assay.audit.property import CLASSIFIERS, Context, Cost, Plot, Property, Section
from assay.runtime import statistics
from assay.runtime.inference import features, named_layers, predict
from assay.runtime.metric import Metric, measured
from assay.subject import Access, Subject

LEAVES = 8
SMALLEST = 10
MOST = 20_000  # held-out samples that the slices are sought on
BLOCK = 10_000  # samples whose features are held at once


def representation(subject: Subject, x: Tensor) -> Float[np.ndarray, "n d"]:
    """Outputs of the layer before the last; the logits where the weights are not granted or there is but one layer; the
    inputs where only decisions are granted.
    """
    if subject.access < Access.SCORE:
        return x.flatten(1).numpy()
    layers = list(named_layers(subject.model))
    if subject.access >= Access.WEIGHTS and len(layers) > 1:
        return features(subject.model, x, [layers[-2]])[layers[-2]].numpy()
    return predict(subject.model, x).numpy()


def find_slices(subject: Subject, *, seed: int) -> tuple[DecisionTreeRegressor, int]:
    """A tree over the representation that predicts the loss on the holdout, and its leaf of the highest mean loss.

    The decision-tree search of Slice Finder (Chung et al., 2019, arXiv:1807.06068, section 3.1.2), over features
    instead of columns as in Domino (Eyuboglu et al., 2022, arXiv:2203.14960). A leaf holds at least 10 samples and 5%.
    Where only decisions are granted the loss is the error, 0 or 1, and the features are the columns.
    """
    assert subject.holdout is not None
    holdout = subject.holdout.limit(MOST, seed=seed)
    logits = predict(subject.model, holdout.x)
    if subject.access < Access.SCORE:
        loss = (logits.argmax(1) != holdout.y).numpy().astype(float)
    else:
        loss = F.cross_entropy(logits, holdout.y, reduction="none").numpy()
    leaf = max(SMALLEST, round(0.05 * len(holdout)))
    tree = DecisionTreeRegressor(max_leaf_nodes=LEAVES, min_samples_leaf=leaf, random_state=seed % 2**32)
    tree.fit(representation(subject, holdout.x), loss)
    means = np.where(tree.tree_.children_left < 0, tree.tree_.value[:, 0, 0], -np.inf)
    return tree, int(means.argmax())


def _gap(name: str, correct: np.ndarray, member: np.ndarray, how: str) -> Metric:
    """Accuracy of all less accuracy of the members, with a bootstrap interval."""
    inside, pairs = correct[member], np.stack([correct, member], 1).astype(float)
    value, low, high, interval = float(correct.mean() - inside.mean()), None, None, None
    if len(correct) >= 50:
        low, high = statistics.bootstrap(_shortfall, pairs)
        interval = statistics.named(_shortfall, pairs)
    return Metric(name, value, low, high, interval, len(inside), better="lower", how=how)


def _shortfall(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of column 0 less its mean where column 1 is 1; NaN for a resample that drew none of these."""
    held = weights @ values[:, 1]
    part = weights @ (values[:, 0] * values[:, 1]) / np.where(held > 0, held, np.nan)
    return np.asarray(weights @ values[:, 0] / weights.sum(1) - part)


def _bars(title: str, correct: np.ndarray, groups: Int[np.ndarray, " n"], word: str) -> Plot:
    names = np.unique(groups)
    rates = [float(correct[groups == g].mean()) for g in names]
    return Plot("bar", title, {"accuracy": {"x": [f"{word} {g}" for g in names], "y": rates}}, word, "accuracy")


def measure(subject: Subject, context: Context) -> Section:
    """Accuracy of the worst named group and of the worst slice found on the holdout, both on the test set."""
    data, section = subject.test, Section(headline=["subgroups.slices.worst"])
    index = data.index.numpy()
    correct = (predict(subject.model, data.x).argmax(1) == data.y).numpy().astype(float)
    if "groups" in data.fields:
        groups = data.fields["groups"].numpy()
        if groups.size == len(data) and not np.isnan(groups).any():
            _named(section, correct, groups.reshape(-1), index)
        else:
            found = "NaN" if groups.size == len(data) else f"the shape {groups.shape}"
            section.notes.append(f"Named groups left out: the field 'groups' has {found}; expected one group a sample.")
    tree, worst = find_slices(subject, seed=context.seed)
    parts = (data.x[k : k + BLOCK] for k in range(0, len(data), BLOCK))
    leaves = np.concatenate([tree.apply(representation(subject, x)) for x in parts])
    member = leaves == worst
    kind = (
        "error of a {}-leaf tree on the inputs"
        if subject.access < Access.SCORE
        else "loss of a {}-leaf tree on features"
    )
    how = f"slice of highest {kind.format(tree.get_n_leaves())}, found on the holdout, measured here"
    section.plots.append(_bars("Accuracy by slice found", correct, leaves, "slice"))
    if not member.any():
        section.notes.append("No test sample falls into the slice that the holdout pointed at.")
        return section
    # The slices depend on the model, so a paired difference over their samples would compare different sets.
    rate = section.add(measured("subgroups.slices.worst", correct[member], index[member], better="higher", how=how)[0])
    gap = section.add(_gap("subgroups.slices.gap", correct, member, how))
    section.add(Metric("subgroups.slices.share", float(member.mean()), n=len(data), how=how))
    section.findings.append(
        (
            max(0.0, gap.value or 0.0),
            f"A slice of {member.mean():.1%} of the test samples is recognised {rate.value:.1%} of the time.",
        )
    )
    return section


def _named(section: Section, correct: np.ndarray, groups: Int[np.ndarray, " n"], index: np.ndarray) -> None:
    section.headline = ["subgroups.worst", "subgroups.gap", *section.headline]
    names = np.unique(groups)
    pairs, how = np.stack([correct, groups], 1), f"accuracy in {len(names)} groups of the field 'groups'"
    worst = section.add(measured("subgroups.worst", pairs, index, statistic="worst_class", better="higher", how=how))
    lowest = names[int(np.argmin([correct[groups == g].mean() for g in names]))]
    gap = section.add(_gap("subgroups.gap", correct, groups == lowest, how))
    section.plots.append(_bars("Accuracy by group", correct, groups, "group"))
    text = f"Group {lowest} is recognised {worst.value:.1%} of the time, {gap.value:.1%} below the average."
    section.findings.append((max(0.0, gap.value or 0.0), text))


PROPERTY = Property(
    "subgroups",
    "Subgroups",
    measure,
    lambda s, c: Cost(forward=2 * (len(s.test) + len(s.holdout or ()))),
    needs=Access.DECISION,
    tasks=CLASSIFIERS,
)
