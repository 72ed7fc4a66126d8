"""The commands, run as a user runs them: their output and their exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import MemoryStore, NewMemory
from kronos.cli import main
from kronos.types import ReindexReport

MAIN = "from kronos.cli import main; main()"
HEAVY = {"torch", "transformers", "sentence_transformers", "faiss", "alembic", "sqlalchemy"}


class Kronos:
    """Runs the command in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KRONOS_")},
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HF_HUB_OFFLINE": "1",
        }

    def __call__(self, *words: str, code: int = 0, stdin: str = "") -> str:
        done = self.run(*words, stdin=stdin)
        assert done.returncode == code, done.stderr
        return done.stdout

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", MAIN, *words],
            cwd=self.folder,
            env=self.environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))

    def lines(self, *words: str, code: int = 0) -> list[Any]:
        """The output of a command that prints one object per line."""
        return [json.loads(line) for line in self(*words, "--json", code=code).splitlines()]

    def error(self, *words: str, code: int) -> str:
        """The output of a failing command: one line on stderr, nothing on stdout."""
        done = self.run(*words)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("error: ")
        return lines[0]


class Inside(Kronos):
    """Runs the command in this process, where it starts much faster."""

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            pytest.MonkeyPatch.context() as patch,
            warnings.catch_warnings(),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["kronos", *words])
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            patch.delenv("KRONOS_STORE", raising=False)
            try:
                main()
            except SystemExit as exc:
                code = int(exc.code or 0)
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture
def kronos(tmp_path: Path) -> Kronos:
    return Kronos(tmp_path)


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    """A store with three memories of boats and one of bread; "ketch" came from "boats"."""
    kronos = Inside(tmp_path)
    kronos("add", "boats have masts", "--id", "boats", "--model", "hash", "--metadata", '{"k": 1}')
    kronos("add", "a ketch has two masts", "--id", "ketch", "--parent", "boats")
    kronos("add", "a ketch has two masts.", "--id", "again", "--metadata", '{"k": 1}')
    kronos("add", "rye bread is sour", "--id", "bread", "--importance", "1")
    return kronos


def ids(memories: list[dict[str, Any]]) -> list[str]:
    return [memory["id"] for memory in memories]


