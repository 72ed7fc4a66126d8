"""`Gpus` and `GpuRows`: the main part of a `LayeredIndex` on GPUs, with a FAISS that supports them.

A GPU proposes candidates. The rows on the host decide which candidates may be found, and score
them. FAISS's GPU kernels do not support bitmaps of allowed rows, so the host compares when too few
candidates are allowed. When a GPU's memory is full, or FAISS raises another error, the host goes on
with a warning. On a hardware fault FAISS aborts the process; no acknowledged write is lost then.
The faiss module is an argument, so that tests can pass a stand-in.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.concurrency.forking import keep_forever, notify_of_forks
from kronos.devices import gpu_numbers
from kronos.errors import KronosWarning
from kronos.index.base import order_ties
from kronos.index.faiss.rows import Rows, bits_of
from kronos.index.gpu.rescoring import HALF_ERROR, MAX_HALF_LENGTH, longest, rescore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kronos.index.policy import IndexPolicy
    from kronos.types import Keys, Vectors

_IMPORTING_PROCESS = os.getpid()
_MAX_K = 2048
"""FAISS's GPU kernels select no more rows than this."""
_PICK_ON_HOST = 4096
"""Up to this many allowed rows are compared on the host, without asking a GPU."""
_ERROR = 2.0**-14
"""The largest error of a GPU's float32 score, which sums in another order than the host."""
_TEMPORARY_BYTES = 256 * 2**20
"""Memory for a copy's searches. FAISS's default is 1.5 GiB, and it is needed twice while a new copy
replaces an old one: each copy has its own resources, since threads cannot share them."""
_TRAINED_ROWS_PER_LIST = 64
"""Rows for each list of an inverted file that its centroids are trained on."""


