"""What `check` does: compares everything that must agree, and mends what can be derived.

The rows are the truth. An index is derived and can be replayed; a vector that does not fit its text
is derived and can be made anew; so can SQLite's own indexes, after a backup. Texts and metadata are
never touched.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from kronos.concurrency.pacing import gently
from kronos.db import dialect, schema
from kronos.db.fulltext import fts5 as words
from kronos.errors import CorruptStoreError
from kronos.files import abandoned_parts, behind_links, discard_parts
from kronos.index.snapshot import discard_other_snapshots, discard_strays, snapshot_spaces, strays
from kronos.repository.memories import Repository
from kronos.search.fields import fields_of
from kronos.types import Problem

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.database import Database
    from kronos.following.replica import Replica
    from kronos.types import Space, VectorIndex

    Transaction: TypeAlias = Callable[[], AbstractContextManager[Repository]]
    """Begins a transaction: one that reads, or one that repairs; None: nothing is repaired."""
    CurrentIndex: TypeAlias = Callable[[], AbstractContextManager[tuple[VectorIndex, Repository]]]

_INDEXES_WAY_OUT = "Only SQLite's indexes are wrong: `kronos doctor --repair` makes them anew"
_IDS_SHOWN = 20
_ROWS_AT_ONCE = 200
"""So many vectors are compared while searches wait."""
_FREE_SHARE = 0.25
"""A disk with less room than this share of the database is short of it."""


def damaged_database(
    database: Database, backup: Callable[[], Path], *, repair: bool
) -> Iterator[Problem]:
    """Let SQLite check its file; reads all of it. Repaired, its indexes are made anew.

    Args:
        database: the file.
        backup: takes one, before anything is repaired.
        repair: whether to.
    """
    found = database.problems()
    in_indexes = [problem for problem in found if " index " in problem.detail]
    if repair and in_indexes and len(in_indexes) == len(found):
        kept = backup()
        with database.write() as connection:
            database.dialect.rebuild_indexes(connection)
        left = database.problems()
        detail = f"{found[0].detail}; SQLite's indexes were made anew, a backup lies in {kept}"
        found = left or [Problem("database", detail, repaired=True)]
    elif found:
        in_indexes_alone = len(in_indexes) == len(found)
        way_out = _INDEXES_WAY_OUT if in_indexes_alone else dialect.WAY_OUT_OF_DAMAGE
        found[-1] = replace(found[-1], detail=f"{found[-1].detail}. {way_out}")
    yield from found


def altered_texts(database: Database, clock: Callable[[], datetime]) -> Iterator[Problem]:
    """Compare every text with the hash that was stored beside it; reads all of them."""
    try:
        with database.read() as connection:
            altered = list(Repository(connection, clock()).altered())
    except CorruptStoreError as exc:
        yield Problem("texts", str(exc))
        return
    if altered:
        shown = ", ".join(altered[:_IDS_SHOWN]) + (", ..." if len(altered) > _IDS_SHOWN else "")
        yield Problem(
            "texts",
            f"{len(altered)} memories hold another text than was written, by the disk or by "
            f"another program: {shown}. Write them anew, or: {dialect.WAY_OUT_OF_DAMAGE}",
        )


def wrong_schema(database: Database) -> Iterator[Problem]:
    """See whether somebody migrated the database while it was open."""
    revision = schema.current(database)
    if revision != schema.head():
        yield Problem("schema", f"the schema is {revision}, this Kronos has {schema.head()}")


def surroundings(database: Database, folder: Path) -> Iterator[Problem]:
    """Look at what is around the rows: SQLite itself, and the disk."""
    if dialect.may_lose_commits():
        yield Problem(
            "sqlite",
            f"SQLite {dialect.version()} has the WAL-reset bug: two processes that write at the "
            "same instant can, very rarely, damage the database. SQLite 3.51.3 or later has not: "
            "run `pip install 'kronos-memory[sqlite]'`",
        )
    free, needed = shutil.disk_usage(folder).free, database.size_bytes() * _FREE_SHARE
    if free < needed:
        yield Problem(
            "disk",
            f"{free / 1e6:.0f} MB are free beside a database of "
            f"{database.size_bytes() / 1e6:.0f} MB: make room",
        )


def orphaned_files(database: Path, index: Path, repository: Repository) -> Iterator[Problem]:
    """Find files that nobody will read again; repaired, they are deleted: see `remove_orphans`."""
    left = [path.name for path in strays(index)]
    left += [path.name for path in abandoned_parts(*_parts_of(database))]
    known = {space.id for space in repository.spaces.all()}
    unknown = snapshot_spaces(index) - known
    left += [f"snapshots of space {space}" for space in sorted(unknown)]
    if left:
        yield Problem("files", f"nobody needs any more: {', '.join(left)}")


def remove_orphans(database: Path, index: Path, repository: Repository) -> None:
    """Delete what `orphaned_files` finds.

    Raises:
        StorageError: the folder cannot be written.
    """
    discard_other_snapshots(index, {space.id for space in repository.spaces.all()})
    remove_unfinished(database, index)


def remove_unfinished(database: Path, index: Path) -> None:
    """Delete what processes left that died while they wrote a snapshot or a copy.

    Raises:
        StorageError: the folder cannot be written.
    """
    discard_strays(index)
    with contextlib.suppress(OSError):  # a folder that can only be read
        discard_parts(*_parts_of(database))


def _parts_of(database: Path) -> tuple[Path, str]:
    """Where copies of a database are made, and how their names begin."""
    file = behind_links(database)
    return file.parent, f"{file.name}."


def misfit_vectors(reading: Transaction, writing: Transaction | None) -> Iterator[Problem]:
    """Find vectors that do not fit their space or their text; repaired, they are pending."""
    with reading() as repository:
        found = [(space, repository.spaces.misfits(space)) for space in repository.spaces.all()]
    for space, keys in found:
        if not keys.size:
            continue
        if writing is not None:
            with writing() as repository:
                repository.spaces.make_pending(space, keys)
        yield Problem(
            "vectors",
            f"{len(keys)} vectors of space {space.id} ({space.model}) do not fit their text, "
            "their width or unit length; run `kronos reindex` to make them anew",
            repaired=writing is not None,
        )


def wrong_counts(reading: Transaction, writing: Transaction | None) -> Iterator[Problem]:
    """Compare how many vectors each space has with what is noted; repaired, it is counted anew."""
    with reading() as repository:
        wrong = repository.spaces.miscounted()
    for space, counted in wrong.items():
        yield Problem(
            "vectors",
            f"space {space.id} ({space.model}) has {counted} vectors, and another number is noted",
            repaired=writing is not None,
        )
    if wrong and writing is not None:
        with writing() as repository:
            repository.spaces.recount()


def wrong_words(database: Database, writing: Transaction | None) -> Iterator[Problem]:
    """Compare the word indexes with the texts; repaired, they are made anew.

    To compare them is a write to SQLite. It is done to a copy, so that no other writer waits.
    """
    try:
        with database.scratch() as connection:
            words.copy_aside(connection)
            found = words.problems(connection)
    except CorruptStoreError as exc:
        found = [str(exc)]
    if found and writing is not None:
        with writing() as repository:
            repository.fulltext.rebuild()
    for detail in found:
        yield Problem("words", detail, repaired=writing is not None)


def misread_texts(reading: Transaction, writing: Transaction | None) -> Iterator[Problem]:
    """Find texts whose words are read otherwise than a question's; repaired, all are read anew."""
    with reading() as repository:
        count = repository.fulltext.misread()
    if not count:
        return
    if writing is not None:
        with writing() as repository:
            repository.fulltext.rebuild()
    yield Problem(
        "words",
        f"the words of {count} texts are not read as this Kronos reads a question's, so searches "
        "may miss them: an upgrade was stopped, or another version of Kronos or Python wrote them. "
        "`kronos doctor --repair` reads them anew",
        repaired=writing is not None,
    )


