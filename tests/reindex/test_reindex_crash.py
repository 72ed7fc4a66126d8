"""kill -9 of reindex workers: the job continues, nothing is lost, and a kill costs one batch.

Two worker processes share each job while this process writes and searches. They are killed at
random moments and replaced, a fixed number of times. A worker logs every text before it embeds it,
so repeated work can be counted.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kronos import MemoryStore
from kronos.embedding.hashing import HashEmbedder
from kronos.settings import Settings
from tests.reindex.test_reindex import assert_all_vectors_are_of

KILLS = 200
STORES = 10
TEXTS = 1000
BATCH = 60
"""Texts that a worker holds: two transactions' worth."""
ROOT = Path(__file__).parents[2]

# Forks a worker for every line "folder dim" and prints its process number: Python and the imports
# are loaded already, so a kill hits a working process.
NURSERY = """
import json, os, signal, sys, time
from kronos.embedding import hashing
from kronos.settings import Settings
from kronos import MemoryStore

plain = hashing.HashEmbedder.embed_documents
def logged(self, texts):
    os.write(log, (json.dumps(list(texts)) + "\\n").encode())
    time.sleep(0.001 * len(texts))
    return plain(self, texts)
hashing.HashEmbedder.embed_documents = logged

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    folder, dim = line.rsplit(maxsplit=1)
    if pid := os.fork():
        print(pid, flush=True)
        continue
    log = os.open(f"{folder}.{dim}.{os.getpid()}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    settings = Settings(batch_size=int(sys.argv[1]))
    MemoryStore.open(folder, embedding_model="hash", embedding_dim=int(dim), settings=settings)
    os._exit(0)
"""


class Nursery:
    """Starts and kills workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(BATCH // 2)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, dim: int) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{self.folder} {dim}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Traffic:
    """A writer and a searcher in this process, and what the store must hold."""

    def __init__(self, store: MemoryStore, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.held: dict[str, str] = {}
        self.over = threading.Event()
        self.errors: list[BaseException] = []
        self.searches = 0
        self.fill()

    def fill(self) -> None:
        texts = [f"memory number {i} of the first ones" for i in range(TEXTS)]
        self.held = dict(zip(self.store.add_many(texts), texts, strict=True))

    def write(self) -> None:
        for number in iter(int, 1):
            if self.over.wait(0.01):
                return
            id = self.chance.choice(list(self.held))
            match number % 3, self.chance.random() < 0.2:
                case _, True:
                    self.store.delete(id)
                    del self.held[id]
                case _:
                    text = f"edited as number {self.chance.random()}"
                    self.store.update(id, content=text)
                    self.held[id] = text
            text = f"added as number {self.chance.random()}"
            self.held[self.store.add(text)] = text

    def search(self) -> None:
        while not self.over.wait(0.005):
            assert len(self.store.search("memory number of the first ones", limit=5)) == 5
            self.searches += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        def guarded(work: object) -> None:
            try:
                work()  # type: ignore[operator]
            except BaseException as exc:
                self.errors.append(exc)

        threads = [threading.Thread(target=guarded, args=[w]) for w in (self.write, self.search)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()


def work_through(nursery: Nursery, dim: int, kills: int, chance: random.Random) -> int:
    """Reindex the store to another width with two workers, killing some. Returns the kills."""
    workers = [nursery.start(dim), nursery.start(dim)]
    killed = 0
    while any(is_alive(worker) for worker in workers):
        time.sleep(chance.uniform(0, 0.12))
        # Sometimes both at once: the job then waits for the next worker.
        victims = chance.choice([[0], [1], [0], [1], [0, 1]])[: kills - killed]
        if all(is_alive(worker) for worker in workers):
            for victim in victims:
                os.kill(workers[victim], signal.SIGKILL)
            killed += len(victims)
            for victim in victims:
                workers[victim] = nursery.start(dim)
    return killed


def repeats(folder: Path, dim: int) -> tuple[int, int]:
    """How many texts the workers of a job embedded, and how many of these were repeated."""
    counts: Counter[str] = Counter()
    for log in folder.parent.glob(f"{folder.name}.{dim}.*.log"):
        for line in log.read_text().splitlines():
            counts.update(json.loads(line))
    return len(counts), sum(counts.values()) - len(counts)


@pytest.mark.parametrize("number", range(STORES))
def test_killed_workers_lose_nothing_and_repeat_one_batch_each(tmp_path: Path, number: int) -> None:
    chance = random.Random(number)
    folder = tmp_path / "store"
    nursery = Nursery(folder)
    dim, left = 64, KILLS // STORES
    settings = Settings(batch_size=100, durability="normal")
    with MemoryStore.open(
        folder, embedding_model="hash", embedding_dim=dim, settings=settings
    ) as store:
        traffic = Traffic(store, chance)
        with traffic.running():
            while left:
                dim += 8
                killed = work_through(nursery, dim, left, chance)
                left -= killed
                embedded, again = repeats(folder, dim)
                assert embedded >= TEXTS // 2
                assert again <= killed * BATCH, f"{again} texts twice after {killed} kills"
                assert store.stats().jobs == (), "the job is over"
        assert traffic.errors == []
        assert traffic.searches > 20
        assert {m.id: m.content for m in store.list(limit=10**6)} == traffic.held
        assert store.search("number")[0].embedder == "hash"
        assert store.stats().dim == dim, "followed the switches"
        assert_all_vectors_are_of(store, HashEmbedder(dim))
        assert store.maintenance.check().problems == ()
    nursery.close()
