"""Many processes, no server: commits are seen at once; forks and ends lose and hang nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from kronos import KronosMemory, MemoryStore, Settings
from kronos.errors import StoreBusyError
from tests.conftest import Opener

OPEN = """
import asyncio, os, signal, sys, threading, time
from kronos import KronosMemory, MemoryStore
def opened(**options):
    return MemoryStore.open(sys.argv[1], embedding_model="hash", embedding_dim=64, **options)
"""


def run(script: str, folder: Path, *arguments: str, timeout: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPEN + script, str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_commit_of_another_process_is_found_at_the_next_call(store: MemoryStore) -> None:
    store.add_many(f"filler {number}" for number in range(300))
    store.search("filler")
    with subprocess.Popen(
        [sys.executable, "-c", OPEN + """
with opened() as store:
    for line in sys.stdin:
        verb, number = line.split()
        if verb == "add":
            store.add_many([f"w{number}x{i} unique" for i in range(50)])
        elif verb == "edit":
            store.update(store.search(f"w{number}x7")[0].id, content=f"changed{number} text")
        else:
            store.delete([hit.id for hit in store.search(f"changed{number}", limit=1)])
        print("done", flush=True)
""", str(store.location.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:  # fmt: skip
        assert writer.stdin is not None
        assert writer.stdout is not None
        for number in range(10):
            for verb in ("add", "edit", "delete"):
                writer.stdin.write(f"{verb} {number}\n")
                writer.stdin.flush()
                assert writer.stdout.readline() == "done\n"
                if verb == "add":
                    (hit,) = store.search(f"w{number}x42 unique", limit=1)
                    assert hit.content == f"w{number}x42 unique"
                    seventh = store.search(f"w{number}x7 unique", limit=1)[0].id
                elif verb == "edit":
                    assert store.get(seventh).content == f"changed{number} text"
                    assert store.search(f"changed{number} text", limit=1)[0].id == seventh
                    assert store.search(f"w{number}x7 unique", limit=1)[0].id != seventh
                else:
                    assert store.find(seventh) is None
                    found = store.search(f"changed{number} text", limit=400)
                    assert seventh not in {hit.id for hit in found}
    assert store.maintenance.check().problems == ()


def test_two_writing_processes_lose_nothing(store: MemoryStore) -> None:
    script = """
with opened() as store:
    for start in range(0, 1500, 30):
        store.add_many(f"{sys.argv[2]} {i}" for i in range(start, start + 30))
        store.search("anything")
"""
    command = [sys.executable, "-c", OPEN + script, str(store.location.folder)]
    writers = [subprocess.Popen([*command, name]) for name in ("left", "right")]
    while any(writer.poll() is None for writer in writers):
        store.search("left 7")  # a reader meanwhile
    assert [writer.returncode for writer in writers] == [0, 0]
    wanted = {f"{name} {i}" for name in ("left", "right") for i in range(1500)}
    assert {memory.content for memory in store.list(limit=10**6)} == wanted
    assert store.maintenance.check().problems == ()


def test_a_writer_waits_so_long_and_no_reader_waits(open_store: Opener) -> None:
    store = open_store(settings=Settings(busy_timeout_s=0.3))
    store.add("here before", id="a")
    holder = open_store()
    with holder._session.writer() as repository:
        repository.delete_ids(["a"])
        before = store.stats().seq
        started = time.monotonic()
        for call in (
            lambda: store.add("no"),
            lambda: store.update("a", content="no"),
            lambda: store.delete("a"),
        ):
            with pytest.raises(StoreBusyError, match="busy_timeout_s"):
                call()
        assert 0.8 < time.monotonic() - started < 10
        assert store.get("a").content == "here before"
        assert [hit.id for hit in store.search("here before")] == ["a"]
        assert store.stats().seq == before
    assert store.find("a") is None
    store.add("it takes a write again")


FORK = """
import faulthandler
store = opened()
store.add_many(f"text number {i}" for i in range(1200))
assert len(store.search("text", limit=5)) == 5
over = threading.Event()
def read():
    while not over.is_set():
        assert store.search("text number 7", limit=1)
def write():
    number = 0
    while not over.is_set():
        store.add(f"busy {number}")
        number += 1
threads = [threading.Thread(target=work, daemon=True) for work in (read, read, write)]
for thread in threads:
    thread.start()
children = []
for number in range(8):
    time.sleep(0.03)
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(25, exit=True)
        id = store.add(f"child{number} says so")
        found = store.search(f"child{number} says so", limit=1)[0].id == id
        store.close()
        with opened() as again:
            found = found and again.get(id).content == f"child{number} says so"
        os._exit(0 if found else 1)
    children.append(child)
ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
over.set()
for thread in threads:
    thread.join()
assert ends == [0] * 8, ends
for number in range(8):
    assert store.search(f"child{number} says so", limit=1)[0].content == f"child{number} says so"
assert store.maintenance.check().problems == ()
store.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_children_forked_amid_work_use_the_store_and_the_parent_goes_on(tmp_path: Path) -> None:
    run(FORK, tmp_path / "store", timeout=120)


