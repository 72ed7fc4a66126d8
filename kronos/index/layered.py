"""`LayeredIndex`: an immutable graph over most vectors, and an exact flat tail of recent writes.

    upsert ─→ tail (flat) ─→ frozen while it is merged ──┐
                                                         ├─→ a new main part, in one step
    main part (graph) ───────────────────────────────────┘
    remove, overwrite: a row of a part is dead: masked, and dropped by the next full build

The next search finds every write and no removed key, and `vectors_of` returns the very bits that
were added. A search compares the tail exactly. It searches the graph only if that costs less than
comparing all rows that may be found. Such a search may miss some of the nearest rows, but it always
returns as many as are asked for and held. `python -m benchmarks.index` measures recall.

With a GPU that FAISS can use, the main part is on the GPU, flat or an inverted file, instead of a
graph. With a GPU that only torch can use, everything is tail, on that GPU, and exact.

A build has three steps, so that no search waits for it: `begin_build` and `finish_build` are short,
and between them `Build.run` works on rows that do not change. Below `IndexPolicy.flat_below`
vectors there is no graph: everything is tail, and exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.errors import SnapshotError
from kronos.index.base import (
    check_keys,
    check_queries,
    check_rows,
    distinct,
    order_ties,
    require_known,
    rows_to_buffers,
)
from kronos.index.building import Build, empty_main
from kronos.index.faiss.coded import CodedRows
from kronos.index.faiss.flat import FaissIndex
from kronos.index.faiss.library import LIBRARY
from kronos.index.faiss.rows import MainRows, Rows, bits
from kronos.index.gpu.faiss_gpu import GpuRows, Gpus
from kronos.index.gpu.torch_index import TorchIndex, torch_device
from kronos.index.part import Part, without_dead_vectors
from kronos.index.part_format import MAGICS, main_to_buffers, read_main
from kronos.index.policy import IndexPolicy
from kronos.index.tuning import Tuning, TuningResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Vectors

FLAT, GRAPH, CODED = FaissIndex.kind, "faiss-hnsw", "faiss-coded"


class LayeredIndex:
    """A `VectorIndex` of a main part and a tail. Not thread-safe; its owner locks.

    Args:
        dim: the width of a vector.
        device: "auto" (GPUs if there are any), "cpu", "cuda", "cuda:N" or several with commas.
        policy: when to build which main part.
        library: the faiss module; tests pass one with stand-ins for GPUs.

    Raises:
        ConfigurationError: this FAISS cannot make the main part that the policy names.
    """

    KINDS = (FLAT, GRAPH, CODED)
    """The values of `kind`, and the kinds of bytes that `from_bytes` reads."""

    def __init__(
        self,
        dim: int,
        *,
        device: str = "auto",
        policy: IndexPolicy | None = None,
        library: Any = LIBRARY,
    ) -> None:
        self.dim = dim
        self.policy = IndexPolicy() if policy is None else policy
        self._device = device
        self._library = library
        self._gpus = Gpus.on(device, library, self.policy)
        self._parts: list[Part] = []
        """The main part, if there is one, then the parts that were tail when a build began."""
        self._tail = self._new_tail()
        empty_main(dim, self.policy)  # fails now if it could not be built later
        self._duplicates: Part | None = None
        """The part that the last build left out of the main part; see `Build.duplicates`."""
        self.tuned: TuningResult | None = None
        """The last result passed to `tune`; saved with the graph."""

    @classmethod
    def from_bytes(
        cls,
        data: bytes | memoryview,
        dim: int,
        *,
        device: str = "auto",
        policy: IndexPolicy | None = None,
        known: bool = False,
        library: Any = LIBRARY,
    ) -> LayeredIndex:
        """Read what `to_buffers` wrote, or a `FaissIndex`; nothing is built.

        Args:
            data: the bytes; the graph and its vectors are read in place, and kept alive.
            dim: the width of a vector.
            device: as for the class.
            policy: as for the class.
            known: the bytes were verified before: skip checking the vectors.
            library: as for the class.

        Raises:
            SnapshotError: the bytes are no index, or an index of another width.
        """
        index = cls(dim, device=device, policy=policy, library=library)
        if bytes(data[: len(MAGICS[0])]) in MAGICS:
            main, tail, tuned = read_main(memoryview(data), dim, index.policy, known=known)
            if tuned is not None:
                index.tune(tuned)
            index._tail = index._new_tail(tail)
            if index._tail.contains(main.live_rows()[0]).any():
                raise SnapshotError("the index holds a key twice")
            index._set_main(main)
        else:
            index._tail = index._new_tail(data)
        return index

    @property
    def kind(self) -> str:
        """The kind of the main part, and so of the bytes that `to_buffers` returns."""
        if self._main is None:
            return FLAT
        return CODED if isinstance(self._main.rows, CodedRows) else GRAPH

    @property
    def effort(self) -> int | None:
        """Candidates that a search follows, or lists that it reads; None if it compares all."""
        on_gpus = None if self._on_gpus is None else self._on_gpus.rows
        if isinstance(on_gpus, GpuRows):
            return on_gpus.probes
        return None if self._main is None else self.policy.search_effort

    def __len__(self) -> int:
        count = len(self._tail)
        for part in self._parts:  # not sum(): a generator is slower, and each search calls this
            count += part.count
        return count

    def upsert(self, keys: Keys, vectors: Vectors) -> None:
        """Set the vectors of keys; see `VectorIndex.upsert`."""
        keys, vectors = check_rows(keys, vectors, self.dim)
        for part in self._parts:
            part.mark_dead(keys)
        self._tail.upsert(keys, vectors)

    def remove(self, keys: Keys) -> int:
        """Remove keys; see `VectorIndex.remove`."""
        keys = distinct(check_keys(keys))
        return self._tail.remove(keys) + sum(part.mark_dead(keys) for part in self._parts)

    def search(
        self, queries: Vectors, k: int, *, allowed: Keys | None = None
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest keys of each query; see `VectorIndex.search`.

        Equal scores are ordered by key, lowest first. If several keys share the score of the last
        place, it is undefined which of them are returned.
        """
        queries = check_queries(queries, k, self.dim)
        if allowed is None:
            found = [part.search(queries, k, self.policy) for part in self._parts]
        else:
            allowed = distinct(check_keys(allowed))
            found = [part.search_among(queries, k, allowed, self.policy) for part in self._parts]
        if len(self._tail) or not found:
            found.append(self._tail.search(queries, k, allowed=allowed))
        return _merge(found, k)

    def keys(self) -> Keys:
        """All keys, in ascending order: (n,) int64."""
        live = [part.live_rows()[0] for part in self._parts]
        return np.sort(np.concatenate([*live, self._tail.keys()]))

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether the index holds each of the keys: (n,) bool."""
        keys = check_keys(keys)
        held = self._tail.contains(keys)
        for part in self._parts:
            held |= part.find(keys)[1]
        return held

    def vectors_of(self, keys: Keys) -> Vectors:
        """The vectors of keys: (n, dim) float32.

        Raises:
            NotFoundError: a key is not held.
        """
        keys = check_keys(keys)
        vectors = np.empty((keys.size, self.dim), np.float32)
        missing = np.ones(keys.size, np.bool_)
        for part in self._parts:
            rows, known = part.find(keys)
            vectors[known] = part.rows.vectors.take(rows, axis=0)
            missing &= ~known
        if missing.any():
            in_tail = self._tail.contains(keys)
            require_known(keys, in_tail | ~missing)
            vectors[in_tail] = self._tail.vectors_of(keys[in_tail])
        return vectors

    def to_buffers(self) -> list[memoryview]:
        """The index as bytes that `from_bytes` reads. The graph is included, and not copied."""
        main, tail = self._main, self._flat_rows()
        return tail if main is None else main_to_buffers(main, self.tuned) + tail

    # -- Builds ----------------------------------------------------------------------------------

    @property
    def build_is_due(self) -> bool:
        """Whether the policy calls for a new main part."""
        if self._is_all_on_torch:
            return False
        on_gpu = self._gpus_in_use is not None
        main = self._on_gpus if on_gpu else self._main
        if main is None:
            return self.policy.is_due(main=0, dead=0, tail=len(self), on_gpu=on_gpu)
        if isinstance(main.rows, MainRows) and main.rows.name != self.policy.main:
            return True
        duplicates = 0 if self._duplicates is None else self._duplicates.count
        tail = len(self) - main.count - duplicates
        return self.policy.is_due(main=main.keys.size, dead=main.dead, tail=tail, on_gpu=on_gpu)

    def begin_build(self) -> Build:
        """Freeze the tail, and return a build of a new main part from all current parts."""
        self._freeze_tail()
        return Build(self.dim, self.policy, self._parts, self._gpus_in_use)

    def _freeze_tail(self) -> None:
        """Turn the tail into a part, which does not change any more, and begin a new tail."""
        if len(self._tail):
            tail = self._tail
            if isinstance(tail, TorchIndex):  # its GPU has failed
                tail, self._device = tail.on_cpu(), "cpu"
            self._parts.append(Part(*tail.freeze()))
            self._tail = self._new_tail()

    def finish_build(self, build: Build) -> bool:
        """Replace the parts that a build was made from by what it built.

        Returns:
            False, with nothing replaced, if one of those parts is gone.
        """
        made = build.made
        if made is None or any(part not in self._parts for part in build.parts):
            return False
        duplicates = [] if build.duplicates is None else [build.duplicates]
        for part, alive in zip(build.parts, build.alive, strict=True):
            died = part.keys[alive & ~part.alive]
            for each in (made, *duplicates):
                each.mark_dead(died)
        later = [part for part in self._parts if part not in build.parts]
        self._parts = []
        self._set_main(made)
        self._duplicates = build.duplicates
        self._parts += [*duplicates, *later]
        return True

    def begin_tuning(self) -> Tuning | None:
        """A measurement of the main part, to run beside searches; None if all is exact."""
        main = self._main
        if main is None or not main.count:
            return None
        assert isinstance(main.rows, MainRows)
        _, rows = main.live_rows()
        return Tuning(main.rows, rows, bits(main.alive) if main.dead else None, self.policy)

    def tune(self, tuned: TuningResult) -> None:
        """Search with a measured effort from now on."""
        self.tuned = tuned
        self.policy = replace(self.policy, search_effort=tuned.effort)

    def begin_compaction(self) -> Callable[[], LayeredIndex]:
        """Freeze the current rows for a compacted copy; the returned function makes the copy."""
        if self._is_all_on_torch:
            copy = self.compacted()
            return lambda: copy
        self._freeze_tail()
        frozen = [(part.keys, part.rows, part.alive.copy()) for part in self._parts]
        return functools.partial(self._compacted_of, frozen, self.tuned)

    def _compacted_of(
        self, frozen: list[tuple[Keys, Rows, NDArray[np.bool_]]], tuned: TuningResult | None
    ) -> LayeredIndex:
        whole = LayeredIndex(
            self.dim, device=self._device, policy=self.policy, library=self._library
        )
        whole.tuned = tuned
        whole._parts = [Part(*each) for each in frozen]
        return whole.compacted()

    def compacted(self) -> LayeredIndex:
        """A copy that holds no vector of a removed key, and uses no memory for them.

        If a few rows of a graph are dead, each takes the vector of a live row that it links to, and
        still leads the way. If many are dead, or the main part is of another kind, the copy has no
        main part until the next build.
        """
        copy = LayeredIndex(
            self.dim, device=self._device, policy=self.policy, library=self._library
        )
        copy.tuned = self.tuned
        main = self._main
        if main is not None and self._can_drop_dead_vectors(main):
            rows = b"".join(self._flat_rows())
            copy._tail = copy._new_tail(rows)
            copy._parts = [without_dead_vectors(main)]
        else:
            copy._tail.upsert(keys := self.keys(), self.vectors_of(keys))
        return copy

    @property
    def _main(self) -> Part | None:
        """The main part, if there is one."""
        return self._first_of(MainRows)

    @property
    def _on_gpus(self) -> Part | None:
        """The part that GPUs hold, if there is one."""
        return self._first_of(GpuRows)

    def _first_of(self, kind: type[Rows]) -> Part | None:
        """The first part, if its rows are of a kind."""
        first = self._parts[0] if self._parts else None
        return first if first is not None and isinstance(first.rows, kind) else None

    @property
    def _gpus_in_use(self) -> Gpus | None:
        """The GPUs that FAISS can use; None after one failed."""
        return self._gpus if self._gpus is not None and self._gpus.usable else None

    @property
    def _is_all_on_torch(self) -> bool:
        """Whether everything is tail, held by torch on a GPU."""
        return isinstance(self._tail, TorchIndex) and self._tail.is_on_device

    def _new_tail(self, data: bytes | memoryview | None = None) -> FaissIndex | TorchIndex:
        """A tail, empty or read from bytes."""
        uses_torch = self.policy.uses_gpu and self._gpus is None
        device = torch_device(self._device) if uses_torch else None
        if device is None:
            return FaissIndex(self.dim) if data is None else FaissIndex.from_bytes(data, self.dim)
        options: dict[str, Any] = {"device": device, "half": self.policy.gpu_half}
        if data is None:
            return TorchIndex(self.dim, **options)
        return TorchIndex.from_bytes(data, self.dim, **options)

    def _can_drop_dead_vectors(self, main: Part) -> bool:
        """Whether a main part works without the vectors of its dead rows."""
        if isinstance(main.rows, CodedRows):
            return not main.dead
        return not self.policy.is_worn(main.keys.size, main.dead)

    def _set_main(self, main: Part) -> None:
        """Make a part the main part; its rows join the tail if the policy wants no main part."""
        wanted = isinstance(main.rows, GpuRows) or self.policy.has_main
        if main.count and wanted and not self._is_all_on_torch:
            self._parts.insert(0, main)
        elif main.count:
            keys, rows = main.live_rows()
            self._tail.upsert(keys, main.rows.vectors[rows])

    def _flat_rows(self) -> list[memoryview]:
        """All live rows except the main part's, as bytes."""
        flat = [part for part in self._parts if part is not self._main]
        if not flat:
            return self._tail.to_buffers()
        live = [part.live_rows() for part in flat]
        tail = self._tail.keys()
        keys = np.concatenate([*(keys for keys, _ in live), tail])
        vectors = [part.rows.vectors[rows] for part, (_, rows) in zip(flat, live, strict=True)]
        return rows_to_buffers(keys, np.concatenate([*vectors, self._tail.vectors_of(tail)]))


def _merge(found: list[tuple[Vectors, Keys]], k: int) -> tuple[Vectors, Keys]:
    """The k best of the hits of several parts, best first."""
    found = [each for each in found if each[0].shape[1]] or found[:1]
    if len(found) == 1:
        return order_ties(*found[0])
    scores = np.concatenate([scores for scores, _ in found], axis=1)
    keys = np.concatenate([keys for _, keys in found], axis=1)
    order = np.lexsort((keys, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(keys, order, 1)
