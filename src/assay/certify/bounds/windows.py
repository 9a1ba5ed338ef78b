"""Coefficients that are zero outside a small window of each map, as those of a convolution's outputs are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Coefficients of maps (n, c, h, w): ``values`` (s, n, c, a, b) from row ``top`` and column ``left`` (s, n) on.

    ``size`` is (h, w). Windows may reach beyond the maps, where values are zero.
    """

    values: Tensor
    top: Tensor
    left: Tensor
    size: tuple[int, int]

    @classmethod
    def one_hot(cls, shape: torch.Size, where: Tensor, dtype: torch.dtype) -> Windows:
        """A one at position ``where`` (s, n), counted within each sample's map of ``shape`` (n, c, h, w)."""
        _, c, h, w = shape
        values = F.one_hot(where // (h * w), c).to(dtype)[..., None, None]
        return cls(values, where % (h * w) // w, where % w, (h, w))

    def having(self, values: Tensor) -> Windows:
        """Other values in the same windows."""
        return replace(self, values=values)

    def __neg__(self) -> Windows:
        return self.having(-self.values)

    def joined(self, other: Windows) -> Windows:
        """The rows of both, of one window's size."""
        parts = ((self.values, other.values), (self.top, other.top), (self.left, other.left))
        values, top, left = (torch.cat(p) for p in parts)
        return Windows(values, top, left, self.size)

    def plus(self, other: Windows) -> Windows | None:
        """The sum, in windows that hold both; None where their corners do not lie alike in every row."""
        down, right = other.top - self.top, other.left - self.left
        if (down != down.flatten()[0]).any() or (right != right.flatten()[0]).any():
            return None
        first, a = self._framed(int(down.flatten()[0]), int(right.flatten()[0]), other.values.shape[3:])
        second, _ = other._framed(-int(down.flatten()[0]), -int(right.flatten()[0]), self.values.shape[3:])
        return Windows(first + second, self.top - a[0], self.left - a[1], self.size)

    def _framed(self, down: int, right: int, shape: torch.Size) -> tuple[Tensor, tuple[int, int]]:
        """Values in the least frame that also holds a window of ``shape`` so far down and right; how it was grown."""
        a, b = self.values.shape[3:]
        above, before = max(-down, 0), max(-right, 0)
        below, after = max(down + shape[0] - a, 0), max(right + shape[1] - b, 0)
        return F.pad(self.values, (before, after, above, below)), (above, before)

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (s, n, a) and columns (s, n, b) of each window, and which lie on the map (s, n, 1, a, b)."""
        rows = self.top[..., None] + torch.arange(self.values.shape[3], device=self.top.device)
        columns = self.left[..., None] + torch.arange(self.values.shape[4], device=self.top.device)
        h, w = self.size
        inside = ((rows >= 0) & (rows < h))[..., None] & ((columns >= 0) & (columns < w))[..., None, :]
        return rows.clamp(0, h - 1), columns.clamp(0, w - 1), inside[:, :, None]

    def read(self, maps: Tensor) -> Tensor:
        """Values of ``maps``, (n, c, h, w) or (s, n, c, h, w) or broadcastable, in the windows: (s, n, c, a, b)."""
        s, n, c = self.values.shape[:3]
        maps = maps.expand(*maps.shape[:-4], n, c, *self.size)
        rows, columns, _ = self._places()
        sample = torch.arange(n, device=rows.device)[:, None, None, None]
        channel = torch.arange(c, device=rows.device)[:, None, None]
        place = (sample, channel, rows[:, :, None, :, None], columns[:, :, None, None, :])
        if maps.dim() == 4:
            return maps[place]
        return maps[(torch.arange(s, device=rows.device)[:, None, None, None, None], *place)]

    def dot(self, maps: Tensor) -> Tensor:
        """The coefficients times ``maps``, summed to (s, n)."""
        return (self.values * self.read(maps)).flatten(2).sum(2)

    def dense(self) -> Tensor:
        """The coefficients on the whole maps, (s, n, c, h, w)."""
        rows, columns, _ = self._places()
        h, w = self.size
        place = (rows[..., None] * w + columns[..., None, :]).flatten(2)[:, :, None]
        flat = self.values.flatten(3)
        out = flat.new_zeros(*flat.shape[:3], h * w).scatter_add(3, place.expand_as(flat), flat)
        return out.unflatten(3, (h, w))

    def through(
        self,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        size: tuple[int, int],
    ) -> Windows:
        """The coefficients of what a convolution reads, maps of ``size``: larger windows, zero beyond the border."""
        values = F.conv_transpose2d(self.values.flatten(0, 1), weight, None, stride, 0, 0, groups, dilation)
        top, left = self.top * stride[0] - padding[0], self.left * stride[1] - padding[1]
        found = Windows(values.unflatten(0, self.values.shape[:2]), top, left, size)
        return found.having(found.values * found._places()[2])

    @property
    def small(self) -> bool:
        """Whether the windows save anything over whole maps."""
        return 2 * self.values.shape[3] * self.values.shape[4] < self.size[0] * self.size[1]
