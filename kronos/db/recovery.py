"""What a damaged database still holds, copied into a new one.

Every row is checked before it is copied: it must be as Kronos writes it, and contradict no other
row. Whatever Kronos can make anew is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, TypeAlias

from sqlalchemy import Connection, Table, func, select, update

from kronos import files
from kronos.db import schema
from kronos.db.backup import A_LOST_SEQ, NO_SEQ, copy_files, replacing
from kronos.db.choice import fulltext_of
from kronos.db.database import Database
from kronos.db.sql import InsertMissing
from kronos.db.tables import (
    accesses,
    fields,
    links,
    memories,
    past_vectors,
    spaces,
    store,
    vectors,
    versions,
)
from kronos.db.vectors import from_rows
from kronos.errors import CorruptStoreError, InputError
from kronos.settings import Place, Settings
from kronos.types import RecoveryReport
from kronos.validation import hash_content, not_unit, to_datetime

_Read: TypeAlias = Callable[[str], Iterator[dict[str, Any]]]
_ROWS_AT_ONCE = 500
_HASH = 32
"""Bytes of a text's hash."""


def recover(place: Place, settings: Settings) -> RecoveryReport:
    """Make a new database of what can be read of a damaged one, which is kept aside.

    No other process should have the store open: only the copy that is kept aside holds what it
    writes meanwhile. Memories whose text is not the one that was written are left out and named;
    vectors that cannot be read are made anew when the store is opened.

    Raises:
        InputError: there is no database.
        StorageError: nothing of a store can be read in it, or the disk failed; it is as it was.
    """
    if not place.database.is_file():
        raise InputError(f"there is no database at {place.database}", field="storage_path")
    with (
        replacing(place, settings) as replacement,
        files.making(replacement.file) as part,
        files.making(replacement.file) as copy,
    ):
        # Not the files themselves: reading a log may write to the database.
        copy_files(replacement.file, copy)
        damaged = Database(copy, settings).dialect.files
        damaged.restore_length()
        with closing(Database(part, settings)) as fresh:
            schema.prepare(fresh)
            with fresh.write() as connection:
                report = _Salvage(connection, damaged.salvage).run()
                if report is None:
                    raise CorruptStoreError(
                        f"nothing of a Kronos store can be read in {place.database}: put a "
                        "backup back with `kronos restore`"
                    )
                indexes = fulltext_of(connection)
                indexes.rebuild(connection, indexes.salvaged_tokenizer(damaged.salvage))
        aside = replacement.put(part, "damaged", is_exact=True)
    assert aside is not None  # it was read
    return RecoveryReport(aside, *report)


