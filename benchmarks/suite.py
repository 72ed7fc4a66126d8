"""One size of the suite: every peer is filled, opened anew, tuned, and asked in turn.

Each peer is a process (`benchmarks.worker`), which does the timing. Where times are compared, the
peers take turns in short blocks, so that a noisy machine weighs on all of them; a figure is the
median over the blocks. Of a peer that fails, what it did before and why it failed are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import faiss
import numpy as np

from benchmarks.data import Data
from benchmarks.driver import Failed, Process
from benchmarks.peers import Rows

K = 10
RECALL = 0.97
"""Each peer is tuned to so much, where it can be."""
ENOUGH = 0.995
"""Of a peer that finds so much, no greater search parameter is tried."""
SHARES = (1, 10, 50)
"""Filters let so many of 100 pass."""
PARTS = ("search", "filter", "write")
"""What can be measured of a peer that was filled and opened."""

_ASKED = 300
"""Questions. Peers are tuned on all of them: some are much harder than others."""
_ROUNDS = 5
"""Turns that each peer takes."""
_BLOCK = _ASKED // _ROUNDS
_BUDGET_S = 4.0
"""When a block of searches has taken so long, it ends."""
_SINGLES, _CALLERS, _CALLS_A_CALLER = 60, 64, 30
_AS_NEAR = 1e-6
"""What two ways to compute a score may differ by."""
_STEP = 10
"""Each so manieth item is deleted."""

Figures: TypeAlias = dict[str, Any]
Say: TypeAlias = Callable[[str], None]
Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


def indexed_per_s(size: int, figures: Figures) -> float:
    """How many were added in a second, the time until all are in the index counted in."""
    return float(size / (size / figures["added_per_s"] + figures["settled_s"]))


@dataclass(slots=True)
class Truth:
    """The exact answers, by comparing everything.

    Texts that differ in their capitals alone have one vector: a row counts as found in the place of
    another that is as near.
    """

    rows: Rows
    queries: Rows
    shares: np.ndarray[Any, np.dtype[np.int64]]
    _known: dict[str, tuple[Rows, Mask]] = field(default_factory=dict)
    """The score of the last of the nearest, by query; and the rows that may be found."""

    def learn(self, name: str, kept: Mask | None = None) -> None:
        """Find the rows nearest to each query, of those that are kept; None: of all."""
        kept = np.ones(len(self.rows), np.bool_) if kept is None else kept
        ids = np.flatnonzero(kept)
        index = faiss.IndexFlatIP(self.rows.shape[1])
        for at in range(0, len(ids), 50_000):
            index.add(np.ascontiguousarray(self.rows[ids[at : at + 50_000]]))
        scores, _ = index.search(self.queries, min(K, len(ids)))
        self._known[name] = scores[:, -1], kept

    def recall(self, name: str, found: Sequence[Sequence[int]], first: int = 0) -> float:
        """The share of the true neighbours that was found, by queries from one on."""
        floors, kept = self._known[name]
        wanted = min(K, int(kept.sum()))
        counts = []
        for at, ids in enumerate(found, first):
            known = [id for id in set(ids) if id < len(kept) and kept[id]]
            scores = self.rows[known] @ self.queries[at]
            counts.append(min(int(np.count_nonzero(scores >= floors[at] - _AS_NEAR)), wanted))
        return float(np.mean(counts)) / wanted


def run(
    names: Sequence[str], data: Data, folder: Path, say: Say, parts: Sequence[str] = PARTS
) -> dict[str, Figures]:
    """Measure peers at one size: by peer, what was found, or why it was not.

    Args:
        names: the peers.
        data: what they store.
        folder: an empty one, where their stores are made.
        say: takes lines on how it goes.
        parts: of `PARTS`, what to measure beside adding, opening and tuning.
    """
    comparison = Comparison(data, say)
    try:
        for name in names:
            comparison.fill(name, folder / name)
            comparison.open(name, folder / name)
        comparison.tune()
        if "search" in parts:
            comparison.search()
            comparison.search_many()
        if "filter" in parts:
            comparison.filter()
        if "write" in parts:
            comparison.write()
        comparison.compact()
    finally:
        comparison.end()
    return comparison.figures


class Comparison:
    """Peers that were given the same, and take turns.

    Args:
        data: what they store and are asked for.
        say: takes lines on how it goes.
    """

    def __init__(self, data: Data, say: Say) -> None:
        self.figures: dict[str, Figures] = {}
        self._data = data
        self._say = say
        self._truth = Truth(data.rows(), data.queries()[:_ASKED], data.shares())
        self._truth.learn("all")
        self._workers: dict[str, Process] = {}

    def end(self) -> None:
        """Let all processes end."""
        for worker in self._workers.values():
            worker.end()

    # -- Before they take turns --------------------------------------------------------------------

    def fill(self, name: str, store: Path) -> None:
        """Add everything in a process of its own, and close."""
        worker = Process(name, store, self._data.folder)
        try:
            self.figures[name] = figures = worker("about")
            worker("open")
            filled = worker("fill")
            figures["added_per_s"] = len(self._truth.rows) / sum(filled["seconds"])
            figures["added_per_cpu_s"] = len(self._truth.rows) / sum(filled["cpu"])
            figures["fresh_found"] = float(np.mean(filled["fresh"]))
            figures["worst_search_while_adding_ms"] = max(filled["searches"]) * 1e3
            figures["settled_s"] = worker("settle")
            worker("close")
            self._say(
                f"  {name}: {figures['added_per_s']:,.0f} added a second, "
                f"settled in {figures['settled_s']:.1f} s"
            )
        except Failed as exc:
            self.figures[name] = {"failed": str(exc)}
            self._say(f"  {name}: {exc}")
        finally:
            worker.end()

    def open(self, name: str, store: Path) -> None:
        """Open what was filled, and ask once; imports are done before."""
        figures = self.figures[name]
        if "failed" in figures:
            return
        self._workers[name] = worker = Process(name, store, self._data.folder)
        with self._tolerant(name):
            figures["imported_rss_bytes"] = worker("rss")
            figures["open_s"] = worker("open")
            first = worker("search", first=0, last=1, k=K)["seconds"][0]
            figures["open_and_first_s"] = figures["open_s"] + first

    def tune(self) -> None:
        """Find how recall and latency go together, and leave each peer with enough of the one."""
        for name, worker in [*self._workers.items()]:
            self.figures[name]["curve"] = []
            with self._tolerant(name):  # or the first parameter would pay for what is read at first
                worker("search", first=0, last=_ASKED, k=K, budget=_BUDGET_S)
        levels = [len(self.figures[name]["efforts"]) for name in self._workers]
        for level in range(max(levels, default=0)):
            for name, worker in [*self._workers.items()]:
                with self._tolerant(name):
                    self._try_effort(worker, self.figures[name], level)
        for name, worker in [*self._workers.items()]:
            with self._tolerant(name):
                figures = self.figures[name]
                curve = figures["curve"]
                chosen = next((point for point in curve if point["recall"] >= RECALL), curve[-1])
                figures["effort"] = chosen["effort"]
                worker("effort", effort=chosen["effort"])
                figures["rss_bytes"] = worker("rss")

    def _try_effort(self, worker: Process, figures: Figures, level: int) -> None:
        curve, efforts = figures["curve"], figures["efforts"]
        if level >= len(efforts) or (curve and curve[-1]["recall"] >= ENOUGH):
            return
        worker("effort", effort=efforts[level])
        found = worker("search", first=0, last=_ASKED, k=K, budget=_BUDGET_S)
        recall = self._truth.recall("all", found["ids"])
        latency = float(np.median(found["seconds"])) * 1e3
        curve.append({"effort": efforts[level], "recall": recall, "p50_ms": latency})

    # -- In turn -----------------------------------------------------------------------------------

    def search(self) -> None:
        """One search at a time."""
        for name, blocks in self._blocks("searches_failed").items():
            self.figures[name] |= self._told(blocks, "all")
            self._say(
                "  {0}: {p50_ms:.3f} ms, recall {recall:.3f}".format(name, **self.figures[name])
            )

    def search_many(self) -> None:
        """Many questions in one call, or as near to it as a peer comes; fewer of a slow one."""
        rates: dict[str, list[float]] = {}
        for _ in range(3):
            for name, worker in [*self._workers.items()]:
                with self._tolerant(name, "batch_failed"):
                    fit = int(_BUDGET_S / (self.figures[name]["p50_ms"] / 1e3))
                    asked = min(max(fit, 10), _ASKED)
                    found = worker("many", first=0, last=asked, k=K)
                    rates.setdefault(name, []).append(asked / found["seconds"])
                    self.figures[name]["batch_recall"] = self._truth.recall("all", found["ids"])
        for name, found in rates.items():
            self.figures[name]["batch_per_s"] = float(np.median(found))

    def filter(self) -> None:
        """One search at a time, under filters."""
        for share in SHARES:
            truth = f"{share} %"
            self._truth.learn(truth, self._truth.shares < share)
            for name, blocks in self._blocks("filters_failed", share).items():
                filters = self.figures[name].setdefault("filters", {})
                filters[str(share)] = self._told(blocks, truth)

    def _blocks(self, failed: str, below: int | None = None) -> dict[str, list[Figures]]:
        """Blocks of searches, the peers in turn; a peer that cannot is left out."""
        blocks: dict[str, list[Figures]] = {name: [] for name in self._workers}
        for number in range(_ROUNDS):
            for name in [name for name in blocks if failed not in self.figures[name]]:
                first = number * _BLOCK
                span = {"first": first, "last": first + _BLOCK, "k": K, "below": below}
                with self._tolerant(name, failed):
                    answer = self._workers[name]("search", budget=_BUDGET_S, **span)
                    blocks[name].append({"first": first, **answer})
        return {name: each for name, each in blocks.items() if failed not in self.figures[name]}

    def _told(self, blocks: list[Figures], truth: str) -> Figures:
        """What blocks of searches say."""
        seconds = [each for block in blocks for each in block["seconds"]]
        recalls = [self._truth.recall(truth, block["ids"], block["first"]) for block in blocks]
        return {
            "p50_ms": float(np.median([np.median(block["seconds"]) for block in blocks])) * 1e3,
            "p95_ms": float(np.percentile(seconds, 95)) * 1e3,
            "recall": float(np.average(recalls, weights=[len(block["ids"]) for block in blocks])),
            "least_hits": min(len(ids) for block in blocks for ids in block["ids"]),
        }

    def write(self) -> None:
        """Add one by one, in turn; from many callers at a time; then delete."""
        seconds: dict[str, list[float]] = {}
        for _ in range(_ROUNDS):
            for name, worker in [*self._workers.items()]:
                if self.figures[name]["synced"] != "never":
                    with self._tolerant(name, "singles_failed"):
                        seconds.setdefault(name, []).extend(worker("singles", count=_SINGLES))
        for name, taken in seconds.items():
            self.figures[name]["singles_per_s"] = 1 / float(np.median(taken))
        count = _CALLERS * _CALLS_A_CALLER
        for name, worker in [*self._workers.items()]:
            with self._tolerant(name, "at_once_failed"):
                taken_s = worker("at_once", count=count, callers=_CALLERS)
                self.figures[name]["at_once_per_s"] = count / taken_s
        self._delete()

    def _delete(self) -> None:
        """Delete some; what is found of the others."""
        kept = np.arange(len(self._truth.rows)) % _STEP != 0
        self._truth.learn("living", kept)
        for name, worker in [*self._workers.items()]:
            figures = self.figures[name]
            with self._tolerant(name, "deletes_failed"):
                figures["deleted_per_s"] = int((~kept).sum()) / worker("delete", step=_STEP)
                found = worker("search", first=0, last=_ASKED, k=K, budget=_BUDGET_S)["ids"]
                figures["after_deletes"] = {
                    "dead": sum(id >= len(kept) or not kept[id] for ids in found for id in ids),
                    "least_hits": min(len(ids) for ids in found),
                    "recall": self._truth.recall("living", found),
                }

    def compact(self) -> None:
        """Give back what was deleted, close, and count the bytes on disk."""
        for name, worker in [*self._workers.items()]:
            with self._tolerant(name):
                self.figures[name]["compacted_s"] = worker("compact")
                worker("close")
                self.figures[name]["disk_bytes"] = worker("disk")

    @contextmanager
    def _tolerant(self, name: str, key: str = "failed") -> Iterator[None]:
        """Keep why a peer fails; one that failed as such takes no more turns."""
        try:
            yield
        except Failed as exc:
            self.figures[name][key] = str(exc)
            if key == "failed":
                self._say(f"  {name}: {exc}")
                self._workers.pop(name).end()