class Gpus:
    """The GPUs that hold the main part of one index.

    Args:
        numbers: the numbers of the GPUs, at least one.
        library: the faiss module.
        policy: what they hold.
    """

    def __init__(self, numbers: Sequence[int], library: Any, policy: IndexPolicy) -> None:
        self.numbers = list(numbers)
        self._failed = False
        self._process = os.getpid()
        self._library = library
        self._policy = policy

    @classmethod
    def on(cls, device: str, library: Any, policy: IndexPolicy) -> Gpus | None:
        """The GPUs of a device; None if it names none, or FAISS can use none of them.

        Raises:
            ConfigurationError: the device's name has no meaning.
        """
        asked = gpu_numbers(device)
        # A CPU build also has index_cpu_to_all_gpus, which does nothing there; it lacks this one.
        if not hasattr(library, "StandardGpuResources") or os.getpid() != _IMPORTING_PROCESS:
            return None
        present = range(library.get_num_gpus())
        numbers = [number for number in present if asked is None or number in asked]
        return cls(numbers, library, policy) if numbers and policy.uses_gpu else None

    @property
    def usable(self) -> bool:
        """False after a failure, and in a forked child, where CUDA does not work."""
        return not self._failed and os.getpid() == self._process

    def hold(self, rows: Rows) -> Rows:
        """Copy rows to the GPUs.

        Returns:
            Rows with a copy on the GPUs; the given rows, after a warning, if copying failed.
        """
        policy, vectors = self._policy, rows.vectors
        half = policy.gpu_half and longest(vectors) <= MAX_HALF_LENGTH
        lists = policy.lists(len(rows))
        try:
            empty = self._inverted(vectors, lists, half) if lists else self._flat(rows)
            copy = self._copy(empty, self.numbers, half)
            # In one call: FAISS adds no second time to a flat index that is sharded over GPUs.
            copy.add(vectors)
        except (RuntimeError, MemoryError) as exc:
            self.give_up(len(rows), exc)
            return rows
        error = 0.0 if lists else HALF_ERROR * MAX_HALF_LENGTH if half else _ERROR
        return GpuRows(rows, copy, self, error, policy.probes(lists) if lists else None)

    def give_up(self, count: int, exc: Exception) -> None:
        """Use no GPU any more, and warn."""
        self._failed = True
        warnings.warn(
            f"the index of {count} vectors goes on without the GPU: {exc}",
            KronosWarning,
            stacklevel=5,
        )

    def _flat(self, rows: Rows) -> Any:
        return self._library.IndexFlatIP(rows.vectors.shape[1])

    def _inverted(self, vectors: Vectors, lists: int, half: bool) -> Any:
        """An empty inverted file whose centroids were trained on one GPU."""
        faiss, dim = self._library, vectors.shape[1]
        centroids, metric = faiss.IndexFlatIP(dim), faiss.METRIC_INNER_PRODUCT
        if half:  # useFloat16 works for flat indexes only
            kind = faiss.ScalarQuantizer.QT_fp16
            index = faiss.IndexIVFScalarQuantizer(centroids, dim, lists, kind, metric)
        else:
            index = faiss.IndexIVFFlat(centroids, dim, lists, metric)
        index.nprobe = self._policy.probes(lists)
        trained = self._copy(index, self.numbers[:1], half)
        step = max(len(vectors) // (lists * _TRAINED_ROWS_PER_LIST), 1)
        trained.train(np.ascontiguousarray(vectors[::step]))
        return faiss.index_gpu_to_cpu(trained)

    def _copy(self, index: Any, numbers: list[int], half: bool) -> Any:
        faiss = self._library
        resources = [faiss.StandardGpuResources() for _ in numbers]
        for each in resources:
            each.setTempMemory(_TEMPORARY_BYTES)
        if len(numbers) == 1:
            options = faiss.GpuClonerOptions()
            options.useFloat16 = half
            _disable_cuvs(options)
            return faiss.index_cpu_to_gpu(resources[0], numbers[0], index, options)
        options = faiss.GpuMultipleClonerOptions()
        options.useFloat16, options.shard = half, self._policy.gpu_shards
        _disable_cuvs(options)
        return faiss.index_cpu_to_gpu_multiple_py(resources, index, options, numbers)


class GpuRows(Rows):
    """Rows that do not change, with a copy on GPUs.

    Args:
        rows: the rows on the host.
        copy: FAISS's index of them on the GPUs.
        gpus: the GPUs.
        error: the largest error of the copy's scores; 0 if its search is approximate.
        probes: how many lists a search reads; None if there are none and it compares all rows.
    """

    def __init__(self, rows: Rows, copy: Any, gpus: Gpus, error: float, probes: int | None) -> None:
        super().__init__(rows.flat)
        self.probes = probes
        self._copy = copy
        self._gpus = gpus
        self._error = error
        notify_of_forks(self)

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Leave the GPU to the parent: FAISS aborts a child that touches it."""
        if in_child and self._copy is not None:
            keep_forever(self._copy)
            self._copy = None

    def scan(
        self, queries: Vectors, k: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Find the k nearest rows of each query; see `Rows.scan`."""
        found = self._search_copy(queries, k, allowed)
        return super().scan(queries, k, allowed) if found is None else found

    def pick(
        self, queries: Vectors, k: int, rows: NDArray[np.intp], keys: Keys
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest among some rows; see `Rows.pick`.

        Rows ascend as their keys do, since a build orders rows by key.
        """
        found = None
        if rows.size > _PICK_ON_HOST:
            found = self._search_copy(queries, min(k, rows.size), bits_of(rows, len(self)))
        if found is None:
            return super().pick(queries, k, rows, keys)
        return order_ties(found[0], keys[np.searchsorted(rows, found[1])])

    def _search_copy(
        self, queries: Vectors, k: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, NDArray[np.int64]] | None:
        """What the GPUs find; None if the host must compare."""
        most = min(len(self), _MAX_K)
        if self._copy is None or not self._gpus.usable or k > most:
            return None
        try:
            return rescore(
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


def _disable_cuvs(options: Any) -> None:
    """Use FAISS's own kernels: cuVS's kernels, if present, refuse float16 lists."""
    if hasattr(options, "use_cuvs"):
        options.use_cuvs = False
