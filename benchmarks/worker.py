"""One peer in a process of its own: it does what the suite tells it, and times it.

    python -m benchmarks.worker PEER STORE DATA

It reads a JSON object a line, `{"call": name, ...}`, and answers each with one. Imports are done
before anything is timed.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import DIM, Data
from benchmarks.peers import Items, Peer, peer

_PAGE = os.sysconf("SC_PAGE_SIZE")
_NEW = 10**9
"""Ids from here on are none of the data's."""


class Worker:
    """The calls that the suite makes; each returns what can be written as JSON.

    Args:
        kind: the peer's class.
        store: its folder.
        data: what is stored and asked for.
    """

    def __init__(self, kind: type[Peer], store: Path, data: Data) -> None:
        self._kind = kind
        self._store = store
        self._data = data
        self._queries = data.queries()
        self._peer: Peer | None = None

    @property
    def _open(self) -> Peer:
        assert self._peer is not None
        return self._peer

    def about(self) -> dict[str, Any]:
        """What the peer says of itself."""
        kind = self._kind
        about = {"name": kind.NAME, "full": kind.FULL, "synced": kind.SYNCED}
        return about | {"efforts": list(kind.EFFORTS)}

    def open(self) -> float:
        """Seconds."""
        started = time.perf_counter()
        self._peer = self._kind(self._store, DIM)
        return time.perf_counter() - started

    def fill(self) -> dict[str, list[float]]:
        """Add everything; seconds of each batch of 1,000, and of a search after each tenth.

        "fresh" says of each of these searches whether it found what was added last, 1 or 0; "cpu"
        is the processor's seconds for all of it, whatever else the machine does.
        """
        done: dict[str, list[float]] = {"seconds": [], "searches": [], "fresh": []}
        before = time.process_time()
        for number, batch in enumerate(self._data.batches()):
            started = time.perf_counter()
            self._open.add(batch)
            done["seconds"].append(time.perf_counter() - started)
            if number % 10 == 0:
                started = time.perf_counter()
                found = self._open.search(batch.rows[-1], 10)
                done["searches"].append(time.perf_counter() - started)
                done["fresh"].append(batch.ids[-1] in self._open.ids(found))
        return done | {"cpu": [time.process_time() - before]}

    def settle(self) -> float:
        """Seconds until searches are as fast as they become."""
        started = time.perf_counter()
        self._open.settle()
        return time.perf_counter() - started

    def effort(self, effort: int) -> None:
        """Search with this parameter from now on."""
        self._open.set_effort(effort)

    def search(
        self, first: int, last: int, k: int, below: int | None = None, budget: float = 20.0
    ) -> dict[str, Any]:
        """Seconds and ids of each search, until the budget of seconds is spent."""
        seconds: list[float] = []
        ids: list[list[int]] = []
        for query in self._queries[first:last]:
            started = time.perf_counter()
            found = self._open.search(query, k, below)
            seconds.append(time.perf_counter() - started)
            ids.append(self._open.ids(found))
            if sum(seconds) > budget:
                break
        return {"seconds": seconds, "ids": ids}

    def many(self, first: int, last: int, k: int) -> dict[str, Any]:
        """Seconds of all questions in one call, and the ids of each."""
        started = time.perf_counter()
        found = self._open.search_many(self._queries[first:last], k)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "ids": [self._open.ids(each) for each in found]}

    def singles(self, count: int, budget: float = 5.0) -> list[float]:
        """Add items one by one, each on the disk before the next; seconds of each.

        They are deleted again.
        """
        items = self._new(count)
        seconds: list[float] = []
        for at, id in enumerate(items.ids):
            part = slice(at, at + 1)
            item = Items([id], items.rows[part], items.texts[part], items.shares[part])
            started = time.perf_counter()
            self._open.add(item)
            self._open.sync()
            seconds.append(time.perf_counter() - started)
            if sum(seconds) > budget:
                break
        self._open.delete(items.ids[: len(seconds)])
        return seconds

    def at_once(self, count: int, callers: int) -> float:
        """Add items one by one from so many callers at a time; seconds. They are deleted again."""
        add = getattr(self._open, "add_at_once", None)
        if add is None:
            raise NotImplementedError("it takes calls one after the other")
        items = self._new(count)
        seconds = float(add(items, callers))
        self._open.delete(items.ids)
        return seconds

    def _new(self, count: int) -> Items:
        """Items that are not in the store, with the vectors of questions."""
        numbers = range(count)
        rows = self._queries[np.arange(count) % len(self._queries)]
        texts = [f"single item number {number}" for number in numbers]
        return Items([_NEW + each for each in numbers], rows, texts, [n % 100 for n in numbers])

    def delete(self, step: int) -> float:
        """Delete each step-th of all; seconds."""
        ids = list(range(0, len(self._data.rows()), step))
        started = time.perf_counter()
        for at in range(0, len(ids), 1000):
            self._open.delete(ids[at : at + 1000])
        return time.perf_counter() - started

    def compact(self) -> float:
        """Seconds."""
        started = time.perf_counter()
        self._open.compact()
        return time.perf_counter() - started

    def rss(self) -> int:
        """Bytes of memory in use."""
        gc.collect()
        try:
            return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE
        except OSError:  # not Linux
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def disk(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._store.rglob("*") if path.is_file())

    def close(self) -> None:
        """Close the store."""
        self._open.close()
        self._peer = None


def main() -> None:
    """Serve until there is nothing more to read."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    name, store, data = sys.argv[1:]
    Path(store).mkdir(parents=True, exist_ok=True)
    worker = Worker(peer(name), Path(store), Data(Path(data)))
    for line in sys.stdin:
        asked = json.loads(line)
        call = asked.pop("call")
        try:
            answer: Any = {"value": getattr(worker, call)(**asked)}
        except NotImplementedError as exc:
            answer = {"cannot": str(exc)}
        except Exception as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        answers.write(json.dumps(answer, default=_plain) + "\n")
        answers.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")


if __name__ == "__main__":
    main()
