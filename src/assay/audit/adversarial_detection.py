"""Detection of adversarial inputs: does a detector flag them, and still when the attack knows of it?"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.attacks import PGD, AttackResult, Linf, Untargeted
from assay.audit.ood import auroc, detectors, fitting
from assay.audit.property import MOST, Context, Cost, Plot, Property, Section, check_gradient
from assay.data import Data
from assay.detect import LID, FeatureSqueezing
from assay.detect.base import FittedDetector
from assay.detect.guarded import WEIGHTS, evade, has_gradient
from assay.runtime.inference import predict
from assay.runtime.metric import measured
from assay.subject import Access, Subject

NAME = "adversarial_detection"
EPS = 0.1  # of the data's range, as the headline of robustness.linf
FPR = 0.05
QUERIES = 500


def _budget(context: Context) -> tuple[int, int]:
    """Samples attacked, and steps of PGD."""
    n, steps = context.pick((64, 20), (128, 40), (256, 100))
    return (min(n, context.limit) if context.limit else n), steps


def measure(subject: Subject, context: Context) -> Section:
    """Each detector against PGD on the model alone, and against an attack on model and detector."""
    section, (n, steps) = Section(), _budget(context)
    data = subject.test.limit(n, seed=context.seed)
    check_gradient(subject.model, data.x)
    assert subject.holdout is not None
    fit_data = (subject.train if subject.train is not None else subject.holdout).limit(20 * n, seed=context.seed)
    ball = Linf(EPS * (data.bounds[1] - data.bounds[0]))
    # Without early stop: a detector is to be shown adversarial inputs as strong as the ball allows.
    pgd = PGD(ball=ball, bounds=data.bounds, steps=steps, early_stop=False)
    plain = pgd.run(subject.model, data.x, Untargeted(data.y), seed=context.seed, index=data.index)
    _bare(section, subject, data, plain)
    table: dict[str, dict[str, float]] = {}
    chosen = detectors(subject, section, len(fit_data))
    if subject.train is not None:
        chosen["lid"] = LID()
    if len(data.shape) == 3:
        chosen["squeezing"] = FeatureSqueezing(bits=1 if data.shape[0] == 1 else 5)
    for name, detector, fitted in fitting(section, chosen, subject, fit_data):
        table[name] = _one(section, subject, data, fitted, plain, context, name, f"{detector}")
    _report(section, table)
    return section


def _bare(section: Section, subject: Subject, data: Data, plain: AttackResult) -> None:
    right = (predict(subject.model, plain.x_adv).argmax(1) == data.y).numpy().astype(float)
    how = f"PGD, eps {EPS:g} of the range (l-infinity), {len(data)} samples, nothing is refused"
    section.add(measured(f"{NAME}.undefended", right, data.index.numpy(), better="higher", how=how))


def _one(
    section: Section,
    subject: Subject,
    data: Data,
    fitted: FittedDetector,
    plain: AttackResult,
    context: Context,
    short: str,
    label: str,
) -> dict[str, float]:
    """The three numbers of one detector, by column of the report."""
    name, (_, steps) = f"{NAME}.{short}", _budget(context)
    clean, attacked = fitted.score(data.x).numpy(), fitted.score(plain.x_adv).numpy()
    row, fooled = {}, plain.success.numpy()
    if fooled.any():
        how = f"{label}: clean inputs against the {int(fooled.sum())} of {len(data)} that PGD turned"
        row["auroc"] = auroc(section, name, clean[fooled], attacked[fooled], data.index[plain.success], how)
    wrong = predict(subject.model, plain.x_adv).argmax(1) != data.y
    passed = wrong & torch.from_numpy(attacked <= fitted.threshold(FPR))
    attack = "PGD on the model alone"
    row["handled"] = _share(
        section, f"{name}.handled", ~passed, data, f"{label}, {FPR:.0%} of holdout refused; {attack}"
    )
    joint = evade(
        subject.model,
        fitted,
        data,
        Linf(EPS * (data.bounds[1] - data.bounds[0])),
        seed=context.seed,
        fpr=FPR,
        steps=steps,
        queries=QUERIES,
        start=plain.x_adv,
    )
    # What fools both without knowing of the detector fools both.
    attack = (
        f"PGD-{steps} on the joint margin, {len(WEIGHTS)} weights of the detector"
        if has_gradient(fitted)
        else f"Square on the joint margin, {QUERIES} queries (the score has no gradient)"
    )
    held = ~(joint.success | passed)
    row["adaptive"] = _share(
        section, f"{name}.adaptive", held, data, f"{label}, {FPR:.0%} of holdout refused; {attack}"
    )
    return row


def _share(section: Section, name: str, held: Tensor, data: Data, how: str) -> float:
    text = f"right or refused; {how}, eps {EPS:g} of the range (l-infinity), {len(data)} samples"
    metric = section.add(measured(name, held.numpy().astype(float), data.index.numpy(), better="higher", how=text))
    assert metric.value is not None
    return metric.value


def _report(section: Section, table: dict[str, dict[str, float]]) -> None:
    bare = section.metrics[0].value
    assert bare is not None
    names = list(table)
    columns = {"attack on the model": "handled", "attack on both": "adaptive"}
    series = {label: {"x": names, "y": [table[n][key] for n in names]} for label, key in columns.items()}
    section.plots.append(
        Plot("bar", "Attacked inputs that are read right or refused", series, "", "share (line: nothing refused)", bare)
    )
    best = max(names, key=lambda n: table[n]["adaptive"])
    shown = max(names, key=lambda n: table[n]["handled"])
    section.headline = [f"{NAME}.undefended", *(f"{NAME}.{name}.adaptive" for name in names)]
    text = (
        f"Refusing what a detector flags handles {table[shown]['handled']:.1%} of attacked inputs ({shown}; "
        f"{bare:.1%} without); once the attack knows of the detector, {table[best]['adaptive']:.1%} at best ({best})."
    )
    only = [n for n in names if table[n]["handled"] > bare + 0.1 and table[n]["adaptive"] <= bare + 0.05]
    if only:
        text += f" Only an attack that does not know of it is held off by {' or '.join(only)}."
    section.findings.append((1 - table[best]["adaptive"], text))


def _cost(subject: Subject, context: Context) -> Cost:
    """At most this: inputs that get through leave early."""
    n, steps = _budget(context)
    n = min(n, len(subject.test))
    return Cost(forward=n * 6 * 30, backward=n * steps * (1 + 2 * 6 * len(WEIGHTS)))


PROPERTY = Property(
    NAME,
    "Detection of adversarial inputs",
    measure,
    _cost,
    profiles=("standard", "deep"),
    needs=Access.WEIGHTS,
    most=MOST,
    moves="scaled",
    free=True,
)
