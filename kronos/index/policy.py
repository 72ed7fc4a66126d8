"""`IndexPolicy`: which kind of index a store has, when its parts are merged, and how hard it looks.

Everything that can be chosen about an index is here. Under every policy the next search finds every
write, no search waits for a build, and a search returns as many keys as are asked for and held.
Only speed, memory and recall depend on the policy.

`python -m benchmarks.index` measures the effects: build time, search time and recall, also under
filters and for larger k. `--effort` sets `search_effort`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_NEVER = 2**62
_GRAPH = re.compile(r"HNSW(\d+)")
_LISTS = re.compile(r"IVF(\d+)")
_ROWS_PER_LIST = 40
"""FAISS wants at least this many rows to train the centroid of a list."""


@dataclass(frozen=True, slots=True)
class IndexPolicy:
    """How a `LayeredIndex` is built and searched.

    The index has a main part, usually a graph, and a flat tail of recent writes.
    """

    flat_below: int = 10_000
    """With fewer vectors there is no graph: comparing them all takes less than a millisecond, and
    building a graph takes seconds."""
    tail_least: int = 1000
    """A tail of this many vectors is merged into the main part: every search compares all of it."""
    tail_share: float = 0.005
    """In a large index the tail may grow to this share of it, since a merge copies the graph."""
    dead_share: float = 0.2
    """A graph is rebuilt when more than this share of its rows was removed or overwritten. Until
    then dead rows are skipped, but still lead to live rows."""
    main: str = "HNSW24"
    """The main part's name in FAISS. "HNSW24" is a graph with 24 links per vector, twice as many at
    its lowest level (FAISS's M). More links find more, and cost memory. See `of` for other names.
    """
    build_effort: int = 100
    """Candidates considered for a vector's links (FAISS's efConstruction): more make a better graph
    and a slower build."""
    search_effort: int = 64
    """Candidates that a search of a graph follows at least (FAISS's efSearch), or lists of an IVF
    index that it reads (nprobe). Recall grows with it, and so does the time."""
    rows_for_step: int = 50
    """Following one candidate costs as much as comparing this many adjacent rows. If a graph search
    would cost more than comparing all rows, all rows are compared, exactly."""
    gpu_from: int = 10_000
    """From this many vectors on, a GPU holds the main part, instead of a graph."""
    inverted_from: int = 2_000_000
    """From this many vectors on, a GPU's main part is an inverted file, whose lists a search reads
    in part; below, all vectors are compared."""
    read_share: float = 0.02
    """The share of the lists that a search on a GPU reads, at least 16 lists (FAISS's nprobe).
    `python -m benchmarks.gpu` measures its recall."""
    gpu_half: bool = False
    """Whether a GPU keeps float16; its candidates are scored from the host's float32."""
    gpu_shards: bool = True
    """Whether each of several GPUs holds a share; else each holds everything, and they share the
    queries."""

    @classmethod
    def of(cls, name: str) -> IndexPolicy:
        """The policy for an index's name in the settings.

        Args:
            name: "auto"; "flat", for no main part; or FAISS's name of a main part. "HNSW32" is a
                graph with 32 links per row, "HNSW32,SQ8" a graph over rows of 8 bits per number,
                and "IVF1024,SQfp16" an inverted file of 1024 lists. A named main part is never on a
                GPU. `Settings` has checked the name.
        """
        if name == "auto":
            return cls()
        if name == "flat":
            return cls(flat_below=_NEVER, inverted_from=_NEVER)
        lists = _LISTS.match(name)
        least = int(lists[1]) * _ROWS_PER_LIST if lists else 0
        return cls(main=name, flat_below=max(cls().flat_below, least), gpu_from=_NEVER)

    @property
    def links(self) -> int | None:
        """The links per row of a plain graph; None if the main part is of another kind."""
        match = _GRAPH.fullmatch(self.main)
        return None if match is None else int(match[1])

    @property
    def max_duplicates(self) -> int | None:
        """How many rows with the same vector a graph holds; more would only link to each other.

        None: the main part has no links.
        """
        match = _GRAPH.match(self.main)
        return None if match is None else int(match[1])

    @property
    def has_main(self) -> bool:
        """Whether there can be a main part."""
        return self.flat_below < _NEVER

    @property
    def uses_gpu(self) -> bool:
        """Whether a GPU is used if there is one."""
        return self.gpu_from < _NEVER

    def lists(self, size: int) -> int:
        """The number of lists that a GPU's main part of `size` vectors has; 0: it is flat."""
        return 4 * math.isqrt(size) if size >= self.inverted_from else 0

    def probes(self, lists: int) -> int:
        """How many of the lists a search reads."""
        return min(max(math.ceil(lists * self.read_share), _LEAST_PROBES), lists)

    def is_due(self, *, main: int, dead: int, tail: int, on_gpu: bool = False) -> bool:
        """Whether to build a main part, or to merge into it.

        Args:
            main: rows of the main part, dead ones included; 0: there is none.
            dead: rows of it that were removed or overwritten.
            tail: vectors outside of it.
            on_gpu: whether it is, or would be, on a GPU.
        """
        if not main:
            return tail >= (self.gpu_from if on_gpu else self.flat_below)
        return tail >= max(self.tail_least, self.tail_share * main) or self.is_worn(main, dead)

    def is_worn(self, main: int, dead: int) -> bool:
        """Whether so many rows of a main part are dead that it must be rebuilt."""
        return dead > self.dead_share * main

    def effort(self, k: int, share: float = 1.0) -> int:
        """How many candidates a search of a graph follows.

        Args:
            k: how many keys to find.
            share: the share of the rows that may be found, above 0 and at most 1.
        """
        effort = self.search_effort + _EFFORT_FOR_K * max(k - _USUAL_K, 0)
        if share < _UNFILTERED_FROM:
            effort = _FILTER_FACTOR * max(effort, _LEAST_FILTERED_EFFORT)
        return math.ceil(effort * math.pow(share, -_SHARE_POWER))

    def scans(self, effort: int, size: int) -> bool:
        """Whether comparing all `size` rows of a graph costs no more than such a search of it."""
        return effort * self.rows_for_step >= size

    def picks(self, rows: int, size: int, effort: int | None) -> bool:
        """Whether comparing only the allowed rows, in place, costs least.

        Args:
            rows: how many rows are allowed.
            size: how many rows there are.
            effort: of a search of the graph; None: the alternative is to scan all rows.
        """
        if effort is None:
            return rows * 2 < size
        return rows <= effort * self.rows_for_step * _SCATTERED_SHARE


_LEAST_PROBES = 16
_USUAL_K = 10
_EFFORT_FOR_K = 2.0
"""More candidates for each key beyond `_USUAL_K`; chosen for a recall@100 near the recall@10."""
_UNFILTERED_FROM, _LEAST_FILTERED_EFFORT, _FILTER_FACTOR, _SHARE_POWER = 0.9, 40, 1.5, 0.5
"""From this share of allowed rows on, the others are just the dead rows, which hardly matter. Below
it a filter is at work. Then the effort is at least the second number, times the third, times the
share to the power of minus the fourth; chosen for the same recall with and without a filter."""
_SCATTERED_SHARE = 0.25
"""One scattered row costs as much to compare as `1 / _SCATTERED_SHARE` adjacent rows."""
