"""Thread pools, outcomes, submitted calls, background tasks, forks and the end of a process."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kronos import KronosMemory, MemoryStore
from kronos.concurrency import forking
from kronos.concurrency.background import Background
from kronos.concurrency.coalescing import Coalescer, Coalescers
from kronos.concurrency.forking import Lock, WeakList
from kronos.concurrency.threads import (
    NeedsEmbedderError,
    Outcome,
    Pool,
    check_may_wait_for_embedder,
    notify_together,
    spawn,
    wait_until_settled,
)
from kronos.errors import KronosError, StoreClosedError, StoreCopyError

HASH: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": 16}


# -- Pools --------------------------------------------------------------------------------------


def wait_for(what: Any) -> None:
    for _ in range(1000):
        if what():
            return
        time.sleep(0.01)
    pytest.fail("it never came")


def test_a_pool_runs_everything_and_starts_no_more_threads_than_needed() -> None:
    pool = Pool("test-pool", 4)
    for number in range(50):  # one after the other
        outcome = pool.submit(lambda number=number: number * 2)  # type: ignore[misc]
        assert outcome.wait(10)
        assert outcome.result == number * 2
    assert 1 <= sum(t.name.startswith("test-pool") for t in threading.enumerate()) <= 3
    notify_together = [pool.submit(lambda: time.sleep(0.01)) for _ in range(40)]
    assert all(outcome.wait(10) for outcome in notify_together)
    assert sum(t.name.startswith("test-pool") for t in threading.enumerate()) == 4
    failed = pool.submit(lambda: 1 / 0)
    assert failed.wait(10)
    with pytest.raises(ZeroDivisionError):
        _ = failed.result
    pool.shut_down()
    wait_for(lambda: not any(t.name.startswith("test-pool") for t in threading.enumerate()))
    with pytest.raises(StoreClosedError):
        pool.submit(print)


def test_the_threads_of_a_dropped_pool_end() -> None:
    pool = Pool("test-forgotten", 2)
    assert pool.submit(lambda: None).wait(10)
    del pool
    gc.collect()
    wait_for(lambda: not any(t.name.startswith("test-forgotten") for t in threading.enumerate()))


def test_a_pool_keeps_no_reference_to_what_it_ran() -> None:
    class Thing:
        """An object that a call holds."""

    pool, thing = Pool("test-kept", 1), Thing()
    held = weakref.ref(thing)

    def fail(thing: Thing) -> None:
        raise KeyError

    outcome = pool.submit(lambda thing=thing: fail(thing))  # type: ignore[misc]
    assert outcome.wait(10)
    del thing, outcome
    gc.collect()
    wait_for(lambda: held() is None)
    pool.shut_down()


def test_a_job_that_has_not_begun_at_shutdown_never_runs() -> None:
    pool, gate = Pool("test-shut", 1), threading.Event()
    running = pool.submit(lambda: gate.wait(10))
    waiting = [pool.submit(lambda: pytest.fail("it ran")) for _ in range(5)]
    assert pool.shut_down() == waiting
    gate.set()
    assert running.wait(10)
    assert running.result is True


def test_a_job_whose_outcome_is_settled_before_its_turn_is_not_run() -> None:
    pool, gate, ran = Pool("test-settled", 1), threading.Event(), []
    pool.submit(lambda: gate.wait(10))
    outcome = pool.submit(lambda: ran.append(1))
    outcome.settle(error=KeyError())
    gate.set()
    assert pool.submit(lambda: None).wait(10)
    assert ran == []
    pool.shut_down()


def test_only_threads_that_may_wait_for_an_embedder_wait() -> None:
    check_may_wait_for_embedder()
    prompt, patient = Pool("test-prompt", 1, never_waits=True), Pool("test-patient", 1)
    refused, taken = (
        prompt.submit(check_may_wait_for_embedder),
        patient.submit(check_may_wait_for_embedder),
    )
    assert refused.wait(10)
    assert taken.wait(10)
    assert taken.result is None
    with pytest.raises(NeedsEmbedderError):
        _ = refused.result
    prompt.shut_down()
    patient.shut_down()


def test_the_caller_does_the_work_if_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    pool = Pool("test-none", 2)
    assert pool.submit(threading.get_ident).result == threading.get_ident()
    assert spawn("test-none", threading.get_ident).result == threading.get_ident()


def test_an_outcome_is_settled_once_and_notifies_all_that_wait() -> None:
    for _ in range(200):
        outcome: Outcome[int] = Outcome()
        with ThreadPoolExecutor(6) as pool:
            settled = [pool.submit(outcome.wait, 10) for _ in range(3)]
            for number in range(3):
                pool.submit(outcome.settle, number)
            assert all(each.result() for each in settled)
        assert outcome.result in (0, 1, 2)


def test_a_loop_is_notified_once_of_outcomes_settled_together() -> None:
    woken: list[int] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **options: Any) -> Any:
            woken.append(1)
            return wake(*args, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[assignment]
        outcomes: list[Outcome[int]] = [Outcome() for _ in range(20)]
        waiting = [asyncio.create_task(wait_until_settled(outcome)) for outcome in outcomes]
        await asyncio.sleep(0)

        def settle() -> None:
            with notify_together():
                for number, outcome in enumerate(outcomes):
                    outcome.settle(number)

        spawn("test-settle", settle)
        assert await asyncio.gather(*waiting) == list(range(20))

    asyncio.run(scenario())
    assert len(woken) == 1


# -- Submitted calls ------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool("test-coalescer", 4)
    yield pool
    pool.shut_down()


def test_calls_of_threads_and_submitted_calls_share_their_work(pool: Pool) -> None:
    gate, sizes = threading.Event(), []

    def work(items: Any) -> list[int]:
        sizes.append(len(items))
        gate.wait(10)
        return [item * 2 for item in items]

    coalescer: Coalescer[int, list[int]] = Coalescer(work, max_size=100)
    with ThreadPoolExecutor(40) as threads:
        handed = [coalescer.submit([number], 1, pool.submit) for number in range(20)]
        called = [threads.submit(coalescer, [number]) for number in range(20, 40)]
        wait_for(lambda: len(coalescer._queue) == 39)
        gate.set()
        assert [each.result() for each in called] == [[2 * number] for number in range(20, 40)]
        assert all(outcome.wait(10) for outcome in handed)
        assert [outcome.result for outcome in handed] == [[2 * number] for number in range(20)]
    assert sizes == [1, 39]
    assert coalescer._leader is None


def test_a_leading_thread_hands_the_lead_to_a_submitted_call(pool: Pool) -> None:
    gate = threading.Event()
    coalescer: Coalescer[int, list[int]] = Coalescer(
        lambda items: [gate.wait(10) and item for item in items], max_size=1
    )
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(coalescer, [1])
        wait_for(lambda: coalescer._leader is not None and not coalescer._queue)
        second = coalescer.submit([2], 1, pool.submit)
        third = threads.submit(coalescer, [3])
        wait_for(lambda: len(coalescer._queue) == 2)
        fourth = coalescer.submit([4], 1, pool.submit)
        gate.set()
        assert (first.result(), third.result()) == ([1], [3])
    assert second.wait(10)
    assert fourth.wait(10)
    assert (second.result, fourth.result) == ([2], [4])


def test_a_cancelled_submitted_call_is_not_served(pool: Pool) -> None:
    gate, made = threading.Event(), []

    def work(items: Any) -> list[int]:
        gate.wait(10)
        made.extend(items)
        return [*items]

    coalescer: Coalescer[int, list[int]] = Coalescer(work, max_size=1)
    first, *others = [coalescer.submit([number], 1, pool.submit) for number in range(6)]
    for outcome in others[:3]:
        outcome.settle(error=KeyError())
    gate.set()
    assert all(outcome.wait(10) for outcome in (first, *others))
    assert made == [0, 4, 5]
    wait_for(lambda: coalescer._leader is None)
    last = coalescer.submit([9], 1, pool.submit)
    assert last.wait(10)


def test_submitted_calls_fail_after_a_shutdown_and_nothing_hangs(pool: Pool) -> None:
    gate = threading.Event()
    coalescer: Coalescer[int, list[int]] = Coalescer(
        lambda items: [gate.wait(10) and item for item in items], max_size=1
    )
    first, *others = [coalescer.submit([number], 1, pool.submit) for number in range(1, 50)]
    wait_for(lambda: len(coalescer._queue) == 48)
    pool.shut_down()
    gate.set()
    assert first.wait(10)
    assert first.result == [1]
    assert all(outcome.wait(10) for outcome in others)
    for outcome in others:
        with pytest.raises(StoreClosedError):
            _ = outcome.result
    with pytest.raises(StoreClosedError):
        _ = coalescer.submit([1], 1, pool.submit).result
    assert coalescer([7]) == [7], "a thread of its own still can"


def test_an_exit_of_the_leading_thread_costs_the_others_nothing(pool: Pool) -> None:
    gate = threading.Event()

    def work(items: Any) -> list[int]:
        gate.wait(10)
        if 0 in items:
            raise SystemExit(3)
        return [*items]

    coalescer: Coalescer[int, list[int]] = Coalescer(work, max_size=1)
    first, second = (coalescer.submit([number], 1, pool.submit) for number in range(2))
    gate.set()
    assert first.wait(10)
    with pytest.raises(SystemExit):
        _ = first.result
    assert second.wait(10)
    assert second.result == [1]


def test_a_key_keeps_its_coalescer_while_a_call_uses_it() -> None:
    coalescers: Coalescers[int, list[int]] = Coalescers(lambda: Coalescer(list, max_size=1))
    one = coalescers["a"]
    assert coalescers["a"] is one
    assert coalescers["b"] is not one
    del one
    gc.collect()
    assert len(coalescers._known) == 0


# -- Background, forks, the end -----------------------------------------------------------------


def test_a_background_keeps_no_reference_to_its_tasks() -> None:
    background = Background("test")
    tasks, ran = [], threading.Event()

    class Task:
        def __call__(self) -> None:
            ran.set()

    for _ in range(300):
        ran.clear()
        task = Task()
        tasks.append(weakref.ref(task))
        background.start(lambda _, task=task: task)  # type: ignore[misc]
        del task
        assert ran.wait(10)
        background.wait()
    gc.collect()
    wait_for(lambda: not any(reference() is not None for reference in tasks))


def test_finalizers_do_not_accumulate_with_tasks() -> None:
    background = Background("test")
    before = len(weakref.finalize._registry)  # type: ignore[attr-defined]
    for _ in range(50):
        background.start(lambda _: lambda: None)
        background.wait()
    assert len(weakref.finalize._registry) <= before  # type: ignore[attr-defined]


def test_a_dropped_background_tells_its_task_to_stop() -> None:
    background, ended = Background("test"), threading.Event()
    background.start(lambda stop: lambda: stop.wait(10) and ended.set())  # type: ignore[func-returns-value]
    del background
    gc.collect()
    assert ended.wait(10)


def test_a_background_waits_for_a_stuck_task_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kronos.concurrency.background.SHUTDOWN_TIMEOUT_S", 0.2)
    background, gate = Background("test"), threading.Event()
    background.start(lambda _: lambda: gate.wait(20))
    started = time.monotonic()
    background.stop()
    assert time.monotonic() - started < 5
    assert background.busy
    gate.set()
    background.wait(10)


def test_locks_can_be_created_while_another_thread_forks() -> None:
    over = threading.Event()
    failed: list[BaseException] = []

    def make() -> None:
        try:
            while not over.is_set():
                [Lock() for _ in range(50)]
        except BaseException as exc:
            failed.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    makers = [threading.Thread(target=make) for _ in range(6)]
    try:
        for maker in makers:
            maker.start()
        for _ in range(300):  # what a fork does, but for the fork
            forking._before()
            forking._after(in_child=False)
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for maker in makers:
            maker.join()
    assert not failed


def test_members_can_come_and_go_while_others_iterate() -> None:
    class Member:
        """Anything."""

    members: WeakList[Member] = WeakList()
    kept = [Member() for _ in range(10)]
    for member in kept:
        members.add(member)
    seen = []
    for number, member in enumerate(members):
        members.add(Member())
        if number == 3:
            gc.collect()
        seen.append(member)
    assert set(seen) == set(kept)
    del seen, member
    gc.collect()
    assert set(members) == set(kept)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_memory_forked_during_calls_works_in_the_child(tmp_path: Path) -> None:
    program = """
    import asyncio, os, signal, sys, threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    from kronos import KronosMemory
    memory = KronosMemory(sys.argv[1], embedding_model="hash", embedding_dim=16)
    asyncio.run(memory.connect())
    # A fork amid an import leaves its lock locked in the child, which is Python's own to mend.
    asyncio.run(memory.add("a text"))
    asyncio.run(memory.search("a text"))
    over = threading.Event()
    def churn(number):
        while not over.is_set():
            asyncio.run(memory.add(f"text {number}"))
            asyncio.run(memory.search(f"text {number}"))
    threads = [threading.Thread(target=churn, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    async def say(text):
        id = await memory.add(text)
        assert (await memory.search(text, limit=1))[0].id == id
        assert (await memory.maintenance.check()).ok
    for number in range(10):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            asyncio.run(say(f"child {number} says so"))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    over.set()
    for thread in threads:
        thread.join()
    asyncio.run(say("the parent says so"))
    asyncio.run(memory.close())
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=True, timeout=100
    )


# -- Copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("face", [MemoryStore, KronosMemory])
def test_a_store_cannot_be_copied_and_the_error_says_what_to_do(
    tmp_path: Path, copying: Any, face: Any
) -> None:
    memories = face(tmp_path, **HASH)
    for holder in (memories, {"a": [memories]}):
        if copying is copy.copy and holder is not memories:
            continue
        with pytest.raises(
            StoreCopyError, match=r"path that it was opened with.*kronos\.db"
        ) as got:
            copying(holder)
        assert isinstance(got.value, KronosError)
        assert isinstance(got.value, TypeError)


def test_passing_a_store_to_a_spawned_process_is_refused_by_name(tmp_path: Path) -> None:
    program = """
    import multiprocessing, sys
    from kronos import MemoryStore
    from kronos.errors import StoreCopyError
    def work(store): pass
    if __name__ == "__main__":
        with MemoryStore.open(sys.argv[1], embedding_model="hash") as store:
            process = multiprocessing.get_context("spawn").Process(target=work, args=[store])
            try:
                process.start()
            except StoreCopyError as exc:
                print("refused")
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "refused\n"
