"""A sample of a space's vectors, which is the same in every process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kronos.types import Keys, VectorIndex, Vectors

_BITS = 8
"""A sample has between 2 ** (_BITS - 1) and 2 ** _BITS vectors, if the index has as many."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Some vectors of an index. They depend on its keys and vectors, not on its history.

    Points are evenly spaced from 0 to the highest key, a power of 2 apart. The sample is the first
    key at or after each point. So it takes many writes until the points change.
    """

    keys: Keys
    """Ascending: (n,) int64."""
    vectors: Vectors
    """(n, dim) float32."""
    next_point: int
    """The first point above the highest key: a key from here on is sampled too."""

    @classmethod
    def of(cls, index: VectorIndex | None) -> Sample:
        """Take the sample of an index; None has an empty one."""
        held = np.empty(0, np.int64) if index is None else index.keys()
        if index is None or not held.size:
            return cls(held, np.empty((0, 0), np.float32), 0)
        step = max(2 ** (int(held[-1]).bit_length() - _BITS), 1)
        points = np.arange(0, int(held[-1]) + 1, step)
        keys = np.unique(held[np.searchsorted(held, points)])
        return cls(keys, index.vectors_of(keys), int(points[-1]) + step)

    def is_changed_by(self, changed: Keys) -> bool:
        """Whether writing or removing these keys may change the sample."""
        if not changed.size:
            return False
        return bool(changed.max() >= self.next_point or np.isin(changed, self.keys).any())
