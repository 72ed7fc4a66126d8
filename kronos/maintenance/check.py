"""The checks: they compare everything that must agree, and repair what can be derived.

The rows are the truth. Everything derived from them can be made anew: an index is replayed, a wrong
vector becomes pending, and the database's own indexes are rebuilt after a backup. A repair never
changes texts or metadata.

Each check yields the problems that it finds.
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

from kronos.concurrency.pacing import yielding_gil
from kronos.db import dialect, schema
from kronos.db.choice import fulltext_of
from kronos.errors import CorruptStoreError
from kronos.files import abandoned_parts, behind_links, discard_parts
from kronos.index.snapshot import (
    discard_leftovers,
    discard_other_snapshots,
    leftovers,
    snapshot_spaces,
)
from kronos.repository.memories import Repository
from kronos.search.field_indexes import FieldIndexes
from kronos.types import Problem

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.database import Database
    from kronos.following.replica import Replica
    from kronos.types import Space, VectorIndex

    Transaction: TypeAlias = Callable[[], AbstractContextManager[Repository]]
    """Begins a transaction."""
    CurrentIndex: TypeAlias = Callable[[], AbstractContextManager[tuple[VectorIndex, Repository]]]
    """Yields the index and the rows of one moment; searches wait meanwhile."""

_REPAIR_INDEXES = "Only the database's indexes are damaged: `kronos doctor --repair` rebuilds them"
_SHOWN_IDS = 20
_ROWS_AT_ONCE = 200
"""Vectors that are compared while searches wait."""
_FREE_SHARE = 0.25
"""A disk with less free space than this share of the database is nearly full."""
_EXTRA_VECTORS = "the index holds vectors that the database does not"


def damaged_database(
    database: Database, backup: Callable[[], Path], *, repair: bool
) -> Iterator[Problem]:
    """Find damage in the database file, which is read completely.

    Args:
        database: the file.
        backup: makes a backup before a repair.
        repair: rebuild the database's indexes if nothing else is damaged.
    """
    found = database.problems()
    in_indexes = [problem for problem in found if " index " in problem.detail]
    if repair and in_indexes and len(in_indexes) == len(found):
        kept = backup()
        with database.write() as connection:
            database.dialect.rebuild_indexes(connection)
        left = database.problems()
        detail = f"{found[0].detail}; the database's indexes were rebuilt, a backup is in {kept}"
        found = left or [Problem("database", detail, repaired=True)]
    elif found:
        in_indexes_alone = len(in_indexes) == len(found)
        way_out = _REPAIR_INDEXES if in_indexes_alone else dialect.WAY_OUT_OF_DAMAGE
        found[-1] = replace(found[-1], detail=f"{found[-1].detail}. {way_out}")
    yield from found


def altered_texts(database: Database, clock: Callable[[], datetime]) -> Iterator[Problem]:
    """Find texts that do not match their stored hash; reads every text."""
    try:
        with database.read() as connection:
            altered = list(Repository(connection, clock()).altered())
    except CorruptStoreError as exc:
        yield Problem("texts", str(exc))
        return
    if altered:
        shown = ", ".join(altered[:_SHOWN_IDS]) + (", ..." if len(altered) > _SHOWN_IDS else "")
        yield Problem(
            "texts",
            f"{len(altered)} memories hold a text that Kronos did not write; the disk or another "
            f"program changed it: {shown}. Write them again, or: {dialect.WAY_OUT_OF_DAMAGE}",
        )


def wrong_schema(database: Database) -> Iterator[Problem]:
    """Find out whether another program migrated the database while it was open."""
    revision = schema.current(database)
    if revision != schema.head():
        yield Problem("schema", f"the schema is {revision}, this Kronos has {schema.head()}")


def environment(database: Database, folder: Path) -> Iterator[Problem]:
    """Check what the store depends on: the database library, and free disk space."""
    yield from database.dialect.advice()
    free, needed = shutil.disk_usage(folder).free, database.size_bytes() * _FREE_SHARE
    if free < needed:
        yield Problem(
            "disk",
            f"{free / 1e6:.0f} MB are free, and the database has "
            f"{database.size_bytes() / 1e6:.0f} MB: free some disk space",
        )


def orphaned_files(database: Path, index: Path, repository: Repository) -> Iterator[Problem]:
    """Find files that no process will read again; `remove_orphans` deletes them."""
    left = [path.name for path in leftovers(index)]
    left += [path.name for path in abandoned_parts(*_parts_of(database))]
    known = {space.id for space in repository.spaces.all()}
    unknown = snapshot_spaces(index) - known
    left += [f"snapshots of space {space}" for space in sorted(unknown)]
    if left:
        yield Problem("files", f"not needed any more: {', '.join(left)}")


def remove_orphans(database: Path, index: Path, repository: Repository) -> None:
    """Delete the files that `orphaned_files` finds.

    Raises:
        StorageError: the folder cannot be written.
    """
    discard_other_snapshots(index, {space.id for space in repository.spaces.all()})
    remove_unfinished(database, index)


def remove_unfinished(database: Path, index: Path) -> None:
    """Delete unfinished snapshots and copies of processes that died.

    Raises:
        StorageError: the folder cannot be written.
    """
    discard_leftovers(index)
    with contextlib.suppress(OSError):  # a folder that can only be read
        discard_parts(*_parts_of(database))


def _parts_of(database: Path) -> tuple[Path, str]:
    """The folder for copies of a database, and the beginning of their names."""
    file = behind_links(database)
    return file.parent, f"{file.name}."


def wrong_vectors(reading: Transaction, writing: Transaction | None) -> Iterator[Problem]:
    """Find vectors that do not fit their space or their text.

    Args:
        reading: begins a read transaction.
        writing: begins a write transaction for the repair, which makes the vectors pending; None:
            no repair. So also below.
    """
    with reading() as repository:
        found = [(space, repository.vectors.misfits(space)) for space in repository.spaces.all()]
    for space, keys in found:
        if not keys.size:
            continue
        if writing is not None:
            with writing() as repository:
                repository.vectors.make_pending(space, keys)
        yield Problem(
            "vectors",
            f"{len(keys)} vectors of space {space.id} ({space.model}) do not fit their text, have "
            "a wrong width, or are not of unit length; run `kronos reindex` to make them anew",
            repaired=writing is not None,
        )


def wrong_counts(reading: Transaction, writing: Transaction | None) -> Iterator[Problem]:
    """Find spaces whose stored number of vectors is wrong; a repair counts them again."""
    with reading() as repository:
        wrong = repository.vectors.miscounted()
    for space, counted in wrong.items():
        yield Problem(
            "vectors",
            f"space {space.id} ({space.model}) has {counted} vectors, and another number is stored",
            repaired=writing is not None,
        )
    if wrong and writing is not None:
        with writing() as repository:
            repository.vectors.recount()


def wrong_fulltext(database: Database, writing: Transaction | None) -> Iterator[Problem]:
    """Find full-text indexes that do not match the texts; a repair rebuilds them.

    The comparison may be a write. It is made on a copy, so no other writer waits.
    """
    try:
        with database.scratch() as connection:
            indexes = fulltext_of(connection)
            indexes.copy_aside(connection)
            found = indexes.problems(connection)
    except CorruptStoreError as exc:
        found = [str(exc)]
    if found and writing is not None:
        with writing() as repository:
            repository.fulltext.rebuild()
    for detail in found:
        yield Problem("fulltext", detail, repaired=writing is not None)


def outdated_fulltext(reading: Transaction, writing: Transaction | None) -> Iterator[Problem]:
    """Find texts that were indexed by other rules than queries are read by; a repair rebuilds."""
    with reading() as repository:
        count = repository.fulltext.misread()
    if not count:
        return
    if writing is not None:
        with writing() as repository:
            repository.fulltext.rebuild()
    yield Problem(
        "fulltext",
        f"{count} texts were indexed by other rules than this Kronos reads queries by, so searches "
        "may miss them: an upgrade was stopped, or another version of Kronos or Python wrote them. "
        "`kronos doctor --repair` indexes them again",
        repaired=writing is not None,
    )


def missing_field_indexes(reading: Transaction, writing: Transaction | None) -> Iterator[Problem]:
    """Find metadata keys whose index is missing; a repair makes it."""
    with reading() as repository:
        missing = FieldIndexes.of(repository).missing()
    if missing and writing is not None:
        with writing() as repository:
            FieldIndexes.of(repository).ensure()
    for path in missing:
        detail = f"the index of the metadata key {path!r} is missing"
        yield Problem("fields", detail, repaired=writing is not None)


def pending_memories(repository: Repository) -> Iterator[Problem]:
    """Find memories that dense searches miss, because they have no vector in the active space."""
    space = repository.spaces.active()
    pending = 0 if space is None else repository.pending.count(space.id)
    if space is not None and pending:
        yield Problem(
            "pending",
            f"{pending} memories have no vector in the active space {space.id} ({space.model}); "
            "run `kronos reindex` to make them",
        )


def wrong_index(current: CurrentIndex, replica: Replica, *, repair: bool) -> Iterator[Problem]:
    """Compare this process's index with the rows.

    Args:
        current: yields the index and the rows of one moment.
        replica: the owner of the index.
        repair: replay the index.
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
    """The first difference; compared in small parts, each at its own moment, between searches."""
    after = -1
    for _ in yielding_gil(itertools.count()):
        with current() as (index, repository):
            keys, rows = repository.vectors.behind(space, after, _ROWS_AT_ONCE)
            if not keys.size:
                count = repository.vectors.count(space.id)
                return None if len(index) == count else _EXTRA_VECTORS
            if not index.contains(keys).all():
                return "the index lacks vectors that the database holds"
            if not np.array_equal(index.vectors_of(keys), rows):
                return "the index holds vectors that differ from those of the database"
            after = int(keys[-1])
    return None
