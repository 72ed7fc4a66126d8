"""What migration 0004 leaves to be done: old texts are folded in batches, whatever is killed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from kronos import MemoryStore, NewMemory
from kronos.db import schema
from kronos.db.database import Database
from kronos.db.fulltext import fts5 as words
from kronos.repository.fulltext import Fulltext
from kronos.search.lexical import terms, word_scores
from kronos.settings import Settings
from tests.db.make_asset import ASSETS, ROWS

WRITTEN = {
    "北京是中国的首都": "首都",
    "launch 🚀 done": "🚀",
    "H₂O and C++": "C++",
    "за́мок стоит": "замок",
    "plain words": "plain",
    "서울은 크다": "서울",
}
ROWS_OF_EACH = 3
BATCH = 4
OPTIONS: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": 32}


def open_database(folder: Path) -> Database:
    return Database(folder / "kronos.db", Settings())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of a store as Kronos left it at 0003, with a past."""
    folder = tmp_path / "old"
    with MemoryStore.open(folder, **OPTIONS) as store:
        for number in range(ROWS_OF_EACH):
            store.add_many(NewMemory(f"{text} {number}") for text in WRITTEN)
        for memory in store.list(limit=len(WRITTEN)):
            store.update(memory.id, content=f"{memory.content} again")
    database = open_database(folder)
    schema.downgrade(database, "0003")
    database.close()
    return folder


def found(database: Database, question: str, *, past: bool = False) -> list[str]:
    with database.read() as connection:
        index = Fulltext(connection)
        keys, _ = word_scores(index, terms(index, question), past=past)
        table = "versions" if past else "memories"
        rows = connection.execute(text(f"SELECT key, content FROM {table}")).all()
        return [content for key, content in rows if key in keys]


def folds(database: Database) -> list[Any]:
    with database.read() as connection:
        return [
            tuple(row)
            for table in ("memories", "versions")
            for row in connection.execute(text(f"SELECT key, folded FROM {table} ORDER BY key"))
        ]


def cursor(database: Database) -> int | None:
    with database.read() as connection:
        return words.cursor(connection)


def agrees(database: Database) -> bool:
    with database.write() as connection:
        return words.problems(connection) == []


def check_is_finished(database: Database) -> None:
    assert cursor(database) is None
    assert agrees(database)
    with database.read() as connection:
        assert words.misread(connection) == 0


# -- Whole --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", words.TOKENIZERS)
def test_whoever_opens_an_old_store_finds_every_text_by_its_words(
    old: Path, tokenizer: Any
) -> None:
    database = open_database(old)
    with database.write() as connection:  # as `rebuild_words` of 0003 left it
        for name, table in (("memory_words", "memories"), ("version_words", "versions")):
            tokenize = words.TOKENIZERS[tokenizer]
            connection.exec_driver_sql(f"DROP TABLE {name}")
            connection.exec_driver_sql(
                f"CREATE VIRTUAL TABLE {name} USING fts5(\n    content, content='{table}', "
                f"content_rowid='key',\n    tokenize='{tokenize}'\n)"
            )
            connection.exec_driver_sql(f"INSERT INTO {name} ({name}) VALUES ('rebuild')")
    database.close()
    with MemoryStore.open(old, migrate=True, **OPTIONS) as store:
        assert store.stats().tokenizer == tokenizer
        assert store.maintenance.check().ok
        for written, word in WRITTEN.items():
            hits = [hit.content for hit in store.search(word, mode="lexical", limit=50)]
            assert len([hit for hit in hits if hit.startswith(written)]) == ROWS_OF_EACH
        check_is_finished(open_database(old))
        assert "首都 0 again" not in store.search("首都", mode="lexical")[0].content


def test_the_command_upgrades_an_old_store_to_its_end(old: Path) -> None:
    command = [sys.executable, "-c", "from kronos.cli import main; main()", "db", "upgrade"]
    done = subprocess.run([*command, "--store", str(old)], capture_output=True, text=True)
    assert f"from 0003 to {schema.head()}" in done.stdout, done.stderr
    database = open_database(old)
    check_is_finished(database)
    for written, word in WRITTEN.items():
        assert len([each for each in found(database, word) if each.startswith(written)]) == 3
        assert len([each for each in found(database, word, past=True) if written in each]) == 1
    database.close()


@pytest.mark.parametrize("revision", ["0001", "0002", "0003"])
def test_the_assets_and_texts_of_every_script_written_into_them(
    tmp_path: Path, revision: str
) -> None:
    shutil.copy(ASSETS / f"{revision}.db", tmp_path / "kronos.db")
    database = open_database(tmp_path)
    with database.write() as connection:
        for number, written in enumerate(WRITTEN):
            row = {**ROWS["memories"][0], "key": 20 + number, "id": written, "content": written}
            names = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO memories ({names}) VALUES ({values})"), row)
        if revision == "0003":
            connection.exec_driver_sql(
                "INSERT INTO memory_words (rowid, content)"
                " SELECT key, content FROM memories WHERE key >= 20"
            )
    schema.prepare(database, migrate=True)
    assert cursor(database) == 0
    assert agrees(database)
    assert found(database, "plain") == ["plain words"], "as before"
    schema.finish(database)
    check_is_finished(database)
    for written, word in WRITTEN.items():
        assert found(database, word) == [written]
    assert found(database, "🎈") == found(database, "SPASS") == [ROWS["memories"][2]["content"]]
    database.close()


