"""Privacy: can the training samples be told from others by the model's outputs?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from assay.audit.property import CLASSIFIERS, MOST, Context, Cost, Plot, Property, Section, retrains
from assay.data import Data
from assay.privacy import RMIA, CalibratedLoss, ClassLoss, LiRA, LossThreshold, Reference, train_shadows
from assay.privacy.base import FittedInference
from assay.privacy.roc import auc, curve, tpr_at
from assay.runtime.inference import predict
from assay.runtime.metric import Metric, Samples
from assay.runtime.random import Draws
from assay.runtime.statistics import wilson
from assay.subject import Access, Subject

RATES = (0.01, 0.001)
POINTS = 200


def _chosen(data: Data, n: int, seed: int) -> Data:
    """``n`` samples drawn by their index, so that those left in a smaller set are chosen again."""
    order = Draws(seed, "privacy", data.index).uniform(1)[:, 0].argsort(stable=True)
    return data[order[:n].sort().values]


def _size(subject: Subject, context: Context) -> int:
    most = context.limit or context.pick(2000, 5000, 20000)
    return min(len(subject.training("privacy")), len(subject.test), most)


def _shadow_count(subject: Subject, context: Context) -> int:
    return int(context.pick(0, 8, 16)) if retrains(subject) else 0


def _pool(subject: Subject, context: Context) -> tuple[Data, np.ndarray, np.ndarray]:
    """Members and as many non-members, numbered anew; who is a member; and names that are the same in every run."""
    n = _size(subject, context)
    inside = _chosen(subject.training("privacy"), n, context.seed)
    outside = _chosen(subject.test, n, context.seed)
    pool = Data(
        torch.cat((inside.x, outside.x)),
        torch.cat((inside.y, outside.y)),
        subject.test.classes,
        (min(inside.bounds[0], outside.bounds[0]), max(inside.bounds[1], outside.bounds[1])),
        f"{n} of {inside.name} and {n} of {outside.name}",
    )
    names = torch.cat((inside.index, -1 - outside.index)).numpy()
    return pool, np.repeat([True, False], n), names


def _attacks(
    subject: Subject, context: Context, pool: Data, section: Section
) -> dict[str, tuple[FittedInference, str]]:
    """The profile's attacks by their name in the metrics, each with what it is."""
    assert subject.holdout is not None
    known = f"class means from {len(subject.holdout)} held-out samples"
    attacks: dict[str, tuple[FittedInference, str]] = {
        "loss": (LossThreshold(), "LossThreshold()"),
        "calibrated": (ClassLoss().fit(Reference(data=subject.holdout)), f"ClassLoss(), {known}"),
    }
    k = _shadow_count(subject, context)
    if k:
        reference = Reference(data=pool, model=subject.model, recipe=subject.recipe)
        shadows = train_shadows(reference, k, seed=context.seed)
        lira, rmia = (attack(models=k, online=context.profile == "deep") for attack in (LiRA, RMIA))
        watson = CalibratedLoss(models=k)
        attacks["reference"] = watson.from_shadows(shadows), str(watson)
        attacks["lira"] = lira.from_shadows(shadows), str(lira)
        attacks["rmia"] = rmia.from_shadows(shadows), str(rmia)
    elif context.profile != "quick":
        section.notes.append(
            "Attacks with shadow models left out: the subject has no recipe, or no weights, to train them."
        )
    return attacks


