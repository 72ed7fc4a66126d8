"""Every moment that comes in can be given back, or is refused by name, whatever door it takes."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import MemoryStore, NewMemory
from kronos.errors import InputError
from kronos.search.ranking import Ranking

KRONOS = str(Path(sys.executable).with_name("kronos"))
EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))


class Broken(tzinfo):
    """A time zone that does not know."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        raise OverflowError("date value out of range")

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None


FAR = [
    datetime.max.replace(tzinfo=WEST),
    datetime.min.replace(tzinfo=EAST),
    datetime.max.replace(tzinfo=ZoneInfo("America/New_York")),
    datetime.min.replace(tzinfo=ZoneInfo("Asia/Tokyo")),
    datetime(2026, 1, 1, tzinfo=Broken()),
]
ZONES = st.one_of(
    st.timezones(),
    st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)).map(timezone),
)


def doors(store: MemoryStore, moment: Any) -> dict[str, Callable[[], Any]]:
    """Every argument that takes a moment."""
    return {
        "expires_at of add": lambda: store.add("new", expires_at=moment),
        "expires_at of upsert": lambda: store.upsert("new", expires_at=moment),
        "expires_at of update": lambda: store.update("kept", expires_at=moment),
        **{
            f"{name} of add_many, {kind.__name__}": functools.partial(
                store.add_many, [kind(content="new", **{name: moment})]
            )
            for name in ("expires_at", "created_at", "updated_at")
            for kind in (NewMemory, dict)
        },
        "as_of of get": lambda: store.get("kept", as_of=moment),
        "as_of of find": lambda: store.find("kept", as_of=moment),
        "as_of of list": lambda: store.list(as_of=moment),
        "as_of of iterate": lambda: list(store.iterate(as_of=moment)),
        "as_of of count": lambda: store.count(as_of=moment),
        "as_of of search": lambda: store.search("kept", as_of=moment),
        "as_of of search_many": lambda: store.search_many(["kept"], as_of=moment),
        "now of a ranking": lambda: store.search("kept", ranking=Ranking(recency=1, now=moment)),
        "forget_before of compact": lambda: store.maintenance.compact(forget_before=moment),
    }


@pytest.mark.parametrize("number", range(len(FAR)))
def test_a_moment_outside_of_the_years_1_to_9999_is_refused_by_name(
    store: MemoryStore, number: int
) -> None:
    store.add("kept", id="kept")
    moment = FAR[number]
    for name, call in doors(store, moment).items():
        with pytest.raises(InputError, match=name.split()[0]) as caught:
            call()
        assert caught.value.field is not None, name
    assert [memory.id for memory in store.list()] == ["kept"]


@settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
@given(moment=st.datetimes(timezones=ZONES, allow_imaginary=True))
def test_what_is_stored_comes_back_equal(store: MemoryStore, moment: datetime) -> None:
    try:
        in_utc = moment.astimezone(timezone.utc)
    except OverflowError:
        with pytest.raises(InputError):
            store.add_many([NewMemory("far away", created_at=moment)])
        return
    (id,) = store.add_many([NewMemory("near", created_at=moment, updated_at=moment)])
    memory = store.get(id)
    assert memory.created_at == memory.updated_at == in_utc
    store.delete(id)


@pytest.mark.parametrize("column", ["created_at", "updated_at", "expires_at"])
def test_rows_with_a_moment_that_was_taken_once_are_read_and_are_no_damage(
    store: MemoryStore, tmp_path: Path, column: str
) -> None:
    first, last = -62135596800 * 10**6, 253402300799999999
    store.add_many([NewMemory("early", id="early"), NewMemory("late", id="late")])
    with store._session.writer() as repository:
        for id, moment in (
            ("early", first - 14 * 3600 * 10**6),
            ("late", last + 12 * 3600 * 10**6),
        ):
            repository.connection.exec_driver_sql(
                f"UPDATE memories SET {column} = ? WHERE id = ?", (moment, id)
            )
    alive = ["late"] if column == "expires_at" else ["early", "late"]
    assert [memory.id for memory in store.list()] == alive
    shown = {memory.id: getattr(memory, column) for memory in store.list()}
    assert shown["late"] == datetime.max.replace(tzinfo=timezone.utc)
    assert store.search("late", limit=1)[0].id == "late"
    assert store.get("late").id == "late"
    assert len(store.history("late")) == 1
    assert store.maintenance.check().problems == ()
    assert store.export_to(tmp_path / "all.jsonl") == len(alive)
    with MemoryStore.open(tmp_path / "other", embedding_model="hash") as other:
        assert other.import_from(tmp_path / "all.jsonl") == alive
    report = MemoryStore(store.location.folder).maintenance.recover()
    assert report.damaged == ()
    assert report.memories == 2


def test_a_file_with_a_moment_that_cannot_be_is_refused_and_its_line_named(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text(
        json.dumps({"text": "good"})
        + "\n"
        + json.dumps({"text": "kept for ever", "expires_at": "9999-12-31T23:59:59-05:00"})
        + "\n"
    )
    store = str(tmp_path / "s")
    for command in (
        ["import", str(file), "--model", "hash"],
        ["add", "x", "--expires-at", "9999-12-31T23:59:59-05:00", "--model", "hash"],
    ):
        done = subprocess.run(
            [KRONOS, *command, "--store", store], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "expires_at" in done.stderr
        assert "9999" in done.stderr
    assert (
        "line 2"
        in subprocess.run(
            [KRONOS, "import", str(file), "--store", store],
            capture_output=True,
            text=True,
            check=False,
        ).stderr
    )
