"""`IndexPolicy`: which kind of index a store has, when its parts are merged, and how hard it looks.

All that can be chosen about an index, in one place. Whatever is chosen, a write is found by the
next search, no search waits for a build, and as many keys are found as are asked for and held: only
speed and recall depend on the policy.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_NEVER = 2**62
_GRAPH = re.compile(r"HNSW(\d+)")
_LISTS = re.compile(r"IVF(\d+)")
_ROWS_A_LIST = 40
"""FAISS wants as many rows to find the centre of a list."""


@dataclass(frozen=True, slots=True)
class IndexPolicy:
    """How a `LayeredIndex` is built and searched.

    It has a main part, a graph as a rule, and a flat tail of what came since; see `LayeredIndex`.
    """

    flat_below: int = 10_000
    """Fewer vectors than that have no graph: to compare all of 10,000 x 384 takes .6 ms, and to
    build a graph over them takes seconds."""
    tail_least: int = 1000
    """A tail of so many vectors is merged into the graph: a search compares all of them (.1 ms)."""
    tail_share: float = 0.005
    """In a large index the tail may have this share of it: to merge one copies the whole graph."""
    dead_share: float = 0.2
    """When more than this share of the graph was removed or overwritten, it is built anew: until
    then its dead rows are passed over, and lead the way to the living."""
    main: str = "HNSW24"
    """What the main part is, by FAISS's name: "HNSW24" is a graph with 24 links of a vector, twice
    as many at its lowest level (FAISS's M); see `of` for others.

    30,000 texts embedded by MiniLM, real questions: with 16 links and 200 candidates built in 15.4
    s, with 24 and 100 in 7.7 s, with 32 and 100 in 8.3 s; recall@10 at an effort of 64 .9990 /
    .9987 / .9997, in the same time.
    """
    build_effort: int = 100
    """How many candidates are weighed for a vector's links: FAISS's efConstruction."""
    search_effort: int = 64
    """How many candidates a search of a graph follows, at least, FAISS's efSearch; or how many
    lists of an IVF index it goes through, nprobe. Recall@10 grows with it, and so does the time."""
    rows_for_step: int = 50
    """To follow one candidate costs as much as to compare so many rows that lie together: where a
    search of the graph would cost more than to compare all, they are compared, exactly."""
    gpu_from: int = 10_000
    """So many vectors make a main part on a GPU, in the place of a graph."""
    inverted_from: int = 2_000_000
    """So many are cut into lists there, of which a search reads some; fewer are all compared."""
    read_share: float = 0.02
    """Which share of the lists a search reads, and 16 at least: FAISS's nprobe. On the CPU, rows
    about 1,000 centres, 60,000 / 200,000 x 384, recall@10: .977 / .997; with twice the share .987 /
    .9995."""
    gpu_half: bool = False
    """Keep float16 on a GPU; the candidates are scored from the float32 on the host."""
    gpu_shards: bool = True
    """Several GPUs hold a share each; False: all hold everything, and share the questions."""

    @classmethod
    def of(cls, name: str) -> IndexPolicy:
        """The policy that a setting names.

        Args:
            name: "auto"; "flat", for no main part at all; or FAISS's name of one: "HNSW32" is a
                graph with so many links, "HNSW32,SQ8" one over rows of 8 bits a number, and
                "IVF1024,SQfp16" so many lists. What is named is never on a GPU. `Settings` has
                checked it.
        """
        if name == "auto":
            return cls()
        if name == "flat":
            return cls(flat_below=_NEVER, inverted_from=_NEVER)
        lists = _LISTS.match(name)
        least = int(lists[1]) * _ROWS_A_LIST if lists else 0
        return cls(main=name, flat_below=max(cls().flat_below, least), gpu_from=_NEVER)

    @property
    def links(self) -> int | None:
        """The links of a plain graph; None: the main part is of another kind."""
        match = _GRAPH.fullmatch(self.main)
        return None if match is None else int(match[1])

    @property
    def most_copies(self) -> int | None:
        """So many rows with one vector are linked in: more would be linked to each other alone.

        None: the main part has no links.
        """
        match = _GRAPH.match(self.main)
        return None if match is None else int(match[1])

    @property
    def has_main(self) -> bool:
        """Whether there is ever to be a main part."""
        return self.flat_below < _NEVER

    @property
    def uses_gpu(self) -> bool:
        """Whether a GPU is to be used where there is one."""
        return self.gpu_from < _NEVER

    def lists(self, size: int) -> int:
        """Into how many lists so many vectors are cut on a GPU; 0: into none."""
        return 4 * math.isqrt(size) if size >= self.inverted_from else 0

    def probes(self, lists: int) -> int:
        """How many of the lists a search reads."""
        return min(max(math.ceil(lists * self.read_share), _LEAST_PROBES), lists)

    def is_due(self, *, main: int, dead: int, tail: int, on_gpu: bool = False) -> bool:
        """Whether to build, or to merge into what was built.

        Args:
            main: rows of the main part, dead ones included; 0: there is none.
            dead: those that were removed or overwritten.
            tail: vectors that are not in it.
            on_gpu: whether it is, or would be, on a GPU.
        """
        if not main:
            return tail >= (self.gpu_from if on_gpu else self.flat_below)
        return tail >= max(self.tail_least, self.tail_share * main) or self.is_worn(main, dead)

    def is_worn(self, main: int, dead: int) -> bool:
        """Whether a main part has so many dead rows that it is to be built anew."""
        return dead > self.dead_share * main

    def effort(self, k: int, share: float = 1.0) -> int:
        """How many candidates a search of a graph follows.

        Args:
            k: how many are to be found.
            share: of the rows that may be found.
        """
        effort = self.search_effort + _EFFORT_FOR_K * max(k - _USUAL_K, 0)
        if share < _FEW_DEAD:
            effort = _HARDER * max(effort, _LEAST_UNDER_FILTERS)
        return math.ceil(effort * math.pow(share, -_SHARE_POWER))

    def scans(self, effort: int, size: int) -> bool:
        """Whether to compare all rows of a graph costs no more than such a search of it."""
        return effort * self.rows_for_step >= size

    def picks(self, rows: int, size: int, effort: int | None) -> bool:
        """Whether to compare the rows that may be found where they lie costs least.

        Args:
            rows: how many they are.
            size: among how many they lie.
            effort: that of a search of the graph; None: the other way is to go through all rows.
        """
        if effort is None:
            return rows * 2 < size
        return rows <= effort * self.rows_for_step * _LYING_APART


_LEAST_PROBES = 16
_USUAL_K = 10
_EFFORT_FOR_K = 2.0
"""30,000 x 384, recall@100 with 1.5 / 2 / 2.5: .963 / .977 / .985, in .94 / 1.17 / 1.32 ms."""
_FEW_DEAD, _LEAST_UNDER_FILTERS, _HARDER, _SHARE_POWER = 0.9, 40, 1.5, 0.5
"""Where so much may be found, the rest is dead, and hardly matters; else a filter is at work, and
the effort is at least so much, times that, times the share to the minus power. 60,000 texts, real
questions, an effort of 48, recall@10 among 50 / 30 / 10 % and ms, Python included, by the factor
and the power: 1.5 and 1/2: .9987 / .9983 / .9987 in .54 / .59 / .79; 1 and .6: .9973 / .9973 /
.9970 in .49 / .55 / .76; 1 and 3/4: .9983 / .9977 / .9987 in .50 / .56 / .87."""
_LYING_APART = 0.25
"""For rows that lie apart, it costs as much as to compare such a share of so many: 60,000 x 384,
one thread, 3,083 / 6,113 / 12,085 rows in .47 / .94 / 2.2 ms, an effort of 225 in .44 to .50."""