# A hook that was registered first is called last before a fork.
OPEN_FILES = """
import os, sys
def targets():
    for number in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            pass
before = []
os.register_at_fork(before=lambda: before.append([t for t in targets() if "kronos.db" in t]))
from kronos import MemoryStore
with MemoryStore.open(sys.argv[1], embedding_model="hash") as store:
    store.add("text")
    assert store.search("text")
    assert any("kronos.db" in target for target in targets())
    before.clear()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
assert before == [[]], before
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_file_of_the_database_is_open_when_a_process_forks(tmp_path: Path) -> None:
    """SQLite's locks belong to a process: a child must not even close what its parent opened."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN_FILES, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_uses_an_async_store_in_a_loop_of_its_own(tmp_path: Path) -> None:
    run(
        """
memory = KronosMemory(sys.argv[1], embedding_model="hash", embedding_dim=64)
async def say(text):
    await memory.connect()
    id = await memory.add(text)
    return (await memory.search(text, limit=1))[0].id == id
assert asyncio.run(say("the parent speaks"))
if (child := os.fork()) == 0:
    signal.alarm(20)
    os._exit(0 if asyncio.run(say("the child speaks")) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
async def end():
    assert (await memory.search("the child speaks", limit=1))[0].content == "the child speaks"
    await memory.close()
asyncio.run(end())
""",
        tmp_path / "store",
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_real_model_embeds_in_a_forked_child(tmp_path: Path) -> None:
    # OpenMP's threads are not in the child: without a word to torch it would hang.
    run(
        """
store = MemoryStore.open(sys.argv[1], embedding_model="mini")
store.add_many(f"a sentence with several words, number {i}" for i in range(40))
if (child := os.fork()) == 0:
    signal.alarm(30)
    store.add("bees make honey in the roof")
    os._exit(0 if store.search("insects", limit=1)[0].content.startswith("bees") else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert store.search("insects", limit=1)[0].content.startswith("bees")
store.close()
""",
        tmp_path / "store",
        timeout=120,
    )


ENDS = {
    "without close": "sys.exit(0)",
    "an exception": "raise KeyError('planned')",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)",
    "os._exit": "os._exit(0)",
    "while threads work": """
def churn():
    while True:
        store.search("remember")
for _ in range(3):
    threading.Thread(target=churn, daemon=True).start()
time.sleep(0.2)
sys.exit(0)
""",
    "sys.exit in a task": """
async def main():
    memory = KronosMemory(sys.argv[1], embedding_model="hash", embedding_dim=64)
    await memory.connect()
    async def work():
        await memory.add("from a task", id="task")
        print("task", flush=True)
        sys.exit(0)
    await asyncio.gather(asyncio.create_task(work()), memory.search("remember"))
asyncio.run(main())
""",
    "a loop that never closes its store": """
async def main():
    memory = KronosMemory(sys.argv[1], embedding_model="hash", embedding_dim=64)
    await memory.connect()
    for number in range(20):
        asyncio.create_task(memory.add(f"under way {number}"))
    await asyncio.sleep(0)
asyncio.run(main())
""",
}


@pytest.mark.parametrize("kind", ENDS)
def test_a_process_that_ends_anyhow_loses_and_hangs_nothing(tmp_path: Path, kind: str) -> None:
    script = f"""
store = opened()
ids = store.add_many(f"remember {{i}}" for i in range(1200))
store.search("remember")
store.delete(ids[0])
print("ready", flush=True)
{ENDS[kind]}
"""
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", OPEN + script, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said, errors = process.communicate(timeout=30)
    assert said.startswith("ready")
    assert time.monotonic() - started < 20
    assert "never awaited" not in errors, errors
    assert "Exception ignored" not in errors, errors
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=64) as store:
        assert store.count(namespace="*") >= 1199
        assert store.find("task") is not None or "task" not in said
        assert store.maintenance.check().problems == ()
        assert store.search("remember 7", limit=1)[0].content == "remember 7"
        store.add("it takes a write")
    assert not list((tmp_path / "index").glob("*.tmp"))


