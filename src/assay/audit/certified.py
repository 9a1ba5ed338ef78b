"""Certified robustness: what no attack can break, by interval bounds (linf) and by randomised smoothing (l2)."""

from __future__ import annotations

from assay.audit.property import MOST, Context, Cost, Plot, Property, Section, other_precision
from assay.certify import IBP, RandomizedSmoothing, propagation_tightness
from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.metric import measured
from assay.subject import Access, Subject

EPS = (0.005, 0.01, 0.02, 0.05)
RADII = (0.0, 0.25, 0.5)
SIGMA = 0.25
TIGHTNESS = (0.01, 500)  # the radius, of the input range, and the most samples of propagation tightness


def _used(subject: Subject, context: Context, budget: int | None) -> Data:
    """The samples that this audit certifies: the context's limit, but no more than the profile's budget."""
    caps = [n for n in (context.limit, budget) if n is not None]
    return subject.test.limit(min(caps), seed=context.seed) if caps else subject.test


def _linf_data(subject: Subject, context: Context) -> Data:
    return _used(subject, context, context.pick(1000, 5000, None))


def measure_linf(subject: Subject, context: Context) -> Section:
    """Certified accuracy in linf balls, by interval bound propagation; skipped where an operator has no rule, or
    the model computes in another type of numbers than its inputs."""
    data = _linf_data(subject, context)
    if (found := other_precision(subject)) is not None:
        return Section(skipped=f"bounds are in {str(data.x.dtype).removeprefix('torch.')}; the model holds {found}")
    low, high = data.bounds
    section = Section(headline=["certified.linf.accuracy@0.01"])
    index, rates = data.index.numpy(), []
    for eps in EPS:
        certifier = IBP(eps=eps * (high - low), bounds=data.bounds)
        try:
            verdict = certifier.certify(subject.model, data.x, data.y).verdict
        except InputError as error:
            return Section(skipped=str(error))
        how = f"IBP, eps {eps:g} of the input range, {len(data)} samples of {data.name}"
        name = f"certified.linf.accuracy@{eps:g}"
        rates.append(section.add(measured(name, verdict.numpy(), index, better="higher", how=how)).value or 0.0)
    if context.profile == "deep":
        _add_tightness(section, subject, data.limit(TIGHTNESS[1], seed=context.seed))
    line = {"certified": {"x": list(EPS), "y": rates}}
    section.plots.append(Plot("line", "Certified accuracy (linf)", line, "eps / input range", "accuracy"))
    section.notes.append("A lower bound: what interval bounds cannot certify may still be robust.")
    share = rates[EPS.index(0.01)]
    text = f"Interval bounds prove {share:.1%} of the test samples right under every linf change of 1% of the range."
    section.findings.append((0.2 * (1 - share), text))  # an unproved sample is no broken one
    return section


def _add_tightness(section: Section, subject: Subject, data: Data) -> None:
    """Propagation tightness, where every layer has it: the share of the interval box of the margins that is reached."""
    low, high = data.bounds
    eps = TIGHTNESS[0]
    try:
        found = propagation_tightness(subject.model, data.x, data.y, eps=eps * (high - low), data_range=data.bounds)
    except InputError as error:
        section.notes.append(f"Propagation tightness is not measured: {error}")
        return
    how = f"linearised at each sample, eps {eps:g} of the input range, mean of margins, {len(data)} samples"
    section.add(measured(f"certified.linf.tightness@{eps:g}", found.mean(1).numpy(), data.index.numpy(), how=how))
    section.notes.append(
        "Propagation tightness (optimal over interval box, 1 at best) says how well interval bounds suit the model, "
        "not how robust it is."
    )


def _smoothing(data: Data, context: Context) -> RandomizedSmoothing:
    n0, n = context.pick((50, 400), (100, 1000), (100, 10_000))
    return RandomizedSmoothing(sigma=SIGMA * (data.bounds[1] - data.bounds[0]), n0=n0, n=n)


def _l2_data(subject: Subject, context: Context) -> Data:
    return _used(subject, context, context.pick(50, 200, 500))


def measure_l2(subject: Subject, context: Context) -> Section:
    """Certified accuracy of the smoothed classifier in l2 balls, and how often it abstains."""
    data = _l2_data(subject, context)
    certifier, width = _smoothing(data, context), data.bounds[1] - data.bounds[0]
    found = certifier.certify(subject.model, data.x, data.y, seed=context.seed, index=data.index)
    section = Section(headline=["certified.l2.accuracy@0.25"])
    index, rates = data.index.numpy(), []
    how = (
        f"smoothing, sigma {SIGMA:g} of the input range, {certifier.n} draws, alpha {certifier.alpha:g}, "
        f"{len(data)} samples of {data.name}"
    )
    for radius in RADII:
        held = (found.verdict & (found.radius >= radius * width)).numpy()
        name = f"certified.l2.accuracy@{radius:g}"
        rates.append(section.add(measured(name, held, index, better="higher", how=how)).value or 0.0)
    abstained = (found.prediction < 0).numpy()
    section.add(measured("certified.l2.abstained", abstained, index, better="lower", how=how))
    line = {"certified": {"x": list(RADII), "y": rates}}
    section.plots.append(Plot("line", "Certified accuracy (l2, smoothed)", line, "radius / input range", "accuracy"))
    section.notes.append(
        f"Each certificate holds with probability {found.confidence:g}; {certifier.n} draws certify at most the radius "
        f"{certifier.largest_radius / width:.3f} of the input range. They are about the smoothed classifier."
    )
    share = rates[RADII.index(0.25)]
    text = f"Smoothed, the model is certified right on {share:.1%} within l2 radius 0.25 of the input range."
    section.findings.append((0.2 * (1 - share), text))
    return section


def _linf_cost(subject: Subject, context: Context) -> Cost:
    n = len(_linf_data(subject, context))
    classes = len(subject.test.classes) if context.profile == "deep" else 0
    return Cost(forward=3 * len(EPS) * n, backward=classes * min(n, TIGHTNESS[1]))


def _l2_cost(subject: Subject, context: Context) -> Cost:
    data = _l2_data(subject, context)
    certifier = _smoothing(data, context)
    return Cost(forward=(certifier.n0 + certifier.n) * len(data))


PROPERTIES = (
    Property(
        "certified.linf",
        "Certified robustness (linf)",
        measure_linf,
        _linf_cost,
        needs=Access.WEIGHTS,
        moves="scaled",
        most=MOST,
    ),
    Property(
        "certified.l2",
        "Certified robustness (l2, smoothed)",
        measure_l2,
        _l2_cost,
        needs=Access.DECISION,
        moves="scaled",
        most=MOST,
    ),
)
