"""A Gaussian for each class on its leading principal components: where a sampler starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.data import Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import Draws


@dataclass(frozen=True, eq=False)
class ClassPCA:
    """What ``class_pca`` gives: by class the mean (d,), the components (k, d) and their singular values (k,)."""

    shape: tuple[int, ...]
    bounds: tuple[float, float]
    means: Mapping[int, Float[Tensor, " d"]]
    components: Mapping[int, Float[Tensor, "k d"]]
    scales: Mapping[int, Float[Tensor, " k"]]

    def draw(self, y: Int[Tensor, " n"], *, seed: int, sigma: float = 0.005) -> Float[Tensor, "n ..."]:
        """mu + sum_i alpha_i PC_i, alpha_i ~ N(0, (``sigma`` s_i)^2), cut to the bounds, one sample a label.

        A singular value s_i is sqrt(samples of the class - 1) times a standard deviation: at 1 / s_i of that factor
        the draws spread as the data do. Raises InputError for a class that was not seen.
        """
        check_labels("ClassPCA", y, len(y))
        unseen = [k for k in y.unique().tolist() if k not in self.means]
        if unseen or not sigma >= 0:
            raise InputError(f"ClassPCA: sigma={sigma}, unseen classes {unseen}; expected sigma >= 0 and known classes")
        most = max(len(s) for s in self.scales.values())
        noise = Draws(seed, "class pca", torch.arange(len(y))).normal(max(most, 1))
        x = torch.empty(len(y), *self.shape)
        for k in y.unique().tolist():
            rows = (y == k).nonzero()[:, 0]
            alpha = sigma * noise[rows, : len(self.scales[k])] * self.scales[k]
            x[rows] = (self.means[k] + alpha @ self.components[k]).reshape(-1, *self.shape)
        return x.clamp(*self.bounds)


def class_pca(data: Data, retained: float = 0.75) -> ClassPCA:
    """Mean and principal components of each class, as many as explain ``retained`` of its variance.

    The start of the sampler of Mirza et al. (2024, arXiv:2407.06315, section 5), who retain 0.75 to 0.95; the component
    that reaches the share is kept. Raises InputError on unusable data and unless 0 < ``retained`` <= 1.
    """
    check_inputs("class_pca", data.x, data.y, data.bounds)
    if not 0 < retained <= 1:
        raise InputError(f"class_pca: retained={retained}; expected a share in (0, 1]")
    means, components, scales = {}, {}, {}
    for k in data.y.unique().tolist():
        x = data.x[data.y == k].flatten(1)
        means[k] = x.mean(0)
        _, s, v = torch.linalg.svd(x - means[k], full_matrices=False)
        share = s.square().cumsum(0) / s.square().sum().clamp_min(1e-30)
        kept = min(int((share < retained).sum()) + 1, len(s))
        components[k], scales[k] = v[:kept], s[:kept]
    return ClassPCA(data.shape, data.bounds, means, components, scales)