def measure(subject: Subject, context: Context) -> Section:
    """AUC and TPR at low FPR of each attack of the profile, and the gap in accuracy that feeds them.

    Where only decisions are granted the gap is all there is: whoever takes what is classified rightly for a member.
    """
    pool, member, names = _pool(subject, context)
    if subject.access < Access.SCORE:
        return _by_decision(subject, pool, member, names)
    section = Section(headline=["privacy.mia.loss.auc", "privacy.mia.calibrated.auc", "privacy.generalisation_gap"])
    series = {}
    for name, (attack, what) in _attacks(subject, context, pool, section).items():
        scores = attack.score(subject.model, pool).numpy()
        how = f"{what} on {pool.name}"
        metric = section.add(auc(f"privacy.mia.{name}.auc", scores, member, names, how))
        for rate in RATES:
            section.add(tpr_at(f"privacy.mia.{name}.tpr@{rate:g}", scores, member, rate, how))
        series[name] = _thinned(*curve(scores, member))
        _find(section, name, metric)
    section.plots.append(
        Plot("line", "Membership inference", series, "non-members taken for members", "members found", "diagonal")
    )
    section.add(_gap(predict(subject.model, pool.x).argmax(1), pool.y, member, names, f"accuracy on {pool.name}"))
    if "lira" in series:
        section.headline.insert(2, "privacy.mia.lira.auc")
    return section


def _by_decision(subject: Subject, pool: Data, member: np.ndarray, names: np.ndarray) -> Section:
    """The gap attack (Yeom et al., 2018, arXiv:1709.01604, section 3.2): its advantage is the gap in accuracy."""
    section = Section(headline=["privacy.generalisation_gap"])
    section.notes.append("Attacks on scores left out: need SCORE access; DECISION is granted.")
    predicted = predict(subject.model, pool.x).argmax(1)
    how = f"accuracy on {pool.name}; the advantage of taking what is classified rightly for a member"
    gap = section.add(_gap(predicted, pool.y, member, names, how))
    certain = gap.low is not None and gap.low > 0
    text = f"By decisions alone, members are found with an advantage of {gap.value:.2f} over guessing"
    section.findings.append((max(gap.value or 0.0, 0.0) if certain else 0.0, f"{text}."))
    return section


def _thinned(fpr: np.ndarray, tpr: np.ndarray) -> dict[str, list[float]]:
    rows = np.unique(np.linspace(0, len(fpr) - 1, POINTS).round().astype(int))
    return {"x": fpr[rows].tolist(), "y": tpr[rows].tolist()}


def _gap(predicted: Tensor, y: Tensor, member: np.ndarray, names: np.ndarray, how: str) -> tuple[Metric, Samples]:
    """Accuracy on members less that on non-members; interval: Newcombe (1998), method 10, from Wilson's intervals."""
    correct, name = (predicted == y).numpy(), "privacy.generalisation_gap"
    n, a, b = int(member.sum()), int(correct[member].sum()), int(correct[~member].sum())
    (a_low, a_high), (b_low, b_high) = wilson(a, n), wilson(b, n)
    p, q = a / n, b / n
    low = p - q - float(np.hypot(p - a_low, b_high - q))
    high = p - q + float(np.hypot(a_high - p, q - b_low))
    pairs = Samples(np.stack([correct, member], 1).astype(float), names, "gap")
    return Metric(name, p - q, low, high, "Newcombe 95%", 2 * n, "", "lower", how), pairs


def _find(section: Section, name: str, metric: Metric) -> None:
    assert metric.value is not None
    certain = metric.low is not None and metric.low > 0.5
    verdict = "training samples can be told from others" if certain else "no better than guessing beyond doubt"
    section.findings.append(
        (
            min(1.0, max(0.0, 2 * metric.value - 1)) if certain else 0.0,
            f"Membership inference ({name}) reaches an AUC of {metric.value:.2f} (0.5 is chance): {verdict}.",
        )
    )


def cost(subject: Subject, context: Context) -> Cost:
    """Forward passes of the target and the shadows on the pool, and trainings on half of it."""
    assert subject.holdout is not None
    n, k = _size(subject, context), _shadow_count(subject, context)
    share = n / max(len(subject.training("privacy")), 1)
    return Cost(forward=2 * n * (3 + 3 * k + (3 if k else 0)) + len(subject.holdout), trainings=k * share)


PROPERTY = Property(
    "privacy",
    "Membership privacy",
    measure,
    cost,
    needs=Access.DECISION,
    needs_train=True,
    tasks=CLASSIFIERS,
    most=MOST,
)