@pytest.mark.parametrize("verb", ["add", "add_many", "update", "delete", "search", "list"])
def test_a_call_cancelled_at_any_moment_is_done_or_not_done(tmp_path: Path, verb: str) -> None:
    async def call(memory: KronosMemory, number: int) -> Any:
        match verb:
            case "add":
                return await memory.add(f"new {number}", id=f"new-{number}")
            case "add_many":
                items = [{"content": f"n {i}", "id": f"new-{number}-{i}"} for i in range(5)]
                return await memory.add_many(items)
            case "update":
                return await memory.update("old", content=f"version {number}")
            case "delete":
                return await memory.delete(f"old-{number}")
            case "search":
                return await memory.search("old")
            case _:
                return await memory.list(limit=3)

    async def main() -> None:
        options: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": 64}
        async with KronosMemory(tmp_path, **options) as memory:
            await memory.add("version none", id="old")
            await memory.add_many([{"content": f"old {i}", "id": f"old-{i}"} for i in range(60)])
            for number in range(60):
                task = asyncio.create_task(call(memory, number))
                # From before its first step to after its last one.
                if number % 2:
                    await asyncio.sleep(number * 0.00015)
                else:
                    for _ in range(number // 4):
                        await asyncio.sleep(0)
                task.cancel()
                done = not isinstance(
                    (await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError
                )
                match verb:
                    case "add":
                        assert not done or await memory.find(f"new-{number}") is not None
                    case "add_many":
                        page = await memory.list(limit=1000)  # one call: the write may be under way
                        held = [m.id for m in page if m.id.startswith(f"new-{number}-")]
                        assert len(held) in (0, 5), "half a call"
                        assert not done or held
                    case "update":
                        content = (await memory.get("old")).content
                        assert not done or content == f"version {number}"
                        best = (await memory.search(content, limit=1))[0].id
                        # What was cancelled may still be under way, and come in between.
                        assert best == "old" or (await memory.get("old")).content != content
            assert (await memory.maintenance.check()).problems == ()
            assert await memory.add("the store still answers")
        assert threading.active_count() < 20

    asyncio.run(main())


class CancelAt:
    """Awaits a coroutine, and has its task cancelled at its so manieth suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], step: int) -> None:
        self._coroutine = coroutine
        self._left = step

    def __await__(self) -> CancelAt:
        return self

    def __iter__(self) -> CancelAt:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        return self._suspended(self._coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        return self._suspended(self._coroutine.throw(*error))

    def _suspended(self, future: Any) -> Any:
        self._left -= 1
        if self._left == 0 and (task := asyncio.current_task()):
            task.cancel()
        return future


async def is_done(coroutine: Coroutine[Any, Any, Any], step: int) -> bool:
    """Whether a call came to its end before it was cancelled at a suspension."""

    async def call() -> None:
        await CancelAt(coroutine, step)  # type: ignore[misc]

    (ended,) = await asyncio.gather(asyncio.create_task(call()), return_exceptions=True)
    assert ended is None or isinstance(ended, asyncio.CancelledError), ended
    return ended is None


def test_two_hundred_calls_cancelled_at_every_await_are_done_or_not_done(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **{"embedding_model": "hash", "embedding_dim": 64},
        "settings": Settings(batch_size=3),
    }

    async def main() -> None:
        async with KronosMemory(tmp_path, **options) as memory:
            await memory.add_many([{"content": f"old {i}", "id": f"old-{i}"} for i in range(80)])

            def call(number: int) -> Coroutine[Any, Any, Any]:
                match number % 5:
                    case 0:
                        return memory.add(f"new {number}", id=f"new-{number}")
                    case 1:
                        many = [{"content": f"n {i}", "id": f"new-{number}-{i}"} for i in range(7)]
                        return memory.add_many(many)
                    case 2:
                        return memory.update(f"old-{number % 40}", content=f"version {number}")
                    case 3:
                        return memory.delete(f"old-{40 + number % 40}")
                    case _:
                        return memory.search("old")

            steps = [number // 5 % 6 + 1 for number in range(200)]
            ended = await asyncio.gather(*(is_done(call(n), step) for n, step in enumerate(steps)))
            assert await memory.add("the store still answers")
        # What was cancelled may have been under way until the store was closed.
        async with KronosMemory(tmp_path, **options) as memory:
            held = {m.id: m.content for m in await memory.list(limit=10**4)}
            assert (await memory.maintenance.check()).problems == ()
        for number, done in enumerate(ended):
            match number % 5:
                case 0:
                    assert not done or f"new-{number}" in held
                case 1:
                    count = sum(id.startswith(f"new-{number}-") for id in held)
                    assert count == 7 if done else count in (0, 3, 6, 7), "half a batch"
                case 3:
                    assert not done or f"old-{40 + number % 40}" not in held
        changed = {id for id, content in held.items() if content.startswith("version")}
        assert {f"old-{n % 40}" for n, done in enumerate(ended) if done and n % 5 == 2} <= changed
        assert 40 < sum(ended) < 160, "some are cancelled, some come to their end"

    asyncio.run(main())


@pytest.mark.parametrize("step", range(1, 6))
def test_opening_and_closing_can_be_cancelled_at_every_await(tmp_path: Path, step: int) -> None:
    async def main() -> None:
        memory = KronosMemory(tmp_path, embedding_model="hash", embedding_dim=64)
        await is_done(memory.connect(), step)
        await memory.connect()
        await memory.add("kept", id="kept", on_conflict="ignore")
        await is_done(memory.close(), step)
        await memory.close()
        async with KronosMemory(tmp_path, embedding_model="hash", embedding_dim=64) as again:
            assert (await again.search("kept", limit=1))[0].id == "kept"

    asyncio.run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_sigterm_amid_writes_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    script = """
store = opened()
print("ready", flush=True)
number = 0
while True:
    store.add(f"text {number}", id=f"t{number}")
    print(number, flush=True)
    number += 1
"""
    with subprocess.Popen(
        [sys.executable, "-c", OPEN + script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        said = [int(line) for line in process.stdout.read().splitlines()]
    assert said
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=64) as store:
        held = {memory.id for memory in store.list(limit=10**6)}
        assert {f"t{number}" for number in said} <= held
        assert len(held) - len(said) in (0, 1)
