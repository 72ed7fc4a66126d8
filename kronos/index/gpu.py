"""`Gpus` and `GpuRows`: the main part of a `LayeredIndex` on GPUs, through a FAISS that can.

The rows on the host stay the truth: a GPU proposes candidates, and the rows on the host decide
which of them may be found, and score them. FAISS's GPU kernels know no selection of rows, so where
too few of the candidates may be found the host compares. When a GPU's memory is full, or FAISS
throws another error, the host goes on with a warning; a fault of the GPU itself, which FAISS meets
with abort(), ends the process, and no acknowledged write is lost with it. The faiss module is
handed in, so that a test can hand in a stand-in. Not run on a GPU yet: `python -m benchmarks.gpu`
does that.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.concurrency.forking import follow_forks, never_free
from kronos.devices import gpu_numbers
from kronos.errors import KronosWarning
from kronos.index.faiss import Rows, bits_of, settle_ties
from kronos.index.refining import HALF_ERROR, LONGEST_HALF, longest, refine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kronos.index.policy import IndexPolicy
    from kronos.types import Keys, Vectors

_IMPORTED_IN = os.getpid()
_MOST = 2048
"""FAISS's GPU kernels select no more."""
_FEW = 4096
"""So many rows the host compares sooner than a GPU is asked."""
_ERROR = 2.0**-14
"""How far a GPU's float32 score may be off: it adds up in another order."""
_TEMPORARY = 256 * 2**20
"""Bytes that a copy may use to search. FAISS would take 1.5 GiB, twice while one copy takes the
place of another: each has resources of its own, as threads cannot share them."""
_TRAINED_ON = 64
"""Rows for each list of an inverted file that the centres are made from."""