def test_a_first_session(kronos: Kronos, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/boats.md").write_text("# Boats\n\nA ketch has two masts.\n")
    (tmp_path / "notes/bread.txt").write_text("Rye bread needs a sour dough.\n")
    imported = kronos.json("import", "notes", "--model", "hash")
    assert imported == {"files": 2, "passages": 2, "added": 2}
    assert kronos.json("import", "notes") == {"files": 2, "passages": 2, "added": 0}
    assert (tmp_path / ".kronos/kronos.db").exists()

    id = kronos("add", "The train to Lisbon leaves at nine.", "--metadata", '{"a": 1}').strip()
    assert kronos.json("get", id)["metadata"] == {"a": 1}
    assert "Lisbon" in kronos("get", id)

    (best, *_) = kronos.json("search", "which boat has two masts?", "--limit", "2")
    assert best["metadata"]["source"].endswith("boats.md")
    assert best["embedder"] == "hash"
    assert "boats.md:1" in kronos("search", "two masts", "-l", "1")
    assert [h["id"] for h in kronos.json("search", "train", "--where", '{"a": 1}')] == [id]

    assert len(kronos.json("list")) == 3
    assert "Lisbon" in kronos("list", "--where", '{"a": {"$gte": 1}}')
    assert kronos.json("info")["memories"] == 3
    assert "3" in kronos("info")
    assert kronos.json("delete", id) == {"deleted": 1}
    assert kronos.error("get", id, code=1).endswith(f"no memory has the id '{id}'")


def test_a_store_keeps_its_model_and_reindex_changes_it(kronos: Kronos) -> None:
    kronos("add", "the cat sat on the mat", "--model", "hash")
    kronos("add", "-", stdin="interest rates rose again")
    assert kronos.json("search", "cat")[0]["embedder"] == "hash"
    report = kronos.lines("reindex", "--model", "mini")[-1]
    assert (report["embedded"], report["activated"]) == (2, True)
    best = kronos.json("search", "a kitten rested on the rug", "-l", "1")[0]
    assert best["embedder"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert best["content"] == "the cat sat on the mat"
    spaces = kronos.json("info")["spaces"]
    assert [(s["space"]["alias"], s["space"]["state"]) for s in spaces] == [
        ("hash", "retired"),
        ("mini", "active"),
    ]


def test_an_unavailable_model_gives_one_warning_and_the_command_works(kronos: Kronos) -> None:
    done = kronos.run("add", "the cat sat", "--model", "no-such/model")
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("warning: ")
    assert "no-such/model" in done.stderr
    found = kronos.run("search", "cat", "--json")
    assert [hit["embedder"] for hit in json.loads(found.stdout)] == ["hash"]
    assert len(found.stderr.splitlines()) == 1


def test_an_error_is_one_line_and_an_exit_code(kronos: Kronos, tmp_path: Path) -> None:
    assert "no store" in kronos.error("search", "x", code=2)
    assert "no store" in kronos.error("db", "upgrade", code=2)
    assert "does not exist" in kronos.error("import", "nothing", code=2)
    assert "No such option" in kronos.error("add", "x", "--colour", code=2)
    assert "Missing argument" in kronos.error("add", code=2)
    assert not (tmp_path / ".kronos").exists()
    kronos("add", "x", "--model", "hash")
    assert "blank" in kronos.error("add", " ", code=2)
    assert "no JSON" in kronos.error("list", "--where", "{", code=2)
    assert "malformed key" in kronos.error("list", "--where", """{"') OR 1=1 --": 1}""", code=2)
    assert "number, 1 or more" in kronos.error("list", "--limit", "0", code=2)
    assert "ids" in kronos.error("delete", code=2)
    assert "no-such/model" in kronos.error("reindex", "--model", "no-such/model", code=1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/kronos.db").write_bytes(b"no database at all" * 100)
    assert "broken" in kronos.error("info", "--store", "broken", code=1)
    assert "Usage" in kronos("--help")
    assert "Usage" in kronos()


def test_the_store_is_named_by_option_or_environment(kronos: Kronos, tmp_path: Path) -> None:
    kronos("add", "x", "--store", "here", "--model", "hash")
    assert (tmp_path / "here/kronos.db").exists()
    kronos.environ["KRONOS_STORE"] = "here"
    assert len(kronos.json("list")) == 1
    url = f"sqlite:///{tmp_path / 'single.db'}"
    kronos("add", "x", "--store", url, "--model", "hash")
    assert (tmp_path / "single.db").exists()
    assert kronos.json("info", "--store", url)["memories"] == 1


def test_the_schema_commands(kronos: Kronos, tmp_path: Path) -> None:
    kronos("add", "kept", "--model", "hash")
    head = kronos.json("db", "current")["revision"]
    assert kronos.json("db", "history")[-1]["revision"] == head
    assert kronos.json("db", "check") == {"ok": True}
    report = kronos.json("db", "downgrade", "base")
    assert (report["before"], report["after"]) == (head, None)
    with MemoryStore.open(_restored(tmp_path, report["backup"]), embedding_model="hash") as store:
        assert [memory.content for memory in store.list()] == ["kept"]
    kronos.error("db", "check", code=1)
    assert kronos.json("db", "upgrade")["after"] == head
    assert kronos.json("db", "check") == {"ok": True}
    kronos.error("db", "upgrade", "9999", code=2)


def _restored(folder: Path, backup: str) -> Path:
    (folder / "restored").mkdir()
    Path(backup).rename(folder / "restored/kronos.db")
    return folder / "restored"


def test_a_closed_pipe_ends_the_command_quietly(kronos: Kronos) -> None:
    kronos("add", "x" * 200, "--model", "hash")
    command = f"{sys.executable} -c '{MAIN}' list --json | true"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=kronos.folder,
        env=kronos.environ,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr


def test_a_reindex_can_be_inspected_before_and_after(kronos: Kronos) -> None:
    for text in ("the cat sat on the mat", "interest rates rose again", "the cat sat on the mat"):
        kronos("add", text, "--model", "hash")
    plan = kronos.json("reindex", "--model", "mini", "--dry-run")
    assert (plan["memories"], plan["texts"], plan["dim"]) == (3, 2, 384)
    assert 10 < plan["tokens"] < 30
    assert plan["seconds"] > 0
    assert "3 memories are pending" in kronos("reindex", "--model", "mini", "--dry-run")
    assert kronos.json("reindex", "status") == {"jobs": [], "failures": []}
    assert len(kronos.json("info")["spaces"]) == 1, "nothing was written"

    *progress, end = kronos.lines("reindex", "--model", "mini", "--no-activate")
    assert [line["event"] for line in progress] == ["progress"] * len(progress)
    assert (progress[-1]["done"], progress[-1]["total"]) == (3, 3)
    assert (end["state"], end["embedded"], end["activated"]) == ("ready", 2, False)
    assert kronos.json("search", "cat", "-l", "1")[0]["embedder"] == "hash"
    (job, *_) = kronos.json("reindex", "status")["jobs"]
    assert (job["state"], job["done"], job["total"], job["workers"]) == ("ready", 3, 3, 0)
    assert "ready, 3 of 3 memories" in kronos("info")

    assert "is active" in kronos("reindex", "activate")
    assert kronos.json("search", "kitten", "-l", "1")[0]["embedder"].endswith("MiniLM-L6-v2")
    back = kronos.lines("reindex", "rollback")[-1]
    assert (back["embedded"], back["activated"], back["space"]["model"]) == (0, True, "hash")
    assert "is active" in kronos("reindex", "rollback")
    assert "no reindex is unfinished" in kronos.error("reindex", "cancel", code=1)
    assert "no reindex is unfinished" in kronos.error("reindex", "resume", code=1)
    assert "rate must be a number above 0" in kronos.error(
        "reindex", "--model", "hash", "--rate", "-1", code=2
    )
    assert "workers must be" in kronos.error("reindex", "--model", "hash", "--workers", "0", code=2)


def test_a_stopped_job_exits_with_0_and_can_be_resumed(kronos: Kronos, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"content": f"text number {i}"}) + "\n" for i in range(300))
    )
    kronos("import", "texts.jsonl", "--model", "hash")
    # Slow enough for the signal to arrive in the middle.
    words = ["reindex", "--model", "mini", "--rate", "40", "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        cwd=kronos.folder,
        env=kronos.environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        *_, end = [json.loads(line) for line in process.stdout]
        assert process.wait() == 0
    assert first["event"] == "progress"
    assert 0 < end["embedded"] < 300
    assert (end["state"], end["pending"]) == ("open", 300 - end["embedded"])
    assert kronos.json("search", "number", "-l", "1")[0]["embedder"] == "hash"
    stopped = kronos.lines("reindex", "resume", "--max-seconds", "0.001")[-1]
    assert stopped["state"] == "open"
    rest = kronos.lines("reindex", "resume")[-1]
    assert (rest["state"], rest["activated"], rest["pending"]) == ("done", True, 0)
    assert end["embedded"] + stopped["embedded"] + rest["embedded"] == 300

    kronos("reindex", "--model", "hash", "--max-seconds", "0.0001")
    cancelled = kronos.json("reindex", "cancel")
    assert cancelled["state"] == "cancelled"
    assert "cancelled by hand" in kronos("reindex", "status")


def test_compact_prints_what_it_freed(kronos: Kronos) -> None:
    kronos("add", "the cat sat on the mat", "--model", "hash")
    kronos.lines("reindex", "--model", "mini")
    assert kronos.json("compact")["dropped"] == []
    (dropped,) = kronos.json("compact", "--keep-spaces", "0")["dropped"]
    assert dropped["model"] == "hash"
    assert "no space to roll back to" in kronos.error("reindex", "rollback", code=1)
    assert "keep_spaces must be" in kronos.error("compact", "--keep-spaces", "-1", code=2)


def test_a_command_keeps_the_width_of_hash_vectors(kronos: Kronos, tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path / ".kronos", embedding_model="hash", embedding_dim=64) as store:
        store.add("the cat sat on the mat")
    kronos("search", "cat")
    kronos("add", "interest rates rose again")
    (space,) = kronos.json("info")["spaces"]
    assert (space["space"]["dim"], space["vectors"]) == (64, 2)


def test_a_reindex_without_a_model_embeds_what_is_pending_as_a_job(
    kronos: Kronos, tmp_path: Path
) -> None:
    kronos("add", "the cat sat on the mat", "--model", "no-such/model")
    with (
        MemoryStore.open(tmp_path / ".kronos", embedding_model=None) as store,
        store._session.writer() as repository,
    ):
        (space,) = repository.spaces.all()
        repository.vectors.make_pending(space, repository.keys(None, None))
    done = kronos.run("reindex", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [event["event"] for event in events] == ["progress", "end"]
    assert (events[-1]["embedded"], events[-1]["pending"]) == (1, 0)
    assert kronos.json("info")["spaces"][0]["space"]["model"] == "hash"


# -- Searching --------------------------------------------------------------------------------


def test_a_search_by_words_alone_loads_no_model(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    open_: Callable[..., MemoryStore] = MemoryStore.open

    def spy(path: Any, **options: Any) -> MemoryStore:
        asked.append(options["embedding_model"])
        return open_(path, **options)

    monkeypatch.setattr(MemoryStore, "open", spy)
    hits = inside.json("search", "sour masts", "--mode", "lexical")
    assert sorted(ids(hits)) == ["again", "boats", "bread", "ketch"]
    assert {hit["embedder"] for hit in hits} == {"words"}
    assert ids(inside.json("search", "sour", "--mode", "lexical")) == ["bread"]
    assert set(asked) == {None}
    dense = inside.json("search", "sour", "--mode", "dense")
    assert (len(dense), dense[0]["id"], dense[0]["embedder"]) == (4, "bread", "hash")
    assert "keep" in asked


def test_near_finds_memories_similar_to_a_memory(inside: Inside) -> None:
    hits = inside.json("search", "--near", "ketch", "-l", "2")
    assert ids(hits) == ["again", "boats"]
    assert hits[0]["score"] == pytest.approx(1, abs=0.2)
    assert "no memory has the id 'gone'" in inside.error("search", "--near", "gone", code=1)
    assert "a query, or --near" in inside.error("search", "boats", "--near", "ketch", code=2)
    assert "a query, or --near" in inside.error("search", code=2)


def test_hits_are_grouped_and_ranked(inside: Inside) -> None:
    assert ids(inside.json("search", "two masts", "--group-by", "k", "--where", '{"k": 1}')) == [
        "again"
    ]
    assert inside.json("search", "two masts")[-1]["id"] == "bread"
    assert inside.json("search", "two masts", "--importance", "9")[0]["id"] == "bread"
    for id in ("ketch", "again"):
        assert id in ids(inside.json("search", "two masts", "-l", "2"))
    diverse = inside.json("search", "two masts", "-l", "2", "--diversity", "0.9")
    assert not {"ketch", "again"} <= set(ids(diverse))
    newest = inside.json("search", "masts", "--recency", "99", "--half-life", "1s")
    assert newest[0]["id"] == "bread"


def test_expand_adds_linked_memories_that_name_their_hit(inside: Inside) -> None:
    inside("link", "ketch", "bread", "carries")
    plain = inside.json("search", "ketch", "-l", "1")
    assert set(plain[0]) & {"via", "shares"} == set()
    hits = inside.json("search", "--near", "again", "-l", "1", "--expand", "1")
    assert ids(hits[:1]) == ["ketch"]
    brought = {hit["id"]: hit["via"] for hit in hits[1:]}
    assert set(brought.values()) == {"ketch"}
    assert brought.keys() <= {"boats", "bread"}
    assert "via ketch" in inside("search", "--near", "again", "-l", "1", "--expand", "1")


def test_a_search_explains_itself(inside: Inside) -> None:
    words = ("search", "two masts", "--explain", "--importance", "0.5", "-l", "2")
    found = inside.json(*words)
    assert found["explanation"]["mode"] == "hybrid"
    assert found["explanation"]["embedder"] == "hash"
    steps = found["explanation"]["steps"]
    assert {"name", "detail", "count", "seconds"} == set(steps[0])
    assert len(found["hits"]) == 2
    for hit in found["hits"]:
        assert hit["shares"]["importance"] == pytest.approx(0.25)
        assert sum(hit["shares"].values()) == pytest.approx(hit["score"])
    shown = inside(*words, "--expand", "1")
    assert all(step["name"] in shown for step in steps)
    heads = [line.split() for line in shown.splitlines()]
    assert ["step", "detail", "count", "ms"] in heads
    signals = [*found["hits"][0]["shares"]]
    assert ["rank", "score", *signals, "text"] in heads
    assert "a ketch has two masts" in shown
    assert "via " in shown, "an added memory names its hit"


def test_linked_memories_must_match_the_filter_unless_expand_outside(inside: Inside) -> None:
    inside("add", "of another place", "--id", "else", "--namespace", "else")
    inside("link", "boats", "else", "mentions")
    words = ("search", "boats", "--mode", "lexical", "--expand", "1", "--where", '{"k": 1}')
    assert ids(inside.json(*words)) == ["boats"]
    assert {"else", "ketch"} <= {*ids(inside.json(*words, "--expand-outside"))}


def test_near_loads_no_model(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    open_ = MemoryStore.open.__func__  # type: ignore[attr-defined]

    def noted(cls: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(options["embedding_model"])
        return open_(cls, *arguments, **options)

    monkeypatch.setattr(MemoryStore, "open", classmethod(noted))
    assert ids(inside.json("search", "--near", "ketch", "-l", "1")) == ["again"]
    assert set(asked) == {None}
    # If texts are pending, the model is loaded and embeds them.
    store = MemoryStore.open(inside.folder / ".kronos", embedding_model=None)
    with store, store._session.writer() as repository:
        entry = repository.entry("ketch")
        assert entry is not None
        repository.vectors.make_pending(store._session.serving.space, np.array([entry.key]))
    asked.clear()
    assert ids(inside.json("search", "--near", "ketch", "-l", "1")) == ["again"]
    assert asked[-1] == "keep"


def test_an_unavailable_reranker_is_an_error(inside: Inside) -> None:
    error = inside.error("search", "masts", "--rerank", "no-such/judge", code=1)
    assert "no-such/judge" in error


# -- The past ---------------------------------------------------------------------------------


def test_as_of_reads_and_searches_the_past(inside: Inside) -> None:
    assert inside("add", "bread is sweet", "--id", "bread", "--upsert").strip() == "bread"
    then, now = inside.json("history", "bread")
    assert (then["content"], now["content"]) == ("rye bread is sour", "bread is sweet")
    assert then["replaced_at"] == now["recorded_at"]
    assert now["replaced_at"] is None
    moment = then["recorded_at"]
    assert inside.json("get", "bread")["content"] == "bread is sweet"
    assert inside.json("get", "bread", "--as-of", moment)["content"] == "rye bread is sour"
    before = inside.json("list", "--as-of", moment)
    assert [m["content"] for m in before if m["id"] == "bread"] == ["rye bread is sour"]
    for mode in ("lexical", "dense", "hybrid"):
        hit = inside.json("search", "sour bread", "--as-of", moment, "--mode", mode)[0]
        assert hit["content"] == "rye bread is sour"
    shown = inside("history", "bread")
    assert shown.index("rye bread is sour") < shown.index("to now") < shown.index("is sweet")

    assert "none had it" in inside.error("get", "bread", "--as-of", "2020-01-01T00:00Z", code=1)
    assert inside.json("list", "--as-of", "2020-01-01T00:00:00+01:00") == []
    assert "or had, the id 'gone'" in inside.error("history", "gone", code=1)
    for words in (("get", "bread"), ("list",), ("search", "x", "--mode", "lexical")):
        error = inside.error(*words, "--as-of", "yesterday", code=2)
        assert error.endswith("--as-of is not an ISO 8601 time: 'yesterday'")
        assert "timezone-aware" in inside.error(*words, "--as-of", "2026-01-01", code=2)


# -- Links, duplicates, indexes ---------------------------------------------------------------


def test_an_upsert_replaces_the_memory_of_its_id_or_of_its_text(inside: Inside) -> None:
    words = ("add", "boats have masts", "--upsert", "--metadata", '{"new": true}')
    assert inside.json(*words) == {"id": "boats"}
    assert inside.json("get", "boats")["metadata"] == {"new": True}
    assert inside.json("get", "ketch")["parent_id"] == "boats"
    assert len(inside.json("list")) == 4
    assert "boats" in inside.error("add", "x", "--id", "boats", code=1)


def test_duplicates_come_in_groups(inside: Inside) -> None:
    (group,) = inside.json("duplicates", "--threshold", "0.9")
    assert ids(group["memories"]) == ["ketch", "again"]
    assert 0.9 <= group["score"] <= 1.0001
    shown = inside("duplicates", "-t", "0.9")
    assert shown.index("ketch") < shown.index("again")
    assert inside.json("duplicates", "-w", '{"k": 1}') == []
    assert inside.json("duplicates", "-n", "elsewhere") == []
    assert "above 0 and at most 1" in inside.error("duplicates", "-t", "0", code=2)
    assert "no JSON" in inside.error("duplicates", "-w", "{", code=2)


def test_links_are_made_followed_and_removed(inside: Inside) -> None:
    made = inside.json("link", "ketch", "bread", "carries", "--weight", "0.5")
    assert made == {
        "source_id": "ketch",
        "target_id": "bread",
        "relation": "carries",
        "weight": 0.5,
    }
    (link,) = inside.json("links", "bread")
    assert made.items() <= link.items()
    assert inside("links", "ketch").strip() == "ketch carries bread (weight 0.5)"

    def way(*words: str) -> list[tuple[int, str, str, str]]:
        steps = inside.json("trace", *words)
        return [(s["depth"], s["relation"], s["from_id"], s["id"]) for s in steps]

    up = [(1, "carries", "bread", "ketch"), (2, "parent", "ketch", "boats")]
    assert way("bread") == up
    assert way("bread", "--depth", "1") == up[:1]
    assert way("bread", "--direction", "descendants") == []
    assert ids(inside.json("trace", "ketch", "--direction", "both")) == ["boats", "bread"]
    assert "2 from ketch by parent" in inside("trace", "bread")

    inside("link", "ketch", "bread", "holds")
    assert inside.json("unlink", "ketch", "bread", "carries") == {"removed": 1}
    assert inside("unlink", "ketch", "bread") == "1 links removed\n"
    assert inside.json("links", "ketch") == []
    assert "'gone'" in inside.error("link", "ketch", "gone", "holds", code=1)
    assert "'gone'" in inside.error("links", "gone", code=1)
    assert "'gone'" in inside.error("trace", "gone", code=1)
    assert "to itself" in inside.error("link", "ketch", "ketch", "is", code=2)
    assert "relation" in inside.error("link", "ketch", "bread", " ", code=2)
    assert "direction must be" in inside.error("trace", "ketch", "--direction", "up", code=2)
    assert "depth must be" in inside.error("trace", "ketch", "--depth", "0", code=2)


def test_indexes_of_metadata_keys_are_added_and_removed(inside: Inside) -> None:
    assert inside.json("index", "list") == []
    assert inside.json("index", "add", "k") == {"field": "k", "added": True}
    assert inside.json("index", "add", "k") == {"field": "k", "added": False}
    inside("index", "add", "source.name")
    assert sorted(inside.json("index", "list")) == ["k", "source.name"]
    assert inside("index", "list").split() == inside.json("index", "list")
    assert ids(inside.json("list", "--where", '{"k": 1}')) == ["boats", "again"]
    assert inside.json("index", "remove", "k") == {"field": "k", "removed": True}
    assert inside("index", "remove", "k") == "k had no index\n"
    assert inside.json("index", "list") == ["source.name"]
    assert "a 'b" in inside.error("index", "add", "a 'b", code=2)


def test_the_fulltext_index_is_rebuilt(inside: Inside) -> None:
    def found(word: str) -> list[str]:
        return ids(inside.json("search", word, "--mode", "lexical"))

    assert found("mast") == found("masts") != []
    assert inside.json("index", "words", "--tokenizer", "unicode61") == {"tokenizer": "unicode61"}
    assert found("mast") == []
    assert "with the tokenizer trigram" in inside("index", "words", "--tokenizer", "trigram")
    assert found("rea") == ["bread"]
    inside("index", "words")
    assert found("rea") == ["bread"]
    assert "tokenizer must be" in inside.error("index", "words", "--tokenizer", "x", code=2)


def test_an_invalid_search_is_one_line_of_error(inside: Inside) -> None:
    def refused(*words: str) -> str:
        return inside.error("search", "masts", *words, code=2)

    assert 'mode must be "hybrid"' in refused("--mode", "vague")
    assert "half_life" in refused("--half-life", "long")
    assert "ranking.diversity" in refused("--diversity", "2")
    assert "ranking.recency" in refused("--recency", "-1")
    assert "expand must be" in refused("--expand", "-1")
    assert "a 'b" in refused("--group-by", "a 'b")


# -- The program ------------------------------------------------------------------------------


def test_help_loads_no_heavy_module(kronos: Kronos) -> None:
    code = (
        "import sys; from kronos.cli import app; sys.argv = ['kronos']; "
        "app(['--help'], standalone_mode=False); "
        f"print('loaded:', {HEAVY!r} & {{*sys.modules}} or 'nothing')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=kronos.environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("loaded: nothing\n")


def test_a_reindex_without_a_switch_exits_with_3(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    reindex: Callable[..., ReindexReport] = MemoryStore.reindex
    monkeypatch.setattr(
        MemoryStore,
        "reindex",
        lambda *args, **options: replace(reindex(*args, **options), state="failed", failed=1),
    )
    (*_, end) = inside.lines("reindex", code=3)
    assert (end["event"], end["state"]) == ("end", "failed")


def fill_with_vectors(folder: Path, count: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    with MemoryStore.open(folder, embedding_model=None, embedding_dim=8) as store:
        store.add_many(NewMemory(f"text {n}", embedding=row) for n, row in enumerate(vectors))


def test_tune_gives_a_large_store_its_graph_and_the_next_process_uses_it(
    kronos: Kronos, tmp_path: Path
) -> None:
    fill_with_vectors(tmp_path / "large", 10_000)
    inside = Inside(tmp_path)
    assert inside.json("info", "--store", "large")["index_effort"] is None
    tuned = kronos.json("tune", "large", "--target", "0.9")
    assert tuned["vectors"] == 10_000
    assert tuned["index_kind"] == "faiss-hnsw"
    assert (tuned["target"], tuned["reached"], tuned["saved"]) == (0.9, True, True)
    assert tuned["recall"] >= 0.9
    info = inside.json("info", "--store", "large")
    assert (info["index_effort"], info["index_recall"]) == (tuned["effort"], tuned["recall"])
    doctor = inside.json("doctor", "--store", "large")
    assert doctor["ok"]
    assert (doctor["index_effort"], doctor["index_recall"]) == (tuned["effort"], tuned["recall"])
    said = f"faiss-hnsw, effort {tuned['effort']}, recall@10 {tuned['recall']:.4f} when measured"
    assert said in inside("info", "--store", "large")
    assert f"searches: {said}" in inside("doctor", "--store", "large")
    line = inside("tune", "--store", "large", "--target", "0.9")
    assert line == (
        f"10000 vectors, faiss-hnsw: recall@10 is {tuned['recall']:.4f} with an effort of "
        f"{tuned['effort']}\n"
    )


def test_tune_of_a_small_store_reports_exact_search(inside: Inside) -> None:
    assert re.search(r"^ searches +faiss-flat, exact *$", inside("info"), re.MULTILINE)
    assert inside("tune") == "4 vectors, faiss-flat: every search is exact\n"
    assert inside.json("tune", ".kronos")["effort"] is None
    assert "searches: faiss-flat, exact" in inside("doctor")


def test_tune_reports_an_unreachable_target_and_invalid_arguments(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kronos.index.tuning.EFFORTS", (1,))
    monkeypatch.setattr("kronos.index.policy.IndexPolicy.scans", lambda *_: False)
    fill_with_vectors(tmp_path / "large", 10_000)
    done = inside.run("tune", "large", "--json", "--target", "0.9999")
    assert done.returncode == 1
    assert not json.loads(done.stdout)["reached"]
    assert "a recall of 0.9999 is out of reach: the index reaches 0." in done.stderr
    assert 'Settings(index="flat")' in done.stderr
    assert "target must be a recall" in inside.error("tune", "--target", "1.5", code=2)
    assert "name the store once" in inside.error("tune", "a", "--store", "b", code=2)
    assert "there is no store" in inside.error("tune", "nowhere", code=2)


@pytest.mark.parametrize(
    "text", [":smile: a:A:b", "[red]x[/red] [/] [b]", r"\[b] \\[/b] {x} %s", "<b> &amp; `x`"]
)
def test_a_text_is_printed_without_markup(inside: Inside, text: str) -> None:
    inside("add", text, "--id", text, "--metadata", json.dumps({"k": text}))
    for command in (["list"], ["get", text], ["search", text, "--explain"], ["history", text]):
        assert text in inside(*command), command
    assert repr(text) in inside.error("add", "again", "--id", text, code=1)
