"""Concurrent calls share a batch, get their own results, and fail alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from kronos import MemoryStore
from kronos.concurrency.coalescing import Coalescer
from kronos.serving.serving import MOST_TEXTS
from tests.conftest import Opener


class Slow:
    """Embeds while its gate is open, and records the size of each batch."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.asked: list[int] = []

    def __call__(self, texts: Sequence[str]) -> Any:
        self.asked.append(len(texts))
        self.entered.set()
        assert self.gate.wait(20)
        if "bad" in texts:
            raise ValueError("a bad text")
        return np.array([[float(text)] for text in texts], np.float32)


def held(
    pool: ThreadPoolExecutor, coalescer: Coalescer[str, Any], texts: list[list[str]]
) -> list[Any]:
    """Calls that all wait: the first in the embedder, the others in the queue."""
    calls = [pool.submit(coalescer, each) for each in texts]
    while len(coalescer._queue) < len(texts) - 1:
        pass
    return calls


def test_calls_that_arrive_meanwhile_form_one_group() -> None:
    slow = Slow()
    coalescer = Coalescer(slow, max_size=MOST_TEXTS)
    with ThreadPoolExecutor(64) as pool:
        calls = held(pool, coalescer, [[str(number)] for number in range(64)])
        slow.gate.set()
        assert [call.result()[0, 0] for call in calls] == list(range(64))
    assert slow.asked == [1, 63]


def test_a_lone_call_is_served_at_once_and_a_large_one_alone() -> None:
    slow = Slow()
    slow.gate.set()
    coalescer = Coalescer(slow, max_size=MOST_TEXTS)
    assert coalescer(["7"]).tolist() == [[7.0]]
    many = [str(number) for number in range(MOST_TEXTS + 5)]
    assert len(coalescer(many)) == len(many)
    assert slow.asked == [1, len(many)]


def test_a_text_that_fails_costs_the_others_nothing() -> None:
    slow = Slow()
    coalescer = Coalescer(slow, max_size=MOST_TEXTS)
    with ThreadPoolExecutor(8) as pool:
        calls = held(pool, coalescer, [["1"], ["2"], ["bad"], ["3", "4"]])
        slow.gate.set()
        assert calls[0].result().tolist() == [[1.0]]
        assert calls[1].result().tolist() == [[2.0]]
        assert calls[3].result().tolist() == [[3.0], [4.0]]
        with pytest.raises(ValueError, match="a bad text"):
            calls[2].result()
    assert coalescer(["5"]).tolist() == [[5.0]]


def test_an_error_for_the_whole_group_is_not_retried() -> None:
    class Closed(Exception):
        """An error for the whole group."""

    slow = Slow()
    asked: list[int] = []

    def work(texts: Sequence[str]) -> Any:
        asked.append(len(texts))
        slow.gate.wait(20)
        raise Closed

    coalescer: Coalescer[str, Any] = Coalescer(work, max_size=MOST_TEXTS, for_all=(Closed,))
    with ThreadPoolExecutor(8) as pool:
        calls = held(pool, coalescer, [["1"], ["2"], ["3"]])
        slow.gate.set()
        assert all(isinstance(call.exception(), Closed) for call in calls)
    assert asked == [1, 2]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt: a shell starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_call_interrupted_while_it_waits_is_not_served_and_the_others_are() -> None:
    slow = Slow()
    coalescer = Coalescer(slow, max_size=1)

    def interrupt() -> None:
        while len(coalescer._queue) < 2:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(8) as pool:
        calls = held(pool, coalescer, [["1"], ["2"]])
        interrupting = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            coalescer(["3"])  # here in the main thread, which signals reach
        interrupting.result()
        calls.append(pool.submit(coalescer, ["4"]))
        slow.gate.set()
        assert [call.result(20).tolist() for call in calls] == [[[1.0]], [[2.0]], [[4.0]]]
    assert slow.asked == [1, 1, 1]


@pytest.mark.usefixtures("interruptible")
def test_a_call_interrupted_while_it_is_served_costs_the_others_nothing() -> None:
    slow = Slow()
    coalescer = Coalescer(slow, max_size=2)

    def open_once_both_wait(gate: threading.Event) -> None:
        while len(coalescer._queue) < 2:
            time.sleep(0.001)
        gate.set()

    def interrupt() -> None:
        while slow.asked != [1, 2]:  # the second group, with the main thread's call, is begun
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        slow.gate.set()

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(coalescer, ["1"])
        assert slow.entered.wait(20)
        second = pool.submit(coalescer, ["2"])
        while not coalescer._queue:
            time.sleep(0.001)
        step, slow.gate = slow.gate, threading.Event()
        opening = pool.submit(open_once_both_wait, step)
        interrupting = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            coalescer(["3"])
        opening.result()
        interrupting.result()
        assert first.result(20).tolist() == [[1.0]]
        assert second.result(20).tolist() == [[2.0]]
    assert coalescer(["4"]).tolist() == [[4.0]]


def test_calls_are_served_in_the_order_of_arrival() -> None:
    served: list[str] = []
    slow = Slow()

    def work(texts: Sequence[str]) -> list[str]:
        served.extend(texts)
        slow.gate.wait(20)
        return [*texts]

    coalescer: Coalescer[str, list[str]] = Coalescer(work, max_size=3)
    with ThreadPoolExecutor(32) as pool:
        for number in range(20):
            pool.submit(coalescer, [str(number)])
            while len(served) + len(coalescer._queue) <= number:
                time.sleep(0.001)
        slow.gate.set()
    assert served == [str(number) for number in range(20)]


def test_concurrent_searches_each_get_their_own_answer(open_store: Opener) -> None:
    store: MemoryStore = open_store()
    texts = [f"{word} {number}" for number in range(8) for word in ("bees", "trains", "glaciers")]
    store.add_many(texts)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda text: store.search(text, mode="dense", limit=1), texts * 4))
    assert [hits[0].content for hits in found] == texts * 4