class _Salvage:
    """Copies what can be read of a damaged database, and no row that contradicts another.

    Args:
        connection: to the new database, in a write transaction.
        salvage: reads a table of the damaged one, see `Files.salvage`.
    """

    def __init__(self, connection: Connection, salvage: _Read) -> None:
        self._connection = connection
        self._salvage = salvage
        self._highest = 0

    def run(self) -> tuple[int, tuple[str, ...], int] | None:
        """The number of memories, the ids of damaged ones, the number of vectors.

        None when neither a memory nor a space was found.
        """
        found_spaces = self._copy(spaces, "id", self._is_space)
        damaged: dict[str, None] = {}
        hashes: dict[int, bytes] = {}

        def is_memory(row: dict[str, Any]) -> bool:
            if not _passes(_is_whole, row):
                # A damaged id that is no UTF-8 could not be printed.
                damaged[str(row.get("id")).encode(errors="backslashreplace").decode()] = None
                return False
            self._note_seq(row["seq"])
            hashes[row["key"]] = row["content_hash"]
            return True

        found = self._copy(memories, "key", is_memory)
        dims = {id: dim for id, dim in self._connection.execute(select(spaces.c.id, spaces.c.dim))}

        def is_vector(row: dict[str, Any]) -> bool:
            self._note_seq(row["seq"])
            (vector,) = from_rows([row["vector"]], dims.get(row["space_id"], -1))
            is_current = hashes.get(row["memory_key"]) == row["content_hash"]
            return is_current and not not_unit(vector[None, :]).any()

        rows = self._copy(vectors, ("space_id", "memory_key"), is_vector)
        self._copy_the_rest(hashes, dims)
        if not found and not found_spaces:
            return None
        self._copy_store_row()
        return found, tuple(damaged), rows

    def _copy_the_rest(self, hashes: dict[int, bytes], dims: dict[int, int]) -> None:
        """Copy past versions, links and accesses; a store works without any of them."""

        def is_version(row: dict[str, Any]) -> bool:
            self._note_seq(row["key"])
            to_datetime(row["replaced_at"])
            row["seq"] = row["key"]
            return _is_whole(row | {"key": row["memory_key"]})

        def is_link(row: dict[str, Any]) -> bool:
            ends = row["source_key"] in hashes and row["target_key"] in hashes
            return ends and math.isfinite(row["weight"]) and bool(row["relation"]) and _is_text(row)

        def is_past_vector(row: dict[str, Any]) -> bool:
            (vector,) = from_rows([row["vector"]], dims.get(row["space_id"], -1))
            return len(row["content_hash"]) == _HASH and not not_unit(vector[None, :]).any()

        self._copy(versions, "key", is_version)
        self._copy(past_vectors, ("space_id", "content_hash"), is_past_vector)
        self._copy(links, ("source_key", "target_key", "relation"), is_link)
        self._copy(
            accesses,
            "memory_key",
            lambda row: row["memory_key"] in hashes and bool(to_datetime(row["accessed_at"])),
        )
        self._copy(fields, "id", lambda row: bool(row["path"]) and _is_text(row))

    def _is_space(self, row: dict[str, Any]) -> bool:
        self._note_seq(row["id"])
        to_datetime(row["created_at"])
        return bool(row["dim"] > 0) and _is_text(row)

    def _copy(
        self, table: Table, key: str | tuple[str, ...], check: Callable[[dict[str, Any]], bool]
    ) -> int:
        """Copy the rows of a table that pass a check, each once."""
        names = [column.name for column in table.c]
        keys = (key,) if isinstance(key, str) else key
        seen: set[tuple[Any, ...]] = set()
        waiting: list[dict[str, Any]] = []
        for row in self._salvage(table.name):
            row.pop("folded", None)  # made anew: damage to it costs nothing
            mark = tuple(row.get(name) for name in keys)
            if mark in seen or not _passes(check, row):
                continue
            seen.add(mark)
            waiting.append({name: row[name] for name in names if name in row})
            if len(waiting) == _ROWS_AT_ONCE:
                self._insert(table, waiting)
        self._insert(table, waiting)
        return len(seen)

    def _insert(self, table: Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._connection.execute(InsertMissing(table), rows)
            rows.clear()

    def _copy_store_row(self) -> None:
        known: dict[str, Any] = {}
        for row in self._salvage("store"):
            if _passes(self._is_store, row):
                known = {"uuid": row["uuid"], "created_at": row["created_at"]}
        seq = self._highest + A_LOST_SEQ
        self._connection.execute(update(store).values(seq=seq, **known))
        its = select(func.count()).where(vectors.c.space_id == spaces.c.id).scalar_subquery()
        self._connection.execute(update(spaces).values(pruned_seq=seq, vectors=its))

    def _is_store(self, row: dict[str, Any]) -> bool:
        self._note_seq(row["seq"])
        to_datetime(row["created_at"])
        return bool(row["uuid"]) and _is_text(row)

    def _note_seq(self, seq: Any) -> None:
        if not isinstance(seq, int) or not 0 <= seq < NO_SEQ:
            raise ValueError(f"no seq: {seq!r}")
        self._highest = max(self._highest, seq)


def _passes(check: Callable[[dict[str, Any]], bool], row: dict[str, Any]) -> bool:
    """Whether a row is as Kronos writes it; False also where the check itself fails."""
    try:
        return check(row)
    except (
        *(AttributeError, KeyError, TypeError, ValueError),
        *(OverflowError, RecursionError, CorruptStoreError),
    ):
        return False


def _is_whole(row: dict[str, Any]) -> bool:
    """Whether a memory is as it was written."""
    for name in ("created_at", "updated_at", "expires_at"):
        if name != "expires_at" or row[name] is not None:
            to_datetime(row[name])
    is_current = hash_content(row["content"].encode()) == row["content_hash"]
    is_known = 0 < row["key"] <= row["seq"] and 0 <= row["importance"] <= 1
    return (
        is_current and is_known and isinstance(json.loads(row["metadata"]), dict) and _is_text(row)
    )


def _is_text(row: dict[str, Any]) -> bool:
    """Whether all texts of a row can be written."""
    for value in row.values():
        if isinstance(value, str):
            value.encode()  # UnicodeEncodeError is a ValueError
    return True
