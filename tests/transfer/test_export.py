"""An export comes back exactly, in another store or with another model, and mixes no spaces."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import Memory, MemoryStore, NewMemory
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import (
    ContentError,
    DimensionMismatchError,
    InputError,
    StorageFullError,
)
from kronos.transfer.export import ExportRow, is_export, write_export
from kronos.transfer.importing import read_file
from tests.conftest import Clock, Opener

FORMATS = ["all.jsonl", "all.parquet"]
UTC = timezone.utc


class Counting(HashEmbedder):
    """Counts the texts that it embeds."""

    texts = 0

    def embed_documents(self, texts: Any) -> Any:
        Counting.texts += len(texts)
        return super().embed_documents(texts)


def everything(store: MemoryStore) -> list[Memory]:
    return store.list(limit=10**6, namespace="*")


def all_vectors(store: MemoryStore) -> dict[str, bytes]:
    with store._session.reader() as repository:
        space = repository.spaces.active()
        assert space is not None
        found: dict[str, bytes] = {}
        for page in repository.walk(None, None, 1000):
            blobs = repository.vectors.blobs(space.id, [key for key, _ in page])
            found |= {memory.id: blobs[key] for key, memory in page}
        return found


def fill(store: MemoryStore, clock: Clock) -> None:
    store.add_many(f"text {number} of a file" for number in range(1500))
    clock.tick(1.000001)
    store.add(
        "Grüße, 世界 👩‍👩‍👧 \u2028 line \r\n end",
        id="ünï/çode",
        namespace="team/alice",
        metadata={"a": [1, 2.5, None, True, {"b": "ü"}], "big": 2**62, "tiny": 1e-300},
        importance=0.1,
        parent_id="nobody",
        expires_at=datetime(2099, 1, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5))),
    )
    clock.tick(60)
    store.update("ünï/çode", importance=1 / 3)


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_an_export_comes_back_exactly(
    open_store: Opener, clock: Clock, tmp_path: Path, name: str, vectors: bool
) -> None:
    store = open_store(embedder=Counting(64))
    fill(store, clock)
    path = tmp_path / name
    assert store.export_to(path, vectors=vectors) == 1501
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [name]
    Counting.texts = 0
    clock.tick(3600)
    with MemoryStore.open(tmp_path / "other", embedder=Counting(64), clock=clock) as other:
        ids = other.import_from(path)
        assert everything(other) == everything(store)
        assert ids == [memory.id for memory in everything(store)]
        assert Counting.texts == (0 if vectors else 1501)
        assert all_vectors(other) == all_vectors(store)
        assert other.import_from(path) == ids
        assert other.count(namespace="*") == 1501, "a second time adds nothing"
        assert other.maintenance.check().problems == ()
        assert other.search("text 77 of a file", limit=1)[0].content == "text 77 of a file"
        other.export_to(tmp_path / f"again-{name}", vectors=vectors)
    assert path.stat().st_size == (tmp_path / f"again-{name}").stat().st_size


@pytest.mark.parametrize("name", FORMATS)
def test_vectors_of_another_embedder_are_never_imported(
    open_store: Opener, clock: Clock, tmp_path: Path, name: str
) -> None:
    store = open_store(embedder=HashEmbedder(64))
    store.add_many(["one text", "another text"])
    store.export_to(tmp_path / name, vectors=True)

    class Other(Counting):
        """The same width, but vectors that cannot be compared."""

        def __init__(self, dim: int) -> None:
            super().__init__(dim)
            self.fingerprint = "another one"

        def embed_documents(self, texts: Any) -> Any:
            return -super().embed_documents(texts)

    with MemoryStore.open(tmp_path / "other", embedder=Other(64)) as other:
        other.import_from(tmp_path / name)
        mine, theirs = all_vectors(other), all_vectors(store)
        for id, blob in mine.items():
            assert np.allclose(np.frombuffer(blob, "<f4"), -np.frombuffer(theirs[id], "<f4"))


def test_a_part_of_a_store_is_exported(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    store.add_many(
        NewMemory(f"text {n}", namespace=f"n{n % 2}", metadata={"n": n}) for n in range(9)
    )
    path = tmp_path / "some.jsonl"
    assert store.export_to(path, namespace="n1", where={"n": {"$gt": 3}}) == 2
    held = [json.loads(line) for line in path.read_text().splitlines()[1:-1]]
    assert [line["metadata"]["n"] for line in held] == [5, 7]


def sealed(*lines: str) -> bytes:
    """Write a JSONL file with any content and the correct seal."""
    text = "".join(line + "\n" for line in lines).encode()
    return text + b'{"kronos-export-sha256": "%s"}\n' % hashlib.sha256(text).hexdigest().encode()


def test_bad_files_are_refused_by_name(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    store.add_many(["one text", "another text"])
    path = tmp_path / "x.jsonl"
    store.export_to(path, vectors=True)
    for target in (tmp_path / "x.csv", tmp_path / "absent" / "x.jsonl"):
        with pytest.raises(InputError) as refused:
            store.export_to(target)
        assert refused.value.field == "path"
    header, memory, _, _ = path.read_text().splitlines()
    assert path.read_bytes() == sealed(*path.read_text().splitlines()[:-1])
    bad = {
        "not an export": [b"", sealed(), sealed(memory), sealed(header.replace(": 1", ": 2", 1))],
        "line 2: Expecting": [sealed(header, "{")],
        "line 2: expected a JSON object": [sealed(header, "[1]")],
        "line 2.*colour": [sealed(header, '{"content": "x", "colour": 1}')],
        "line 2.*yesterday": [sealed(header, '{"content": "x", "created_at": "yesterday"}')],
        "line 2.*base64": [sealed(header, '{"content": "x", "vector": "@@"}')],
    }
    for reason, files in bad.items():
        for file in files:
            path.write_bytes(file)
            with pytest.raises(InputError, match=rf"x\.jsonl.*{reason}"):
                store.import_from(path)
            assert store.count() == 2, reason
    path.write_bytes(sealed(header, '{"content": "x", "vector": "AACAPw=="}'))
    with pytest.raises(DimensionMismatchError):
        store.import_from(path)
    path.write_bytes(sealed(header, '{"content": " "}'))
    with pytest.raises(ContentError):
        store.import_from(path)
    with pytest.raises(InputError, match="no file"):
        store.import_from(tmp_path / "absent.jsonl")
    assert store.count() == 2


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[MemoryStore]:
    """A store that must stay empty."""
    with MemoryStore.open(tmp_path / "empty", embedder=HashEmbedder(8)) as store:
        yield store
        assert store.count(namespace="*") == 0


def small_export(folder: Path, name: str, *, vectors: bool = True) -> Path:
    path = folder / name
    with MemoryStore.open(folder / "source", embedder=HashEmbedder(8)) as source:
        source.add("Grüße", id="a", metadata={"n": 1}, expires_at=datetime.max.replace(tzinfo=UTC))
        source.add_many(NewMemory(f"text {n}", id=f"{n}", parent_id="a") for n in range(2))
        source.export_to(path, vectors=vectors)
    return path


def refuse(store: MemoryStore, path: Path, file: bytes) -> str:
    path.write_bytes(file)
    with pytest.raises(InputError) as refused:
        store.import_from(path)
    assert refused.value.field == "path"
    return str(refused.value)


def flipped(whole: bytes, position: int) -> bytes:
    bit = 1 << position % 8
    return whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :]


@pytest.mark.parametrize("name", FORMATS)
def test_every_flipped_byte_is_found_before_anything_is_stored(
    empty: MemoryStore, tmp_path: Path, name: str
) -> None:
    path = small_export(tmp_path, name)
    whole = path.read_bytes()
    for position in range(len(whole)):
        assert name in refuse(empty, path, flipped(whole, position))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_lost_or_gained_bytes_is_found_before_anything_is_stored(
    empty: MemoryStore, tmp_path: Path, name: str
) -> None:
    path = small_export(tmp_path, name)
    whole = path.read_bytes()
    for end in {*range(0, len(whole), 11), *range(len(whole) - 20, len(whole))}:
        refuse(empty, path, whole[:end])
        refuse(empty, path, whole[end:][1:])
    for more in (b"\n", b"\0" * 100, whole, whole[-500:]):
        refuse(empty, path, whole + more)
    refuse(empty, path, b"PAR1 garbage")
    refuse(empty, path, bytes(len(whole)))


def test_lines_removed_swapped_or_doubled_are_found_before_anything_is_stored(
    empty: MemoryStore, tmp_path: Path
) -> None:
    path = small_export(tmp_path, "x.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    for n in range(len(lines)):
        refuse(empty, path, b"".join(lines[:n] + lines[n + 1 :]))
        refuse(empty, path, b"".join(lines[: n + 1] + lines[n:]))
        for other in range(n):
            swapped = [*lines]
            swapped[n], swapped[other] = lines[other], lines[n]
            refuse(empty, path, b"".join(swapped))
    for n in range(1, len(lines)):
        assert "is cut off" in refuse(empty, path, b"".join(lines[:n]))
    assert "was changed or damaged" in refuse(
        empty, path, b"".join(lines).replace(b"text 1", b"text 2")
    )
    assert "its end was changed" in refuse(empty, path, b"".join(lines).replace(b"\n", b"\r\n"))


def test_a_damaged_header_does_not_pass_for_plain_json_lines(tmp_path: Path) -> None:
    path = small_export(tmp_path, "x.jsonl")
    whole = path.read_bytes()
    for position in range(whole.index(b"\n") + 1):
        path.write_bytes(flipped(whole, position))
        if not is_export(path):
            with pytest.raises(InputError):
                next(read_file(path, namespace="default"))
    path.write_bytes(whole[whole.index(b"\n") + 1 :])
    assert is_export(path), "its seal says so"


def test_a_file_that_was_edited_on_purpose_can_be_imported_without_its_seal(
    empty: MemoryStore, open_store: Opener, tmp_path: Path
) -> None:
    path = small_export(tmp_path, "x.jsonl")
    edited = path.read_text().replace("text 1", "a better text").splitlines()
    message = refuse(empty, path, "\n".join(edited).encode())
    assert "delete its header and its seal, the first and the last line" in message
    path.write_text("\n".join(edited[1:-1]))
    assert not is_export(path)
    store = open_store()
    store.add_many(read_file(path, namespace="elsewhere"))
    assert [memory.content for memory in everything(store)] == ["Grüße", "text 0", "a better text"]
    first, second = store.get("a"), store.get("0")
    assert first.expires_at == datetime.max.replace(tzinfo=UTC)
    assert (second.namespace, second.parent_id, second.importance) == ("default", "a", 0.5)
    assert first.metadata["n"] == 1
    assert {"created_at", "updated_at", "vector"} < first.metadata.keys(), "as the message says"


def test_other_programs_read_a_parquet_export(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = small_export(tmp_path, "x.parquet", vectors=False)
    assert parquet.read_table(path)["content"].to_pylist() == ["Grüße", "text 0", "text 1"]


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_is_synced_before_it_is_renamed(
    store: MemoryStore, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    synced: list[tuple[str, int, bool]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        found = os.fstat(descriptor)
        names = {file.stat().st_ino: file.name for file in (tmp_path, *tmp_path.iterdir())}
        synced.append((names[found.st_ino], found.st_size, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    store.export_to(path)
    part, size, is_there = synced[0]
    assert re.fullmatch(rf"{re.escape(name)}\.[0-9a-f]{{32}}\.part", part)
    assert (size, is_there) == (path.stat().st_size, False)
    assert [(name, there) for name, _, there in synced[1:]] == [(tmp_path.name, True)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_failed_export_leaves_the_previous_file(tmp_path: Path, name: str) -> None:
    path = small_export(tmp_path, name)
    before = path.read_bytes()

    def failing() -> Iterator[ExportRow]:
        yield from ()
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageFullError, match="No space left"):
        write_export(path, failing(), None)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if ".part" in file.name] == []
    left = path.with_name(f"{name}.{'0a' * 16}.part")
    left.write_bytes(b"what a killed export left" * 9999)
    write_export(path, (), None)
    assert path.stat().st_size < len(before)
    assert not left.exists()


@pytest.mark.parametrize("name", FORMATS)
def test_two_concurrent_exports_to_one_file_are_both_complete(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    def meanwhile() -> Iterator[ExportRow]:
        assert write_export(path, (), None) == 0
        yield from ()

    assert write_export(path, meanwhile(), None) == 0
    assert [file.name for file in tmp_path.iterdir()] == [name]


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXT = st.text(CHARACTERS, min_size=1).filter(lambda text: not text.isspace())
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(CHARACTERS, max_size=20),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(TEXT, min_size=1, max_size=5), metadata=st.dictionaries(TEXT, JSON, max_size=3)
)
@pytest.mark.parametrize("name", FORMATS)
def test_any_text_and_any_metadata_come_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, texts: list[str], metadata: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    options: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": 16}
    with MemoryStore.open(folder / "a", **options) as one:
        try:
            one.add_many(NewMemory(text, metadata=metadata) for text in texts)
        except InputError:
            return
        one.export_to(folder / name)
        with MemoryStore.open(folder / "b", **options) as other:
            other.import_from(folder / name)
            assert everything(other) == everything(one)


def test_an_import_keeps_created_at_and_updated_at(store: MemoryStore, clock: Clock) -> None:
    then = datetime(2001, 2, 3, tzinfo=timezone.utc)
    store.add_many([NewMemory("old", id="a", created_at=then), NewMemory("new", id="b")])
    old, new = store.get("a"), store.get("b")
    assert (old.created_at, old.updated_at) == (then, then)
    assert new.created_at == clock.now
    with pytest.raises(InputError) as refused:
        store.add_many([NewMemory("x", created_at=then.replace(tzinfo=None))])
    assert refused.value.field == "items[0].created_at"