def missing_field_indexes(reading: Transaction, writing: Transaction | None) -> Iterator[Problem]:
    """Find metadata keys whose index is gone; repaired, it is made anew."""
    with reading() as repository:
        missing = fields_of(repository).missing()
    if missing and writing is not None:
        with writing() as repository:
            fields_of(repository).ensure()
    for path in missing:
        detail = f"the index of the metadata key {path!r} is missing"
        yield Problem("fields", detail, repaired=writing is not None)


def pending_memories(repository: Repository) -> Iterator[Problem]:
    """Find memories that searches miss because the active space has no vector of their text."""
    space = repository.spaces.active()
    pending = 0 if space is None else repository.spaces.pending_count(space.id)
    if space is not None and pending:
        yield Problem(
            "pending",
            f"{pending} memories have no vector in the active space {space.id} ({space.model}); "
            "run `kronos reindex` to make them",
        )


def wrong_index(current: CurrentIndex, replica: Replica, *, repair: bool) -> Iterator[Problem]:
    """Compare this process's index with the rows; repaired, it is replayed.

    Args:
        current: the index and the rows at one moment, for which searches wait.
        replica: whose index it is.
        repair: whether to.
    """
    try:
        difference = _difference(current, replica.space)
    except CorruptStoreError as exc:
        yield Problem("index", f"the index cannot follow the database: {exc}")
        return
    if difference:
        if repair:
            with replica.saving, replica.lock:
                replica.discard()
            with current():
                pass
        yield Problem("index", difference, repaired=repair)


def _difference(current: CurrentIndex, space: Space) -> str | None:
    """What differs: looked at bit by bit, each at a moment of its own, so that searches go on."""
    after = -1
    for _ in gently(itertools.count()):
        with current() as (index, repository):
            keys, rows = repository.spaces.vectors_behind(space, after, _ROWS_AT_ONCE)
            if not keys.size:
                count = repository.spaces.vector_count(space.id)
                return None if len(index) == count else _EXTRA
            if not index.held(keys).all():
                return "the index misses vectors that the database holds"
            if not np.array_equal(index.vectors_of(keys), rows):
                return "the index holds other vectors than the database"
            after = int(keys[-1])
    return None


_EXTRA = "the index holds vectors that the database does not"
