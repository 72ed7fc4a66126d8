"""What each verb costs in a store, and in one ten times as large; and searches beside other work.

    python -m benchmarks.costs [--sizes 10000 100000] [--rounds 5] [--folder DIR] [--only WORD]

Both stores are made alike: hash vectors 32 wide with the graph built, several namespaces (one of
them rare), parents, links, history, and memories that have expired. A word is held by about 60
memories, whatever the size. The two take turns at each verb; the ratio of the medians of each one's
quietest round says how it grew. A verb that grew more than three times, and has no reason to, ends
the program with 1.

The second table times plain searches alone, beside a thread that keeps a processor busy without
Python's lock, and beside one that has other work done by the same store, in turns of a second. On a
machine with no processor to spare the second shows what any thread costs; the third is held against
the dearer of the two.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from kronos import F, MemoryStore, NewMemory, Ranking

DIM = 32
MOST_GROWTH, MOST_SLOWER = 3.0, 2.0
_HOLDERS, _WORDS = 60, 12
"""So many memories hold a word; so many words a text has."""
_SECONDS, _PAUSE_S = 1.0, 0.02
Call = Callable[[int], object]


@dataclass(frozen=True)
class Verb:
    """Something that is timed."""

    name: str
    call: Call
    """Takes a number that is another one each time."""
    times: int = 20
    """Calls a round."""
    reads_all: str = ""
    """Why it may grow with the store."""


class Filled:
    """A store of so many memories, and what the verbs are asked about."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self.random = random.Random(7)
        self.words = [f"w{number}" for number in range(max(_WORDS * count // _HOLDERS, 50))]
        self.store = MemoryStore.open(
            folder / f"{count}", embedding_model="hash", embedding_dim=DIM
        )
        self.folder = folder / f"{count}"
        self.store.add_many(map(self._memory, range(count)))
        self.ids = [f"m{number}" for number in range(count)]
        for number in range(0, count, 100):
            self.store.link(f"m{number}", f"m{number + 1}", "follows")
        self.store.maintenance.index_field("rank")
        # As much at every size: the past costs what was changed since.
        time.sleep(0.01)
        self.moment = datetime.now(timezone.utc)
        time.sleep(0.01)
        for number in range(5, 1005, 10):
            self.store.update(f"m{number}", content=self.text())
        self.store.delete([f"m{number}" for number in range(6, 506, 10)])
        self.store.maintenance.tune(0.95)  # builds the graph
        self.store.search("warm")
        self.store.close()  # saves it
        self.store.connect()

    def text(self) -> str:
        """A new text."""
        return " ".join(self.random.choices(self.words, k=_WORDS))

    def question(self) -> str:
        """A question of two words."""
        return " ".join(self.random.choices(self.words, k=2))

    def id(self) -> str:
        """A memory that stays."""
        return self.ids[self.random.randrange(self.count // 10) * 10 + 3]

    def _memory(self, number: int) -> NewMemory:
        long_ago = datetime.now(timezone.utc) + timedelta(seconds=1)
        places = ["default", "other/a", "default/b", "other/c", "default"]
        common = " common" if number % 100 == 0 else ""
        return NewMemory(
            self.text() + common,
            id=f"m{number}",
            namespace="rare" if number % 997 == 7 else places[number % 5],
            metadata={"n": number, "rank": number % 500, "five": number % 5, "doc": number // 8},
            importance=number % 10 / 10,
            parent_id=f"m{number - 1}" if number % 10 == 4 else None,
            expires_at=long_ago if number % 100 == 8 else None,
        )


def verbs(filled: Filled) -> Iterator[Verb]:
    """Every verb of a store, in the forms that may differ."""
    yield from _reads(filled)
    yield from _lists(filled)
    yield from _searches(filled)
    yield from _writes(filled)
    yield from _upkeep(filled)


def _reads(filled: Filled) -> Iterator[Verb]:
    store, moment = filled.store, filled.moment
    yield Verb("get", lambda _: store.get(filled.id()))
    yield Verb("get, as of", lambda _: store.get(filled.id(), as_of=moment))
    yield Verb("find, nothing", lambda n: store.find(f"nobody {n}"))
    yield Verb("history", lambda _: store.history("m5"))
    yield Verb("links", lambda _: store.links("m100"))
    yield Verb("trace", lambda _: store.trace("m100", "both"))


def _lists(filled: Filled) -> Iterator[Verb]:
    store, moment, count = filled.store, filled.moment, filled.count
    middle = f"m{count // 2 + 3}"
    news = itertools.count()

    def list_(**options: Any) -> Call:
        return lambda _: store.list(limit=10, **options)

    def later(_: int) -> datetime:
        return moment + timedelta(microseconds=next(news))

    yield Verb("list, every namespace", list_(namespace="*"))
    yield Verb("list, own namespace", list_())
    yield Verb("list, rare namespace", list_(namespace="rare"))
    yield Verb("list, after the middle", list_(after=middle))
    yield Verb("list, filter that was used", list_(where=F.five == 3))
    yield Verb("list, rare filter that was used", list_(where=F.n == count - 2))
    yield Verb("list, indexed filter", lambda n: store.list(limit=10, where=F.rank == n % 500))
    yield Verb("list, indexed range", lambda n: store.list(limit=10, where=F.rank >= n % 400))
    yield Verb("list, as of", list_(as_of=moment, namespace="*"))
    yield Verb("list, as of, a page on", list_(as_of=moment, after=middle))
    yield Verb("list, as of another moment", lambda n: store.list(limit=10, as_of=later(n)))
    yield Verb("iterate, a page", lambda _: [*itertools.islice(store.iterate(), 10)])
    yield Verb("count, every namespace", lambda _: store.count(namespace="*"))
    yield Verb("count, own namespace", lambda _: store.count())
    yield Verb("count, filter that was used", lambda _: store.count(where=F.five == 3))
    yield Verb("count, as of", lambda _: store.count(as_of=moment))
    yield Verb("count, as of another moment", lambda n: store.count(as_of=later(n)))
    yield Verb(
        "count, first use of a filter",
        lambda n: store.count(where=(F.five == 3) & (F.n != -n)),
        3,
        "reads every memory",
    )


def _searches(filled: Filled) -> Iterator[Verb]:
    store, moment = filled.store, filled.moment
    news = itertools.count(10**6)

    def search(**options: Any) -> Call:
        return lambda _: store.search(filled.question(), **{"namespace": "*", **options})

    def later() -> datetime:
        return moment + timedelta(microseconds=next(news))

    yield Verb("search, dense", search(mode="dense"))
    yield Verb("search, lexical", search(mode="lexical"))
    yield Verb("search, hybrid", search())
    yield Verb("search, own namespace", search(namespace=None))
    yield Verb("search, rare namespace", search(namespace="rare"))
    yield Verb("search, filter that was used", search(where=F.five == 3, mode="dense"))
    yield Verb(
        "search, hybrid, filter that was used",
        search(where=F.five == 3),
        reads_all="2,000 that match are compared; of 20,000 the graph is asked for 100",
    )
    yield Verb(
        "search, indexed filter, first use",
        lambda n: store.search("w1", where=F.rank == n % 500, mode="dense"),
    )
    yield Verb(
        "search, first use of a filter",
        lambda n: store.search("w1", where=(F.five == 3) & (F.n != -n), mode="dense"),
        3,
        "reads every memory",
    )
    yield Verb("search, five groups for ten", search(group_by="five", mode="dense"))
    yield Verb("search, many groups", search(group_by="doc"))
    yield Verb("search, groups of words", search(group_by="five", mode="lexical"))
    yield Verb("search, as of", search(as_of=moment))
    yield Verb(
        "search, as of another moment",
        lambda _: store.search(filled.question(), as_of=later(), namespace="*"),
    )
    yield Verb("search, near", lambda _: store.search(near=filled.id()))
    yield Verb("search, near, as of", lambda _: store.search(near=filled.id(), as_of=moment))
    yield Verb("search, expand", search(expand=2))
    yield Verb("search, recency", search(ranking=Ranking(recency=0.05), mode="dense"))
    yield Verb(
        "search, hybrid, recency",
        search(ranking=Ranking(recency=0.05)),
        reads_all="400 candidates of a graph take longer than of 10,000 that are compared",
    )
    yield Verb("search, diversity", search(ranking=Ranking(diversity=0.5)))
    yield Verb(
        "search_many, 16", lambda _: store.search_many([filled.question() for _ in range(16)]), 5
    )


def _writes(filled: Filled) -> Iterator[Verb]:
    store = filled.store
    added: list[str] = []

    def add(_: int) -> None:
        added.append(store.add(filled.text()))

    def add_and(do: Callable[[], object]) -> Call:
        def both(_: int) -> None:
            add(0)
            do()

        return both

    def delete_some(n: int) -> None:
        mark = f"mark {n}"
        store.add_many([{"content": filled.text(), "namespace": mark} for _ in range(100)])
        store.delete(namespace=mark)

    yield Verb("add", add)
    yield Verb("add_many, 100", lambda _: store.add_many([filled.text() for _ in range(100)]), 5)
    yield Verb("upsert", lambda _: store.upsert(filled.text(), id=filled.id()))
    yield Verb("update, text", lambda _: store.update(filled.id(), content=filled.text()))
    yield Verb("update, importance", lambda n: store.update(filled.id(), importance=n % 10 / 10))
    yield Verb("touch", lambda _: store.touch(filled.id()))
    yield Verb("link", lambda n: store.link(filled.id(), "m2", f"relation {n}"))
    yield Verb("unlink", lambda _: store.unlink("m100", "m101", "no such"))
    yield Verb("delete, one", lambda _: store.delete(added.pop() if added else "nobody"))
    yield Verb("add and delete 100 of a namespace", delete_some, 3)
    yield Verb("add, then search", add_and(lambda: store.search(filled.question())))
    yield Verb("add, then list a filter", add_and(lambda: store.list(where=F.five == 3, limit=10)))
    yield Verb(
        "add, then search as of", add_and(lambda: store.search("w2", as_of=filled.moment, limit=5))
    )
    yield Verb("add, then count", add_and(lambda: store.count()))
    yield Verb("add, then groups", add_and(lambda: store.search("w2", group_by="five")))


def _upkeep(filled: Filled) -> Iterator[Verb]:
    store = filled.store
    yield Verb("stats", lambda _: store.stats())
    yield Verb("jobs", lambda _: store.models.jobs())
    yield Verb("failures", lambda _: store.models.failures())
    yield Verb("indexed_fields", lambda _: store.maintenance.indexed_fields())
    yield Verb("reindex, nothing pending", lambda _: store.reindex(), 3)
    yield Verb("plan_reindex, nothing pending", lambda _: store.models.plan(), 3)
    yield Verb("check", lambda _: store.maintenance.check(), 1, "compares everything")
    yield Verb(
        "compact",
        lambda _: store.maintenance.compact(),
        1,
        "merges words, and saves the index anew",
    )
    yield Verb("export_to", lambda _: store.export_to(filled.folder / "x.jsonl"), 1, "writes all")
    yield Verb("duplicates", lambda _: store.duplicates(0.999), 1, "compares every pair")


# -- How they grow ------------------------------------------------------------------------------


def timed(verb: Verb, numbers: Iterator[int], times: int) -> list[float]:
    """Seconds of some calls."""
    found = []
    for number in itertools.islice(numbers, times):
        started = time.perf_counter()
        verb.call(number)
        found.append(time.perf_counter() - started)
    return found


def growth(stores: Sequence[Filled], rounds: int, only: str) -> list[str]:
    """Print how every verb grew; the names of those that have no reason to."""
    print(f"{'ms':<36}" + "".join(f"{each.count:>10,}" for each in stores) + "   grew")
    numbers, grown = itertools.count(1), []
    for pair in zip(*map(verbs, stores), strict=True):
        if only not in pair[0].name:
            continue
        for verb in pair:
            timed(verb, numbers, 2 if not verb.reads_all else 1)
        found: list[list[float]] = [[] for _ in pair]
        for _ in range(rounds if pair[0].times > 1 else 1):
            for verb, times in zip(pair, found, strict=True):
                times.append(statistics.median(timed(verb, numbers, verb.times)))
        # The quietest round: what else runs on the machine only adds.
        medians = [min(times) * 1e3 for times in found]
        ratio = medians[-1] / medians[0]
        why = pair[0].reads_all
        mark = "" if ratio <= MOST_GROWTH else f"   ({why})" if why else "   TOO MUCH"
        if ratio > MOST_GROWTH and not why:
            grown.append(pair[0].name)
        shown = "".join(f"{median:10.3f}" for median in medians)
        print(f"{pair[0].name:<36}{shown}{ratio:7.2f}{mark}", flush=True)
    return grown


# -- Searches beside other work -----------------------------------------------------------------


def others(filled: Filled) -> dict[str, Call]:
    """What else is done meanwhile, by its name."""
    store = filled.store

    def compact(n: int) -> None:
        mark = f"beside {n}"
        store.add_many([{"content": filled.text(), "namespace": mark} for _ in range(50)])
        store.delete(namespace=mark)
        store.maintenance.compact()

    return {
        "new filters": lambda n: store.search("w1", where=(F.five == 2) & (F.n != -n)),
        "a count by a new filter": lambda n: store.count(where=(F.doc > 2) & (F.n != -n)),
        "stats": lambda _: store.stats(),
        "check": lambda _: store.maintenance.check(),
        "compact": compact,
        "the past": lambda n: store.count(as_of=filled.moment + timedelta(microseconds=10**7 + n)),
    }


def beside(filled: Filled, rounds: int) -> list[str]:
    """Print how long searches take alone and beside other work; what they wait too long for."""
    print(
        f"\n{'searches of ' + format(filled.count, ','):<26}{'alone':>15}{'busy processor':>17}",
        end="",
    )
    print(f"{'beside it':>15}   ratio   (p50 and p95, ms)")
    slow, numbers, many = [], itertools.count(10**6), bytes(50_000_000)

    def keep_busy(_: int) -> None:
        hashlib.sha256(many).digest()

    for name, call in others(filled).items():
        found: list[list[tuple[float, float]]] = [[], [], []]
        for _ in range(rounds):
            for work, times in zip((None, keep_busy, call), found, strict=True):
                times.append(_searched(filled, work, numbers))
        shown = [tuple(map(statistics.median, zip(*times, strict=True))) for times in found]
        ratio = shown[2][1] / max(shown[0][1], shown[1][1])
        if ratio > MOST_SLOWER:
            slow.append(f"searches beside {name}")
        row = "".join(f"{p50:8.2f}{p95:8.2f}" for p50, p95 in shown)
        print(
            f"{name:<26}{row}{ratio:8.2f}{'   TOO MUCH' if ratio > MOST_SLOWER else ''}", flush=True
        )
    return slow


def _searched(filled: Filled, work: Call | None, numbers: Iterator[int]) -> tuple[float, float]:
    """Milliseconds that plain searches take beside some work: p50 and p95."""
    over = threading.Event()

    def repeat() -> None:
        while work is not None and not over.is_set():
            work(next(numbers))
            over.wait(_PAUSE_S)

    thread = threading.Thread(target=repeat)
    thread.start()
    found, ends = [], time.perf_counter() + _SECONDS
    while (started := time.perf_counter()) < ends:
        filled.store.search(filled.question(), namespace="*", mode="dense")
        found.append(time.perf_counter() - started)
    over.set()
    thread.join()
    return statistics.median(found) * 1e3, sorted(found)[int(len(found) * 0.95)] * 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the stores and measure; 1 where something costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=[10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the stores are made, and deleted afterwards")
    parser.add_argument("--only", default="", help="verbs whose names hold this")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder))
        stores = [Filled(Path(folder), size) for size in options.sizes]
        for each in stores:
            stack.callback(each.store.close)
        wrong = growth(stores, options.rounds, options.only)
        if not options.only:
            wrong += beside(stores[-1], options.rounds)
    print("\ncosts too much: " + ", ".join(wrong) if wrong else "\nnothing costs too much")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
