"""`LayeredIndex`: an immutable graph over most vectors, and an exact flat tail of what came since.

    upsert ─→ tail (flat) ─→ frozen, while it is merged ─┐
                                                         ├─→ a new main part, in one step
    main part (graph) ───────────────────────────────────┘
    remove, overwrite: a row of a part is dead; it is masked, and gone with the next full build

A write is found by the next search, a removed key never again, and `vectors_of` gives back the very
bits that were put in. A search compares the tail exactly, and asks the graph where that costs less
than to compare all that may be found; then it finds about 98 of the 100 nearest, and always as many
as are asked for and held.

With a GPU that FAISS can use, the main part is there, flat or an inverted file, in the place of a
graph. With one that torch alone can use, all is tail, on that GPU, and exact.

A build has three steps, so that no search waits for it: `begin_build` and `finish_build` take
moments, and between them `Build.run` works on what cannot change. Below `IndexPolicy.flat_below`
there is no graph: all is tail, and exact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.errors import SnapshotError
from kronos.index.base import (
    check_keys,
    check_queries,
    check_rows,
    distinct,
    require_known,
    rows_to_bytes,
)
from kronos.index.building import Build
from kronos.index.faiss import LIBRARY, FaissIndex, Graph, bits, settle_ties
from kronos.index.gpu import GpuRows, Gpus
from kronos.index.parts import MAGIC, Part, read_main, without_the_dead, write_main
from kronos.index.policy import IndexPolicy
from kronos.index.torch import TorchIndex, torch_device
from kronos.index.tuning import Tuned, Tuning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Vectors

FLAT, GRAPH = FaissIndex.kind, "faiss-hnsw"


class LayeredIndex:
    """A `VectorIndex` of a main part and a tail. Not thread-safe; its owner locks.

    Args:
        dim: the width of a vector.
        device: "auto" (GPUs where there are any), "cpu", "cuda", "cuda:N" or several with commas.
        policy: when to build what.
        library: the faiss module; a test hands in one with a stand-in for GPUs.
    """

    KINDS = (FLAT, GRAPH)
    """What `kind` may be, and the kinds of bytes that `from_bytes` reads."""

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
        """The main part, if there is one, then what was tail when a build began."""
        self._tail = self._new_tail()
        self.tuned: Tuned | None = None
        """What `tune` was told last; kept with the graph."""

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        dim: int,
        *,
        device: str = "auto",
        policy: IndexPolicy | None = None,
        library: Any = LIBRARY,
    ) -> LayeredIndex:
        """Read what `to_bytes` wrote, or a `FaissIndex`; nothing is built.

        Raises:
            SnapshotError: the bytes are no index, or one of another width.
        """
        index = cls(dim, device=device, policy=policy, library=library)
        if data.startswith(MAGIC):
            main, tail, tuned = read_main(data, dim, index.policy)
            if tuned is not None:
                index.tune(tuned)
            index._tail = index._new_tail(tail)
            if index._tail.held(main.living()[0]).any():
                raise SnapshotError("the index holds a key twice")
            index._take_in(main)
        else:
            index._tail = index._new_tail(data)
        return index

    @property
    def kind(self) -> str:
        """The kind of the main part, which tells what `to_bytes` gives."""
        return FLAT if self._graph is None else GRAPH

    def __len__(self) -> int:
        return len(self._tail) + sum(part.count for part in self._parts)

    def upsert(self, keys: Keys, vectors: Vectors) -> None:
        """Set the vectors of keys; see `VectorIndex.upsert`."""
        keys, vectors = check_rows(keys, vectors, self.dim)
        for part in self._parts:
            part.bury(keys)
        self._tail.upsert(keys, vectors)

    def remove(self, keys: Keys) -> int:
        """Forget keys; see `VectorIndex.remove`."""
        keys = distinct(check_keys(keys))
        return self._tail.remove(keys) + sum(part.bury(keys) for part in self._parts)

    def search(
        self, queries: Vectors, k: int, *, allowed: Keys | None = None
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest keys of each query; see `VectorIndex.search`.

        Equal scores are ordered by key, lowest first; which of several with the score of the last
        place are returned is left open.
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
        living = [part.living()[0] for part in self._parts]
        return np.sort(np.concatenate([*living, self._tail.keys()]))

    def held(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of some keys the index holds: (n,) bool."""
        keys = check_keys(keys)
        held = self._tail.held(keys)
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
            in_tail = self._tail.held(keys)
            require_known(keys, in_tail | ~missing)
            vectors[in_tail] = self._tail.vectors_of(keys[in_tail])
        return vectors

    def to_bytes(self) -> bytes:
        """The index as bytes that `from_bytes` reads, the graph included."""
        main, tail = self._graph, self._flat_rows()
        return tail if main is None else write_main(main, self.tuned) + tail

    # -- Builds ----------------------------------------------------------------------------------

    @property
    def build_is_due(self) -> bool:
        """Whether the policy wants a new main part."""
        if self._all_is_tail:
            return False
        on_gpu, main = self._gpus_in_use is not None, self._main
        size, dead = (0, 0) if main is None else (main.keys.size, main.dead)
        tail = len(self) - (0 if main is None else main.count)
        return self.policy.is_due(graph=size, dead=dead, tail=tail, on_gpu=on_gpu)

    def begin_build(self) -> Build:
        """Freeze the tail, and say what a new main part is to be made of."""
        if len(self._tail):
            tail = self._tail
            if isinstance(tail, TorchIndex):  # its GPU failed
                tail, self._device = FaissIndex.from_bytes(tail.to_bytes(), self.dim), "cpu"
            self._parts.append(Part(*tail.freeze()))
            self._tail = self._new_tail()
        return Build(self.dim, self.policy, self._parts, self._gpus_in_use)

    def finish_build(self, build: Build) -> bool:
        """Put what was built in the place of what it was made of; False when that is gone."""
        made = build.made
        if made is None or any(part not in self._parts for part in build.parts):
            return False
        for part, alive in zip(build.parts, build.alive, strict=True):
            made.bury(part.keys[alive & ~part.alive])  # died meanwhile
        later = [part for part in self._parts if part not in build.parts]
        self._parts = []
        self._take_in(made)
        self._parts += later
        return True

    def begin_tuning(self) -> Tuning | None:
        """What measures the graph beside searches; None: there is none, every search is exact."""
        main = self._graph
        if main is None or not main.count:
            return None
        assert isinstance(main.rows, Graph)
        _, rows = main.living()
        return Tuning(main.rows, rows, bits(main.alive) if main.dead else None)

    def tune(self, tuned: Tuned) -> None:
        """Search as hard as was found to be enough."""
        self.tuned = tuned
        self.policy = replace(self.policy, search_effort=tuned.effort)

    def compacted(self) -> LayeredIndex:
        """A copy that holds no vector of a removed key, and takes no memory for them.

        Where a few rows of the graph are dead, they take the vector of a living row that they link
        to: they go on leading the way. Where many are, the copy has no graph until the next build.
        """
        copy = LayeredIndex(
            self.dim, device=self._device, policy=self.policy, library=self._library
        )
        copy.tuned = self.tuned
        main = self._graph
        if main is not None and not self.policy.is_worn(main.keys.size, main.dead):
            copy._tail = copy._new_tail(self._flat_rows())
            copy._parts = [without_the_dead(main)]
        else:
            copy._tail.upsert(keys := self.keys(), self.vectors_of(keys))
        return copy

    @property
    def _main(self) -> Part | None:
        """The main part: a graph, or what a GPU holds."""
        kind = Graph if self._gpus_in_use is None else GpuRows
        main = self._parts[0] if self._parts else None
        return main if main is not None and isinstance(main.rows, kind) else None

    @property
    def _graph(self) -> Part | None:
        """The main part, when it is a graph."""
        main = self._parts[0] if self._parts else None
        return main if main is not None and isinstance(main.rows, Graph) else None

    @property
    def _gpus_in_use(self) -> Gpus | None:
        """The GPUs that FAISS can use, until one fails."""
        return self._gpus if self._gpus is not None and self._gpus.usable else None

    @property
    def _all_is_tail(self) -> bool:
        """Whether torch holds all, on a GPU."""
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

    def _take_in(self, main: Part) -> None:
        """Let a part be the main one, where the policy wants one and there is one."""
        wanted = isinstance(main.rows, GpuRows) or self.policy.has_graph
        if main.count and wanted and not self._all_is_tail:
            self._parts.insert(0, main)
        elif main.count:
            keys, rows = main.living()
            self._tail.upsert(keys, main.rows.vectors[rows])

    def _flat_rows(self) -> bytes:
        """All rows but those of the graph, as bytes."""
        flat = [part for part in self._parts if part is not self._graph]
        if not flat:
            return self._tail.to_bytes()
        living = [part.living() for part in flat]
        tail = self._tail.keys()
        keys = np.concatenate([*(keys for keys, _ in living), tail])
        vectors = [part.rows.vectors[rows] for part, (_, rows) in zip(flat, living, strict=True)]
        return rows_to_bytes(keys, np.concatenate([*vectors, self._tail.vectors_of(tail)]))


def _merge(found: list[tuple[Vectors, Keys]], k: int) -> tuple[Vectors, Keys]:
    """The k best of what several parts found, each best first."""
    found = [each for each in found if each[0].shape[1]] or found[:1]
    if len(found) == 1:
        return settle_ties(*found[0])
    scores = np.concatenate([scores for scores, _ in found], axis=1)
    keys = np.concatenate([keys for _, keys in found], axis=1)
    order = np.lexsort((keys, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(keys, order, 1)
