"""Counter-based randomness: each draw is a function of (seed, stream, sample index), never of batch or worker.

Philox-4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"), vectorised over samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def derive(seed: int, *names: object) -> int:
    """A child seed in [0, 2**63): independent for every different tuple of names."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *names: object) -> np.random.Generator:
    """A NumPy generator for (seed, names)."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))


def torch_rng(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for (seed, names)."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


@contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Seed torch's global generator inside the block and put its state back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, *names))
        yield


def philox(counter: Int[Tensor, "*s 4"], key: tuple[int, int]) -> Int[Tensor, "*s 4"]:
    """Ten rounds of Philox-4x32 on 32-bit words held in int64 tensors."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1  # wraps modulo 2**64, so both 32-bit halves are right
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack((c0, c1, c2, c3), -1)


class Draws:
    """A stream of random numbers for each sample of a batch; every call moves every stream on.

    ``index`` (n,) int64 names the samples: the same (seed, stream, index) gives the same numbers in any batch.
    """

    def __init__(self, seed: int, stream: str, index: Int[Tensor, " n"]) -> None:
        key = derive(seed, stream)
        self.key = (key & _MASK, (key >> 32) & _MASK)
        self.index = index.long()
        self.position = 0

    def select(self, keep: Tensor) -> Draws:
        """The streams of the samples that ``keep`` (mask or positions) selects, at the same position."""
        other = object.__new__(Draws)
        other.key, other.index, other.position = self.key, self.index[keep], self.position
        return other

    def _words(self, shape: tuple[int, ...]) -> Int[Tensor, "n d"]:
        size = math.prod(shape)
        blocks = -(-size // 4)
        index = self.index[:, None]
        block = torch.arange(self.position, self.position + blocks, device=index.device)[None]
        self.position += blocks
        n = index.shape[0]
        counter = torch.stack(
            (
                (index & _MASK).expand(n, blocks),
                ((index >> 32) & _MASK).expand(n, blocks),
                (block & _MASK).expand(n, blocks),
                (block >> 32).expand(n, blocks),
            ),
            -1,
        )
        return philox(counter, self.key).flatten(1)[:, :size]

    def uniform(self, *shape: int) -> Float[Tensor, n * shape]:
        """Uniform in (0, 1], float32, ``shape`` per sample: 1.0 is what the largest of 2**24 values rounds to."""
        u = ((self._words(shape) >> 8).float() + 0.5) * 2.0**-24
        return u.reshape(-1, *shape)

    def normal(self, *shape: int) -> Float[Tensor, n * shape]:
        """Standard normal by Box-Muller, float32, ``shape`` per sample."""
        half = -(-math.prod(shape) // 2)
        u = self.uniform(2, half)
        r = (-2.0 * u[:, 0].log()).sqrt()
        t = (2.0 * math.pi) * u[:, 1]
        return torch.cat((r * t.cos(), r * t.sin()), 1)[:, : math.prod(shape)].reshape(-1, *shape)

    def integers(self, high: int, *shape: int) -> Int[Tensor, n * shape]:
        """Integers in [0, high), int64, ``shape`` per sample (high below 2**31)."""
        return ((self._words(shape) * high) >> 32).reshape(-1, *shape)

    def signs(self, *shape: int) -> Float[Tensor, n * shape]:
        """+1 or -1 with equal probability."""
        return self.integers(2, *shape).float() * 2 - 1
