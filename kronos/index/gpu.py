"""`GpuCopy`: a copy of a flat index on a GPU, through a FAISS that can.

The index on the CPU stays the truth: removals, filters and snapshots are its own. The faiss module
is handed in, so that nothing here imports it and a test can hand in a stand-in.
Not run on a GPU yet.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from kronos.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kronos.types import Vectors

MAX_K = 2048
"""FAISS's GPU kernels select no more."""
_DEVICE = re.compile(r"cpu|mps|auto|cuda(?::(?P<number>\d+))?")


class GpuCopy:
    """A copy of a flat index on a GPU, brought up to date when it is asked.

    Args:
        number: which GPU.
        library: the faiss module.
    """

    def __init__(self, number: int, library: Any) -> None:
        self._number = number
        self._library = library
        self._resources: Any = None
        self._copy: Any = None

    @classmethod
    def on(cls, device: str, library: Any) -> GpuCopy | None:
        """Prepare a copy on a device; None when it is no GPU, or none that FAISS can use.

        Raises:
            ConfigurationError: the device has no meaning.
        """
        match = _DEVICE.fullmatch(device)
        if match is None:
            raise ConfigurationError(
                f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps", not {device!r}',
                field="device",
            )
        # A CPU build has index_cpu_to_all_gpus as well, which does nothing; these it has not.
        if device in ("cpu", "mps") or not hasattr(library, "StandardGpuResources"):
            return None
        number = int(match["number"] or 0)
        return cls(number, library) if number < library.get_num_gpus() else None

    def spoil(self) -> None:
        """A row was overwritten or removed: the next search copies the index anew."""
        self._copy = None

    def search(
        self, queries: Vectors, k: int, flat: Any, vectors: Vectors
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Search the copy, after it was given what is new.

        Args:
            queries: (n, dim) float32.
            k: how many rows, 1 to 2048.
            flat: the index on the CPU.
            vectors: its rows: (m, dim) float32.

        Returns:
            (n, k) scores and rows.

        Raises:
            RuntimeError: the GPU failed, e.g. its memory is full.
        """
        if self._copy is None:
            # Made once: each holds memory on the GPU.
            self._resources = self._resources or self._library.StandardGpuResources()
            self._copy = self._library.index_cpu_to_gpu(self._resources, self._number, flat)
        elif self._copy.ntotal < len(vectors):
            self._copy.add(vectors[self._copy.ntotal :])
        scores, rows = self._copy.search(queries, k)
        return scores, rows
