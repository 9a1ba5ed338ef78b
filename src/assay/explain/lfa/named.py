"""Eight explanation methods as one (Han et al., 2022, arXiv:2206.01254, table 1): each is a neighbourhood and a loss.

Each function gives a LocalFunctionApproximation; ``options`` are its other fields (n_samples, batch_size, g ...).
"""

from __future__ import annotations

from typing import Any, Literal

from assay.explain.lfa.approximation import LocalFunctionApproximation
from assay.explain.lfa.neighbourhood import Bernoulli, Gaussian, OneHot, Path, Shapley


def lime(
    *,
    width: float | None = 1.0,
    distance: Literal["input", "mask"] = "input",
    baseline: float = 0.0,
    **options: Any,
) -> LocalFunctionApproximation:
    """LIME (Ribeiro et al., 2016, arXiv:1602.04938): random masks, squared error under an exponential kernel.

    ``width`` is in the units of x; None weighs all masks alike.
    """
    space = Bernoulli(width=width, distance=distance, baseline=baseline)
    return LocalFunctionApproximation(neighbourhood=space, loss="squared", **options)


def c_lime(*, sigma: float = 0.1, **options: Any) -> LocalFunctionApproximation:
    """C-LIME (Agarwal et al., 2021, arXiv:2102.10618): Gaussian noise, squared error; sigma in the units of x."""
    return LocalFunctionApproximation(neighbourhood=Gaussian(sigma=sigma), loss="squared", **options)


def kernel_shap(*, baseline: float = 0.0, enumerate: int = 10, **options: Any) -> LocalFunctionApproximation:
    """KernelSHAP (Lundberg & Lee, 2017, arXiv:1705.07874): masks under the Shapley kernel, squared error.

    Up to ``enumerate`` features it gives the Shapley values of f with absent features at the baseline.
    """
    space = Shapley(baseline=baseline, enumerate=enumerate)
    return LocalFunctionApproximation(neighbourhood=space, loss="squared", **{"ridge": 0.0, **options})


def occlusion(*, baseline: float = 0.0, keep: bool = False, **options: Any) -> LocalFunctionApproximation:
    """Occlusion (Zeiler & Fergus, 2014, arXiv:1311.2901): one feature removed, squared error of the change of f.

    ``keep``: the variant of the authors' code, see OneHot.
    """
    space = OneHot(baseline=baseline, keep=keep)
    return LocalFunctionApproximation(neighbourhood=space, loss="squared", **{"ridge": 0.0, **options})


def vanilla_gradient(**options: Any) -> LocalFunctionApproximation:
    """Vanilla gradients (Simonyan et al., 2014, arXiv:1312.6034): gradient matching in the limit of no noise."""
    space = Gaussian(sigma=0.0)
    return LocalFunctionApproximation(neighbourhood=space, loss="gradient", **{"n_samples": 1, **options})


def smoothgrad(*, sigma: float = 0.1, **options: Any) -> LocalFunctionApproximation:
    """SmoothGrad (Smilkov et al., 2017, arXiv:1706.03825): Gaussian noise, gradient matching; sigma in units of x."""
    return LocalFunctionApproximation(neighbourhood=Gaussian(sigma=sigma), loss="gradient", **options)


def gradient_input(*, baseline: float = 0.0, **options: Any) -> LocalFunctionApproximation:
    """Gradients x input (Shrikumar et al., 2016, arXiv:1605.01713): gradient matching at the end of the path."""
    space = Path(low=1.0, baseline=baseline)
    return LocalFunctionApproximation(neighbourhood=space, loss="gradient", **{"n_samples": 1, **options})


def integrated_gradients(
    *,
    baseline: float = 0.0,
    rule: Literal["gauss-legendre", "riemann-left", "riemann-middle", "riemann-right", "trapezoid", "random"] = (
        "gauss-legendre"
    ),
    **options: Any,
) -> LocalFunctionApproximation:
    """Integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365): the whole path, gradient matching."""
    space = Path(baseline=baseline, rule=rule)
    return LocalFunctionApproximation(neighbourhood=space, loss="gradient", **{"n_samples": 50, **options})