class Gpus:
    """The GPUs that hold the main part of one index.

    Args:
        numbers: which, at least one.
        library: the faiss module.
        policy: what they are to hold.
    """

    def __init__(self, numbers: Sequence[int], library: Any, policy: IndexPolicy) -> None:
        self.numbers = list(numbers)
        self._failed = False
        self._process = os.getpid()
        self._library = library
        self._policy = policy

    @classmethod
    def on(cls, device: str, library: Any, policy: IndexPolicy) -> Gpus | None:
        """The GPUs of a device; None when it names none, or FAISS can use none of them.

        Raises:
            ConfigurationError: the device has no meaning.
        """
        asked = gpu_numbers(device)
        # A CPU build has index_cpu_to_all_gpus as well, which does nothing; this it has not.
        if not hasattr(library, "StandardGpuResources") or os.getpid() != _IMPORTED_IN:
            return None
        present = range(library.get_num_gpus())
        numbers = [number for number in present if asked is None or number in asked]
        return cls(numbers, library, policy) if numbers and policy.uses_gpu else None

    @property
    def usable(self) -> bool:
        """False once one failed, and in a forked child, where CUDA does not work."""
        return not self._failed and os.getpid() == self._process

    def hold(self, rows: Rows) -> Rows:
        """Copy rows to the GPUs; the rows as they were, after a warning, where that fails."""
        policy, vectors = self._policy, rows.vectors
        half = policy.gpu_half and longest(vectors) <= LONGEST_HALF
        lists = policy.lists(len(rows))
        try:
            empty = self._inverted(vectors, lists, half) if lists else self._flat(rows)
            copy = self._copy(empty, self.numbers, half)
            # In one call: FAISS takes no more rows into a flat index that is cut over GPUs.
            copy.add(vectors)
        except (RuntimeError, MemoryError) as exc:
            self.give_up(len(rows), exc)
            return rows
        error = 0.0 if lists else HALF_ERROR * LONGEST_HALF if half else _ERROR
        return GpuRows(rows, copy, self, error, policy.probes(lists) if lists else None)

    def give_up(self, count: int, exc: Exception) -> None:
        """Go on without GPUs."""
        self._failed = True
        warnings.warn(
            f"the index of {count} vectors goes on without the GPU: {exc}",
            KronosWarning,
            stacklevel=5,
        )

    def _flat(self, rows: Rows) -> Any:
        return self._library.IndexFlatIP(rows.vectors.shape[1])

    def _inverted(self, vectors: Vectors, lists: int, half: bool) -> Any:
        """An empty inverted file, whose centres one GPU has found."""
        faiss, dim = self._library, vectors.shape[1]
        centres, metric = faiss.IndexFlatIP(dim), faiss.METRIC_INNER_PRODUCT
        if half:  # useFloat16 is for flat indexes alone
            kind = faiss.ScalarQuantizer.QT_fp16
            index = faiss.IndexIVFScalarQuantizer(centres, dim, lists, kind, metric)
        else:
            index = faiss.IndexIVFFlat(centres, dim, lists, metric)
        index.nprobe = self._policy.probes(lists)
        trained = self._copy(index, self.numbers[:1], half)
        step = max(len(vectors) // (lists * _TRAINED_ON), 1)
        trained.train(np.ascontiguousarray(vectors[::step]))
        return faiss.index_gpu_to_cpu(trained)

    def _copy(self, index: Any, numbers: list[int], half: bool) -> Any:
        faiss = self._library
        resources = [faiss.StandardGpuResources() for _ in numbers]
        for each in resources:
            each.setTempMemory(_TEMPORARY)
        if len(numbers) == 1:
            options = faiss.GpuClonerOptions()
            options.useFloat16 = half
            _leave_cuvs(options)
            return faiss.index_cpu_to_gpu(resources[0], numbers[0], index, options)
        options = faiss.GpuMultipleClonerOptions()
        options.useFloat16, options.shard = half, self._policy.gpu_shards
        _leave_cuvs(options)
        return faiss.index_cpu_to_gpu_multiple_py(resources, index, options, numbers)


class GpuRows(Rows):
    """Rows that change no more, with a copy on GPUs.

    Args:
        rows: those on the host.
        copy: FAISS's index of them.
        gpus: where it is.
        error: how far its scores may be off; 0: it is approximate.
        probes: of how many lists a search reads; None: there are none, and all is compared.
    """

    def __init__(self, rows: Rows, copy: Any, gpus: Gpus, error: float, probes: int | None) -> None:
        super().__init__(rows.flat)
        self.probes = probes
        self._copy = copy
        self._gpus = gpus
        self._error = error
        follow_forks(self)

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Leave the GPU to the parent: FAISS ends a child that touches it."""
        if in_child and self._copy is not None:
            never_free(self._copy)
            self._copy = None

    def scan(
        self, queries: Vectors, k: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Find the k nearest rows of each query; see `Rows.scan`."""
        found = self._ask(queries, k, allowed)
        return super().scan(queries, k, allowed) if found is None else found

    def pick(
        self, queries: Vectors, k: int, rows: NDArray[np.intp], keys: Keys
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest of some rows; see `Rows.pick`.

        The rows are ascending, as keys are: a build puts rows in the order of their keys.
        """
        found = None
        if rows.size > _FEW:
            found = self._ask(queries, min(k, rows.size), bits_of(rows, len(self)))
        if found is None:
            return super().pick(queries, k, rows, keys)
        return settle_ties(found[0], keys[np.searchsorted(rows, found[1])])

    def _ask(
        self, queries: Vectors, k: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, NDArray[np.int64]] | None:
        """What the GPU finds; None: the host is to compare."""
        most = min(len(self), _MOST)
        if self._copy is None or not self._gpus.usable or k > most:
            return None
        try:
            return refine(
                self._copy.search,
                queries,
                k,
                self.vectors,
                most=most,
                error=self._error,
                allowed=allowed,
            )
        except (RuntimeError, MemoryError) as exc:
            self._copy = None
            self._gpus.give_up(len(self), exc)
            return None


def _leave_cuvs(options: Any) -> None:
    """Use FAISS's own kernels: those of cuVS, where it has them, refuse lists of float16."""
    if hasattr(options, "use_cuvs"):
        options.use_cuvs = False
