"""The NumPy arrays that pass between the parts of Kronos."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]
"""(n, dim) or (dim,) float32."""
Keys: TypeAlias = NDArray[np.int64]
"""(n,) int64: the integer keys that identify memories in SQL and in every index."""
