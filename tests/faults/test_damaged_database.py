"""A database file damaged anywhere: every error is typed, a check finds every altered text, and
what is recovered is what was written.
"""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kronos import MemoryStore
from kronos.errors import StorageError

OPTIONS: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": 32}
PAGE = 8192
TEXTS = {f"m{number}": f"text {number} " + "x" * 200 for number in range(200)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    with MemoryStore.open(folder, **OPTIONS) as store:
        store.add_many(
            {"content": text, "id": id, "metadata": {"n": number}}
            for number, (id, text) in enumerate(TEXTS.items())
        )
    return (folder / "kronos.db").read_bytes()


def flipped(whole: bytes, chance: random.Random) -> bytes:
    made = bytearray(whole)
    for _ in range(chance.choice([1, 20])):
        made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    return bytes(made)


def overwritten(whole: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(whole) // PAGE) * PAGE
    filler = chance.choice([bytes(PAGE), chance.randbytes(PAGE)])
    return whole[:start] + filler + whole[start + PAGE :]


def cut_off(whole: bytes, chance: random.Random) -> bytes:
    return whole[: chance.randrange(len(whole))]


DAMAGES = [flipped, flipped, overwritten, cut_off]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged indexes are named, and rebuilt
        yield


def contents(store: MemoryStore) -> dict[str, str]:
    return {memory.id: memory.content for memory in store.list(limit=1000, namespace="*")}


def attempt(call: Callable[[], Any], errors: list[str]) -> Any:
    """What a call returns; None, and a message, when it raised what it may."""
    try:
        return call()
    except StorageError as exc:
        errors.append(str(exc))
    return None


@pytest.mark.parametrize("number", range(32))
def test_damage_is_named_or_found(tmp_path: Path, whole: bytes, number: int) -> None:
    damaged = DAMAGES[number % 4](whole, random.Random(number))
    (tmp_path / "kronos.db").write_bytes(damaged)
    errors: list[str] = []
    store = attempt(lambda: MemoryStore.open(tmp_path, **OPTIONS), errors)
    if store is None:
        assert "kronos recover" in errors[0]
        assert (tmp_path / "kronos.db").read_bytes() == damaged, "it is left as it was"
        return
    held = attempt(lambda: contents(store), errors)
    report = attempt(store.maintenance.check, errors)
    if held not in (None, TEXTS):
        assert report is None or not report.ok, "an altered text went unnoticed"
    for call in (
        lambda: store.get("m77"),
        lambda: store.search("text 55", where={"n": {"$gt": 3}}),
        store.stats,
        lambda: store.add("new"),
        lambda: store.update("m78", content="changed"),
        lambda: store.delete("m79"),
        lambda: store.maintenance.check(repair=True),
        store.maintenance.compact,
        store.close,
    ):
        attempt(call, errors)


@pytest.mark.parametrize("number", range(16))
def test_what_is_recovered_is_what_was_written(tmp_path: Path, whole: bytes, number: int) -> None:
    path = tmp_path / "store/kronos.db"
    path.parent.mkdir()
    damaged = DAMAGES[number % 4](whole, random.Random(number))
    path.write_bytes(damaged)
    errors: list[str] = []
    report = attempt(lambda: MemoryStore(path.parent).maintenance.recover(), errors)
    if report is None:
        assert "kronos restore" in errors[0]
        assert path.read_bytes() == damaged, "it is left as it was"
        return
    assert report.aside.read_bytes() == damaged
    with MemoryStore.open(path.parent, **OPTIONS) as store:
        held = contents(store)
        assert held.items() <= TEXTS.items()
        assert len(held) == report.memories
        assert store.maintenance.check().problems == ()
        store.add("it takes a write again")


def test_half_of_a_file_that_was_cut_off_is_saved(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/kronos.db").write_bytes(whole[: len(whole) * 9 // 10])
    report = MemoryStore(tmp_path / "store").maintenance.recover()
    assert 0 < report.memories <= len(TEXTS)
    shutil.rmtree(tmp_path / "store")


def test_a_text_that_another_program_altered_is_found(tmp_path: Path, whole: bytes) -> None:
    assert whole.count(b"text 123 ") == 1
    (tmp_path / "kronos.db").write_bytes(whole.replace(b"text 123 ", b"test 123 "))
    with MemoryStore.open(tmp_path, **OPTIONS) as store:
        problem, words = store.maintenance.check().problems
        assert (problem.kind, problem.repaired) == ("texts", False)
        assert (words.kind, words.repaired) == ("fulltext", False)
        assert "m123" in problem.detail
        assert not store.maintenance.check(repair=True).ok, "no text is ever repaired"
    assert MemoryStore(tmp_path).maintenance.recover().damaged == ("m123",)


def test_a_vector_that_is_none_is_found_and_made_anew(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path, **OPTIONS) as store:
        ids = store.add_many(["ash and birch", "elm and oak"])
        for blob in ("zeroblob(128)", "CAST(x'0000c07f' || zeroblob(124) AS BLOB)"):
            with store._session.writer() as repository:
                repository._connection.exec_driver_sql(
                    f"UPDATE vectors SET vector = {blob} WHERE memory_key = "
                    "(SELECT min(memory_key) FROM vectors)"
                )
            assert [problem.kind for problem in store.maintenance.check().problems][:1] == [
                "vectors"
            ]
            assert all(
                problem.repaired for problem in store.maintenance.check(repair=True).problems[:1]
            )
            store.reindex()
            assert store.maintenance.check().problems == ()
            assert store.search("ash and birch", limit=1)[0].id == ids[0]
