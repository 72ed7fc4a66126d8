"""An export comes back exactly, in another store and under another model, and mixes no spaces."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import Memory, MemoryStore, NewMemory
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import ContentError, DimensionMismatchError, InputError
from tests.conftest import Clock, Opener

FORMATS = ["all.jsonl", "all.parquet"]


class Counting(HashEmbedder):
    """Counts the texts that it embeds."""

    texts = 0

    def embed_documents(self, texts: Any) -> Any:
        Counting.texts += len(texts)
        return super().embed_documents(texts)


def everything(store: MemoryStore) -> list[Memory]:
    return store.list(limit=10**6, namespace="*")


def all_vectors(store: MemoryStore) -> dict[str, bytes]:
    with store._reader() as repository:
        space = repository.spaces.active()
        assert space is not None
        found: dict[str, bytes] = {}
        for page in repository.walk(None, None, 1000):
            blobs = repository.spaces.blobs(space.id, [key for key, _ in page])
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
def test_what_was_exported_comes_back_exactly(
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
        assert other.check().problems == ()
        assert other.search("text 77 of a file", limit=1)[0].content == "text 77 of a file"
        other.export_to(tmp_path / f"again-{name}", vectors=vectors)
    assert path.stat().st_size == (tmp_path / f"again-{name}").stat().st_size


@pytest.mark.parametrize("name", FORMATS)
def test_vectors_of_another_embedder_are_never_taken(
    open_store: Opener, clock: Clock, tmp_path: Path, name: str
) -> None:
    store = open_store(embedder=HashEmbedder(64))
    store.add_many(["one text", "another text"])
    store.export_to(tmp_path / name, vectors=True)

    class Other(Counting):
        """As wide, and its vectors cannot be compared."""

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
    held = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [line["metadata"]["n"] for line in held] == [5, 7]


def test_bad_files_are_refused_by_name(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    store.add_many(["one text", "another text"])
    path = tmp_path / "x.jsonl"
    store.export_to(path, vectors=True)
    for target in (tmp_path / "x.csv", tmp_path / "absent" / "x.jsonl"):
        with pytest.raises(InputError) as refused:
            store.export_to(target)
        assert refused.value.field == "path"
    lines = path.read_text().splitlines()
    bad = {
        "empty": "",
        "no header": lines[1],
        "newer": lines[0].replace(": 1", ": 2", 1),
        "no JSON": lines[0] + "\n{",
        "no object": lines[0] + "\n[1]",
        "an unknown field": lines[0] + '\n{"content": "x", "colour": 1}',
        "a bad time": lines[0] + '\n{"content": "x", "created_at": "yesterday"}',
        "a bad vector": lines[0] + '\n{"content": "x", "vector": "@@"}',
    }
    for name, text in bad.items():
        path.write_text(text)
        with pytest.raises(InputError, match=r"x\.jsonl"):
            store.import_from(path)
        assert store.count() == 2, name
    path.write_text(lines[0] + '\n{"content": "x", "vector": "AACAPw=="}')
    with pytest.raises(DimensionMismatchError):
        store.import_from(path)
    path.write_text(lines[0] + '\n{"content": " "}')
    with pytest.raises(ContentError):
        store.import_from(path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 garbage")
    with pytest.raises(InputError, match="Parquet"):
        store.import_from(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no file"):
        store.import_from(tmp_path / "absent.jsonl")
    assert store.count() == 2


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


def test_times_can_be_brought_from_elsewhere(store: MemoryStore, clock: Clock) -> None:
    then = datetime(2001, 2, 3, tzinfo=timezone.utc)
    store.add_many([NewMemory("old", id="a", created_at=then), NewMemory("new", id="b")])
    old, new = store.get("a"), store.get("b")
    assert (old.created_at, old.updated_at) == (then, then)
    assert new.created_at == clock.now
    with pytest.raises(InputError) as refused:
        store.add_many([NewMemory("x", created_at=then.replace(tzinfo=None))])
    assert refused.value.field == "items[0].created_at"
