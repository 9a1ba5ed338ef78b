"""The privacy of a mechanism on a finite universe, by enumeration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement

import numpy as np
from jaxtyping import Float

from assay.privacy.differential.piecewise_constant import PiecewiseConstant
from assay.runtime.errors import InputError

Sample = tuple[float, ...]
ROUNDING = 1e-12  # of the range: edges that are one number in exact arithmetic differ by less


def neighbours(universe: Sequence[float], n: int) -> Iterator[tuple[Sample, Sample]]:
    """All pairs of samples of n values of ``universe``, as sorted tuples, that differ in one replaced value."""
    values = sorted(universe)
    for rest in combinations_with_replacement(values, n - 1):
        samples = [tuple(sorted((*rest, v))) for v in values]
        yield from ((a, b) for k, a in enumerate(samples) for b in samples[k + 1 :])


def dp_audit_exact(
    mechanism: Callable[[Float[np.ndarray, " n"]], PiecewiseConstant], universe: Sequence[float], n: int
) -> float:
    """The largest |log p_S(t) - log p_S'(t)| over all t and all neighbours S, S' of ``n`` values of ``universe``.

    ``mechanism`` gives the density of its output on a sample; the order of a sample is taken not to matter. A mechanism
    is eps-DP on this universe exactly where the result is at most eps; math.inf where supports differ. The number of
    samples grows as n^(|universe| - 1). Pieces narrower than 1e-12 of the range are taken for rounding. InputError for
    fewer than two values or n < 1.
    """
    if len(set(universe)) < 2 or n < 1:
        raise InputError(f"dp_audit_exact: {len(set(universe))} values, n={n}; expected two or more, n >= 1")
    known: dict[Sample, PiecewiseConstant] = {}

    def density(sample: Sample) -> PiecewiseConstant:
        if sample not in known:
            known[sample] = mechanism(np.array(sample))
        return known[sample]

    return max(_log_ratio(density(a), density(b)) for a, b in neighbours(universe, n))


def _log_ratio(p: PiecewiseConstant, q: PiecewiseConstant) -> float:
    """The largest |log p - log q|, seen in the middle of every piece of either that is wider than rounding."""
    edges = np.unique(np.concatenate((p.edges, q.edges)))
    wide = np.diff(edges) > ROUNDING * (edges[-1] - edges[0])
    middle = ((edges[1:] + edges[:-1]) / 2)[wide]
    first, second = p.log_pdf(middle), q.log_pdf(middle)
    either = np.isfinite(first) | np.isfinite(second)
    return float(np.abs(first[either] - second[either]).max())
