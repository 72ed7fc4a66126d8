"""The commands in other environments: locales, pipes, signals, stores that a program made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import EmbeddingService, MemoryStore, __version__
from kronos.cli import app
from kronos.errors import EmbeddingError, StorageError
from tests.embedders import Named

KRONOS = str(Path(sys.executable).with_name("kronos"))
TEXT = "Grüße 🎉 北京 ﷺ"
LOCALES: dict[str, dict[str, str]] = {
    "a pipe on Windows": {"PYTHONIOENCODING": "cp1252"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "UTF-16": {"PYTHONIOENCODING": "utf-16"},
}


def kronos(
    *arguments: str | bytes, check: bool = True, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [KRONOS, *arguments],
        capture_output=True,
        env={**os.environ, **(env or {})},
        check=False,
        timeout=60,
        **options,
    )
    if check:
        assert done.returncode == 0, done.stderr.decode()
    return done


@pytest.mark.parametrize("locale", LOCALES)
def test_input_and_output_are_utf8_in_every_locale(tmp_path: Path, locale: str) -> None:
    env = {**LOCALES[locale], "KRONOS_STORE": str(tmp_path / "s")}
    kronos("add", TEXT.encode(), "--model", "hash", "--id", "g", env=env)
    kronos("add", "-", "--id", "p", env=env, input=f"{TEXT} from a pipe\r\n".encode())
    kronos("add", "-", "--id", "b", env=env, input=b"\xef\xbb\xbfwith a mark")
    kronos("add", "old", "--id", "h", "--metadata", json.dumps({"ü": "ß"}).encode(), env=env)
    for command in (
        *(["list"], ["get", "g", "--json"], ["history", "g"], ["duplicates", "-t", "0.1"]),
        *(["search", TEXT.encode()], ["search", TEXT.encode(), "--explain", "--json"]),
    ):
        assert TEXT in kronos(*command, env=env).stdout.decode("utf-8"), command
    with MemoryStore.open(tmp_path / "s", embedding_model="keep") as store:
        assert store.get("g").content == TEXT
        assert store.get("p").content == f"{TEXT} from a pipe\n"
        assert store.get("b").content == "with a mark"
        assert store.get("h").metadata == {"ü": "ß"}


def test_input_that_is_not_utf8_is_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    env = {"KRONOS_STORE": str(tmp_path / "s")}
    done = kronos("add", "-", "--model", "hash", env=env, check=False, input=b"caf\xe9")
    assert done.returncode == 2
    assert b"not UTF-8" in done.stderr
    done = kronos("add", b"caf\xe9", "--model", "hash", env=env, check=False)
    assert done.returncode == 2
    assert b"not UTF-8" in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_terminal_replaces_letters_that_it_cannot_show(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    env = {**os.environ, "KRONOS_STORE": str(tmp_path / "s"), "PYTHONIOENCODING": "latin-1"}
    kronos("add", TEXT, "--model", "hash", "--id", "g", env=env)
    ours, theirs = pty.openpty()
    with subprocess.Popen([KRONOS, "list"], stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
        assert process.wait() == 0
    os.close(ours)
    assert "Grüße ?".encode("latin-1") in shown


# -- Models -------------------------------------------------------------------------------------


def test_a_store_made_with_an_embedding_service_is_searched_with_its_model(tmp_path: Path) -> None:
    service = EmbeddingService("mini")
    service.load()
    with MemoryStore.open(tmp_path / "s", embedder=service) as store:
        store.add("bees on the roof", id="bees")
        store.add("the server room", id="room")
    env = {"KRONOS_STORE": str(tmp_path / "s")}
    for mode in ("dense", "hybrid"):
        done = kronos("search", "insects", "--mode", mode, "--json", "--limit", "1", env=env)
        (hit,) = json.loads(done.stdout)
        assert (hit["id"], done.stderr) == ("bees", b"")
        assert "MiniLM" in hit["embedder"]
    kronos("add", "wasps in the shed", "--id", "wasps", env=env)
    with MemoryStore.open(tmp_path / "s", embedder=service) as store:
        assert store.stats().spaces[0].pending == 0
        assert store.stats().spaces[0].vectors == 3


def test_commands_without_the_stores_embedder_warn_and_continue(tmp_path: Path) -> None:
    own = Named("company/model")
    with MemoryStore.open(tmp_path / "s", embedder=own) as store:
        store.add("bees on the roof", id="bees")
    env = {"KRONOS_STORE": str(tmp_path / "s")}
    for command in (
        ["search", "bees"],
        ["search", "bees", "--mode", "dense"],
        ["add", "more bees", "--id", "more"],
        ["import", str(_file(tmp_path))],
    ):
        done = kronos(*command, env=env)
        assert b"company/model" in done.stderr, command
        assert b"hash" in done.stderr, command
        if command[0] == "search":
            assert b"bees on the roof" in done.stdout
    with MemoryStore.open(tmp_path / "s", embedder=own) as store:
        assert store.count() == 3
        found = store.search("more bees", mode="dense", limit=1)[0]
        assert (found.id, found.embedder) == ("more", "company/model")
        with store._session.reader() as repository:
            space = repository.spaces.active()
            assert space is not None
            entry = repository.entry("more")
            assert entry is not None
            row = repository.vectors.of(space, entry.key)
        assert row is not None
        assert np.allclose(row, own.one("more bees"), atol=1e-6)


def _file(folder: Path) -> Path:
    file = folder / "notes.txt"
    file.write_text("a note of bees")
    return file


COMMANDS = [
    *(["search", "text"], ["add", "more"], ["list"], ["get", "one"], ["info"], ["doctor"]),
    *(["duplicates"], ["tune"], ["compact"], ["search", "--near", "one"], ["reindex", "status"]),
    *(["import", "notes.txt"], ["export", "all.jsonl"], ["reindex", "--dry-run"], ["reindex"]),
]
STORES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "hash vectors of another width": ({"embedding_model": "hash", "embedding_dim": 64}, {}),
    "made with other settings": ({"embedding_model": "mini"}, {"KRONOS_PRECISION": "bfloat16"}),
    "of a program's own embedder": ({"embedder": Named("company/model")}, {}),
}


@pytest.mark.parametrize("kind", STORES)
def test_only_reindex_changes_the_model_of_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    _file(tmp_path)
    options, env = STORES[kind]
    with MemoryStore.open(tmp_path / "s", **options) as store:
        store.add("one text", id="one")
        before = [(s.space.id, s.space.fingerprint) for s in store.stats().spaces]
    for name, value in {**env, "KRONOS_STORE": str(tmp_path / "s")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS if not env else COMMANDS[:-1]:  # the last one changes the model
        with warnings.catch_warnings(), suppress(StorageError, EmbeddingError):
            warnings.simplefilter("ignore")  # the model is unavailable
            app(command, standalone_mode=False)
    with MemoryStore.open(tmp_path / "s", embedding_model=None) as store:
        spaces = [s.space for s in store.stats().spaces]
        active = [(s.id, s.fingerprint) for s in spaces if s.state == "active"]
    assert active == before


@pytest.mark.parametrize("command", [["add", "more"], ["import", "notes.txt"]])
def test_another_model_is_refused_and_the_error_names_the_reindex_command(
    tmp_path: Path, command: list[str]
) -> None:
    _file(tmp_path)
    with MemoryStore.open(tmp_path / "s", embedding_model="hash", embedding_dim=64) as store:
        store.add("one text", id="one")
    env = {"KRONOS_STORE": str(tmp_path / "s")}
    done = kronos(*command, "--model", "mini", env=env, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert b"kronos reindex --model mini" in done.stderr
    kronos(*command, "--model", "hash", env=env, cwd=tmp_path)
    with MemoryStore.open(tmp_path / "s", embedding_model=None) as store:
        assert [s.space.dim for s in store.stats().spaces] == [64]
        assert store.count() == 2


# -- Small words --------------------------------------------------------------------------------


def test_version_and_shell_completion() -> None:
    assert kronos("--version").stdout.decode() == f"kronos {__version__}\n"
    shown = kronos("--show-completion", "bash", check=False)
    assert shown.returncode == 0 or b"Shell" in shown.stderr
    done = kronos(
        env={"_KRONOS_COMPLETE": "complete_bash", "COMP_WORDS": "kronos se", "COMP_CWORD": "1"}
    )
    assert b"search" in done.stdout


@pytest.mark.parametrize("command", ["import", "add"])
def test_an_interruption_prints_stopped_and_exits_with_130(tmp_path: Path, command: str) -> None:
    big = tmp_path / "big.jsonl"
    big.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(200_000)))
    arguments = [command, str(big)] if command == "import" else [command, "-"]
    process = subprocess.Popen(
        [KRONOS, *arguments, "--model", "hash", "--store", str(tmp_path / "s")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    if command == "import":
        deadline = time.monotonic() + 30
        while not (tmp_path / "s/kronos.db").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)
    else:
        time.sleep(2)  # it waits for standard input
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.decode().strip().endswith("error: stopped")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"text": "x", "id": 5}, "id must be a str"),
        ({"text": "x", "namespace": 5}, "namespace must be a str"),
        ({"text": "x", "namespace": "a//b"}, "namespace"),
        ({"text": "x", "importance": 7}, "importance"),
        ({"text": "x", "importance": "high"}, "importance"),
        ({"text": "x", "parent_id": ["a"]}, "parent_id"),
        ({"text": "x", "expires_at": "tomorrow"}, "tomorrow"),
        ({"text": "x", "expires_at": "2026-01-01"}, "expires_at"),
        ({"text": "x", "expires_at": 5}, "fromisoformat"),
        ({"text": "x", "metadata": {"n": 2**70}}, "64 bits"),
        ({"text": "  "}, "blank"),
        ({"text": "a\0b"}, "NUL"),
        ({"title": "x"}, "content"),
    ],
)
def test_the_error_names_a_refused_line_of_a_file(
    tmp_path: Path, line: dict[str, Any], what: str
) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text(json.dumps({"text": "good"}) + "\n\n" + json.dumps(line) + "\n")
    arguments = ("import", str(file), "--model", "hash", "--store", str(tmp_path / "s"))
    done = kronos(*arguments, check=False)
    assert done.returncode == 2
    assert f"{file}, line 3" in done.stderr.decode()
    assert what in done.stderr.decode()


def test_errors_name_foreign_types_with_their_module(store: MemoryStore) -> None:
    for value, name in ((np.bool_(True), "numpy.bool"), (np.int64(1), "numpy.int64")):
        with pytest.raises(ValueError, match=name):
            store.add("x", metadata={"k": value})


@pytest.mark.parametrize("ids", [5, 1.5, b"x", {"a": 1}, object()])
@pytest.mark.parametrize("verb", ["delete", "touch"])
def test_invalid_ids_are_refused_by_name(store: MemoryStore, verb: str, ids: object) -> None:
    with pytest.raises(ValueError, match="ids must be an id or several"):
        getattr(store, verb)(ids)