def test_an_empty_store_has_nothing_to_be_folded(database: Database) -> None:
    assert cursor(database) is None
    schema.downgrade(database, "0003")
    schema.upgrade(database)
    assert cursor(database) is None


# -- Interrupted --------------------------------------------------------------------------------


def test_until_it_is_done_old_texts_are_found_as_before_and_new_ones_are_folded(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = schema.finish
    monkeypatch.setattr(schema, "finish", lambda _, **__: None)
    with MemoryStore.open(old, migrate=True, **OPTIONS) as store:
        plain = store.search("plain", mode="lexical", limit=50)
        assert len(plain) == ROWS_OF_EACH
        new = store.add("上海不是首都")
        assert [hit.id for hit in store.search("首都", mode="lexical")] == [new]
        ids = [memory.id for memory in store.list(limit=50) if "🚀" in memory.content]
        store.update(ids[0], content="now 🚀 is folded")
        store.delete(ids[1])
        (problem,) = [
            each for each in store.maintenance.check().problems if each.kind == "fulltext"
        ]
        assert "an upgrade was stopped" in problem.detail
        database = open_database(old)
        assert agrees(database)
        finish(database)
        check_is_finished(database)
        database.close()
        assert store.maintenance.check().ok
        assert len(store.search("首都", mode="lexical", limit=50)) == ROWS_OF_EACH + 1


def test_a_store_that_is_busy_opens_all_the_same(old: Path) -> None:
    database = open_database(old)
    schema.upgrade(database)
    hasty = Settings(busy_timeout_s=0.1)
    with database.write(), MemoryStore.open(old, settings=hasty, **OPTIONS) as store:
        assert len(store.search("plain", mode="lexical")) == ROWS_OF_EACH
    assert cursor(database) == 0
    MemoryStore.open(old, **OPTIONS).close()
    check_is_finished(database)
    database.close()


# Says each step, and goes on when it is told to.
WORKER = f"""
import sys
from pathlib import Path
from kronos.db import schema
from kronos.db.fulltext import fts5 as words
from kronos.db.database import Database
from kronos.settings import Settings

def step(name):
    print(name, flush=True)
    sys.stdin.readline()

def refold_some(connection, real=words.refold_some):
    step("begun")
    is_left = real(connection)
    step("written, not committed")
    return is_left

words._ROWS_A_BATCH = {BATCH}
words.refold_some = refold_some
database = Database(Path(sys.argv[1]), Settings())
schema.prepare(database, migrate=True)
schema.finish(database)
step("done")
"""


class Worker:
    """A process that upgrades a store step by step."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder / "kronos.db")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def steps(self, count: int) -> list[str]:
        """Go so many steps, or to the end."""
        assert self._process.stdin
        assert self._process.stdout
        done: list[str] = []
        while len(done) < count:
            done.append(self._process.stdout.readline().strip())
            if done[-1] == "done" or len(done) == count:
                break
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return done

    def go_on(self) -> None:
        """Let it take all its steps."""
        assert self._process.stdin
        self._process.stdin.write("\n" * 1000)
        self._process.stdin.flush()

    def end(self) -> int:
        """Its exit code."""
        self._process.communicate(timeout=60)
        return self._process.returncode

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


def test_a_kill_at_any_step_loses_nothing_and_the_next_one_goes_on(old: Path) -> None:
    whole = old.with_name("whole")
    shutil.copytree(old, whole)
    database = open_database(whole)
    schema.prepare(database, migrate=True)
    schema.finish(database)
    wanted = folds(database)
    database.close()
    worker, cursors = Worker(old), [0]
    (first,) = worker.steps(1)
    worker.kill()
    assert first == "begun"
    database = open_database(old)
    assert cursor(database) == 0
    for kill_at in (1, 2, 3, 4, 2, 5):
        worker = Worker(old)
        steps = worker.steps(kill_at)
        worker.kill()
        assert agrees(database), "the words are those of the rows"
        committed = cursor(database)
        if steps.count("begun") > 1:
            assert committed is None or committed > cursors[-1], "a batch stays done"
        else:
            assert committed == cursors[-1], "a batch that was not committed is as if never begun"
        if committed is None:
            break
        cursors.append(committed)
        done = [fold for key, fold in folds(database) if key <= committed]
        assert done == [fold for key, fold in wanted if key <= committed]
        assert len(found(database, "plain")) == ROWS_OF_EACH
    assert len(set(cursors)) > 2
    last = Worker(old)
    assert last.steps(1000)[-1] == "done"
    last.kill()
    check_is_finished(database)
    assert folds(database) == wanted
    database.close()


def test_two_that_fold_at_once_share_the_work(old: Path) -> None:
    database = open_database(old)
    schema.upgrade(database)
    workers = [Worker(old), Worker(old)]
    for worker in workers:
        worker.go_on()
    assert [worker.end() for worker in workers] == [0, 0]
    check_is_finished(database)
    database.close()
