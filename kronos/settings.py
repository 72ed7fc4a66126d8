"""Settings, where a store lies, and the only reader of the environment.

Every option that is no argument of `KronosMemory` is a field of `Settings`; `Settings.from_env`
reads the same fields from variables named `KRONOS_<FIELD>`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from kronos.errors import ConfigurationError
from kronos.files import expanded
from kronos.types import Durability, Tokenizer

Engine: TypeAlias = Literal["auto", "sentence-transformers", "onnx"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
GpuStorage: TypeAlias = Literal["float32", "float16"]

DEFAULT_STORE = "./.kronos"
SENTENCE_TRANSFORMERS_HOME = "SENTENCE_TRANSFORMERS_HOME"
"""Where sentence-transformers keeps its models."""
TRANSFORMERS_CACHE = "TRANSFORMERS_CACHE"
"""Where older versions of transformers kept theirs."""
_PREFIX = "KRONOS_"
_CHOICES: dict[str, tuple[str, ...]] = {
    "durability": ("full", "normal"),
    "engine": ("auto", "sentence-transformers", "onnx"),
    "gpu_storage": ("float32", "float16"),
    "precision": ("float32", "bfloat16"),
    "tokenizer": ("porter", "unicode61", "trigram"),
}
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
# The other half is for the program itself, and for what runs beside it.
_THREADS = max(1, min(4, (_CORES or 1) // 2))
_GRAPH = re.compile(r"HNSW([0-9]{1,3})(,SQ(4|6|8|fp16|bf16))?")
_LISTS = re.compile(r"IVF([0-9]{1,6}),(Flat|SQ(4|6|8|fp16|bf16)|RaBitQ)")
_INDEXES = (
    '"auto", "flat", "HNSW4" to "HNSW128", or "IVF1024,Flat" with as many lists as you wish; '
    '",SQ4", ",SQ6", ",SQ8", ",SQfp16" or ",SQbf16" behind either keeps rows in fewer bits, and '
    '",RaBitQ" those of lists'
)
_IN_MEMORY = ":memory:"
# A drive of Windows has one letter; other names with a colon are folders, but for these.
_URL = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://|:memory:$"
    r"|(sqlite|file|postgres|postgresql|mysql|mariadb|oracle|mssql|duckdb)(\+\w+)?:",
    re.IGNORECASE,
)
_NO_FILE = "{url!r} names no file, and a store must outlive its process: give a folder"
_LEAST = {"keep_spaces": 0, "embed_retry_s": 0, "search_retry_s": 0}
_MOST_OF_ALL = 2**31 - 1
_MOST = {
    "encode_threads": 1024,
    # Of the two SQLite keeps a thousand million bytes in one row.
    "max_content_bytes": 2**28,
    "max_metadata_bytes": 2**28,
    # Python's JSON goes down 1000 levels, less those of who calls it.
    "max_metadata_depth": 500,
}
_MOST_SECONDS = 1_000_000
"""Eleven days: what waits for longer is no timeout, and sockets take no more than twice that."""
_SWITCHES = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options of a store that few programs change."""

    durability: Durability = "full"
    """"full": every acknowledged write survives a power cut. "normal": a power cut may cost the
    last writes, a crash of the process none."""
    busy_timeout_s: float = 5.0
    """How long a writer waits for another one before `StoreBusyError`."""
    batch_size: int = 1000
    """Items that `add_many` commits at once, and texts that a reindex commits at once, at most."""
    encode_batch_size: int = 32
    """Texts that a model without tokens, or pairs that a reranker, reads at once; no part of what
    the vectors are."""
    encode_tokens: int = 512
    """Tokens that a model reads at once on a CPU, padding included, and a 32nd of what it reads at
    once on an accelerator; no part of what the vectors are."""
    engine: Engine = "auto"
    """"auto": ONNX Runtime where it is installed and gives the vectors of sentence-transformers,
    else sentence-transformers. The other two: that one alone; no part of what the vectors are."""
    precision: Precision = "float32"
    """"bfloat16": a model computes with fewer bits, sooner, and its vectors are others (cosine to
    those of float32 about .9999): they are a space of their own."""
    encode_threads: int = _THREADS
    """Threads with which ONNX Runtime computes: half of the cores, 4 at most."""
    embed_retry_s: float = 120.0
    """How long to wait, in all, for an embedder that fails in passing (a quota, a timeout, a lost
    connection) before a text that is stored, or a batch of a reindex, fails with
    `TransientEmbeddingError`; 0: not at all."""
    search_retry_s: float = 10.0
    """The same for a question, whose asker is waiting."""
    lease_s: float = 60.0
    """How long the texts that a reindex worker has in hand stay its own after it was last heard of.
    A worker renews them three times as often."""
    keep_spaces: int = 1
    """Retired spaces that are kept to roll back to; older ones are dropped after a switch."""
    index: str = "auto"
    """"auto": flat and exact below 10,000 vectors, a graph above. "flat": always exact. Or what
    stands in the place of the graph, by FAISS's name, e.g. "HNSW32", "HNSW16,SQ8" or
    "IVF1024,SQfp16"; see `kronos.index.policy`."""
    gpu_storage: GpuStorage = "float32"
    """How vectors are kept on a GPU. "float16": in half the bytes; candidates are then scored from
    the float32 on the host."""
    snapshot_changes: int = 1000
    """An index is saved after so many changes, once they are a tenth of it."""
    snapshot_interval_s: float = 300.0
    """After so many seconds since the last time, those many changes are enough."""
    tokenizer: Tokenizer = "porter"
    """How a new store cuts texts into words: "porter" (English word stems), "unicode61" (words as
    they are), "trigram" (words, and any part of a word from three letters on). For a store that
    exists: `maintenance.rebuild_fulltext`."""
    keep_history: bool = True
    """Keep what memories were when they are changed or deleted, for `history` and `as_of`."""
    track_access: bool = False
    """Note when memories are found by `get` and `search`, for a ranking by last access: a small
    write after each."""
    network_timeout_s: float = 0.8
    """How long to look for a network before a missing model counts as not to be had."""
    max_content_bytes: int = 16 * 2**20
    """UTF-8 bytes of one text."""
    max_metadata_bytes: int = 2**20
    """Bytes of one memory's metadata as JSON."""
    max_metadata_depth: int = 32
    """Nesting of one memory's metadata."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            fits, expected = _judged(option.name, type(option.default), value)
            if not fits:
                raise ConfigurationError(
                    f"{option.name} must be {expected}, not {value!r}", field=option.name
                )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from `KRONOS_<FIELD>` variables; what is not set keeps its default.

        Args:
            environ: the variables; None means the process's own.

        Raises:
            ConfigurationError: a variable holds no valid value.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for option in fields(cls):
            name = _PREFIX + option.name.upper()
            if name in environ:
                values[option.name] = _parse(name, environ[name], type(option.default))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a store's parts lie."""

    database: Path
    """The database file."""
    folder: Path
    """Where the index snapshots and the models are kept."""

    @property
    def index(self) -> Path:
        """The folder of the index snapshots; deleting it loses nothing."""
        return self.folder / "index"

    @property
    def models(self) -> Path:
        """The folder of downloaded models; deleting it costs a download."""
        return self.folder / "models"

    @classmethod
    def of(cls, storage_path: str | os.PathLike[str]) -> Location:
        """Find the parts of a store from what a caller named.

        Args:
            storage_path: a folder, which holds `kronos.db`, `index/` and `models/`, or a SQLAlchemy
                URL. For `sqlite:///notes.db` the other parts lie in `notes.db-kronos/`.

        Raises:
            ConfigurationError: the path is empty, holds NUL or is a file's, or the URL names no
                database file.
        """
        text = os.fspath(storage_path) if isinstance(storage_path, str | os.PathLike) else None
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            raise _no_place(f"must be a folder or a SQLAlchemy URL, not {storage_path!r}")
        if _URL.match(text):
            return cls._of_url(text)
        folder = expanded(text)
        if text.startswith("~") and folder == Path(text):
            raise _no_place(
                f"{text!r} lies in a home folder that this process does not have: name the folder "
                "without ~"
            )
        folder = _absolute(folder)
        if folder.is_file():
            raise _no_place(f"{text!r} is a file: give its folder, or the URL sqlite:///{text}")
        return cls(database=folder / "kronos.db", folder=folder)

    @classmethod
    def _of_url(cls, url: str) -> Location:
        """A URL, or what is nearly one: it must not become a folder of that name."""
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        if url == _IN_MEMORY:
            raise _no_place(_NO_FILE.format(url=url))
        try:
            found = make_url(url)
        except (ArgumentError, ValueError):
            raise _no_place(
                f"{url!r} is neither a folder nor a SQLAlchemy URL: give a folder, or "
                "sqlite:///name.db for a file (sqlite:////name.db for an absolute path)"
            ) from None
        if found.drivername not in ("sqlite", "sqlite+pysqlite"):
            raise _no_place(
                f"the database {found.drivername!r} is not supported yet: give a folder or a "
                "sqlite:/// URL"
            )
        if found.host or found.username or found.port:
            raise _no_place(
                f"{url!r} names a host, and SQLite has none: a URL of a file has three slashes, "
                "sqlite:///name.db (four for an absolute path)"
            )
        if found.query:
            raise _no_place(
                f"{url!r} has the options {', '.join(found.query)}, and Kronos takes none in a "
                "URL: see `Settings` for the options of a store"
            )
        if not found.database or _IN_MEMORY in found.database or found.database[:5] == "file:":
            raise _no_place(_NO_FILE.format(url=url))
        database = _absolute(expanded(found.database))
        return cls(database=database, folder=database.with_name(database.name + "-kronos"))


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except OSError as exc:  # no working directory
        raise _no_place(f"{str(path)!r} cannot be made absolute: {exc}") from exc


def _no_place(why: str) -> ConfigurationError:
    return ConfigurationError(f"storage_path {why}", field="storage_path")


def default_store(environ: Mapping[str, str] | None = None) -> str:
    """The store that commands use when none is named: `KRONOS_STORE`, else `./.kronos`."""
    environ = os.environ if environ is None else environ
    return environ.get(_PREFIX + "STORE") or DEFAULT_STORE


def user_cache(environ: Mapping[str, str] | None = None) -> Path | None:
    """Where this user's programs keep what can be made again: `~/.cache/kronos` as a rule.

    None where the process has no home folder and names no cache.
    """
    environ = os.environ if environ is None else environ
    named = environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = expanded(named)
    return None if named.startswith("~") and cache == Path(named) else cache.absolute() / "kronos"


def model_homes(environ: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Folders of models beside the Hugging Face cache, by the variables that name them."""
    environ = os.environ if environ is None else environ
    named = {name: environ.get(name) for name in (SENTENCE_TRANSFORMERS_HOME, TRANSFORMERS_CACHE)}
    return {name: expanded(path).absolute() for name, path in named.items() if path}


def _is_index(value: object) -> bool:
    if value in ("auto", "flat"):
        return True
    text = value if isinstance(value, str) else ""
    graph, lists = _GRAPH.fullmatch(text), _LISTS.fullmatch(text)
    if graph:
        return 4 <= int(graph[1]) <= 128
    return lists is not None and int(lists[1]) >= 1


def _judged(name: str, kind: type, value: object) -> tuple[bool, str]:
    """Whether a value fits an option of a kind, and what would."""
    if name in _CHOICES:
        # A list is no choice, and cannot be looked up as one.
        return isinstance(value, str) and value in _CHOICES[name], _said(_CHOICES[name])
    if name == "index":
        return _is_index(value), _INDEXES
    if kind is bool:
        return isinstance(value, bool), "true or false"
    if kind is int:
        least, most = _LEAST.get(name, 1), _MOST.get(name, _MOST_OF_ALL)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        fits = is_whole and least <= value <= most  # type: ignore[operator]
        return fits, f"a whole number from {least} to {most}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in _LEAST:
        fits = is_number and 0 <= value <= _MOST_SECONDS  # type: ignore[operator]
        return fits, f"a number of seconds from 0 to {_MOST_SECONDS}"
    fits = is_number and 0 < value <= _MOST_SECONDS  # type: ignore[operator]
    return fits, f"a number of seconds above 0, and at most {_MOST_SECONDS}"


def _parse(name: str, text: str, kind: type) -> Any:
    expected = {int: "a whole number", bool: "true or false"}.get(kind, "a number")
    try:
        return _SWITCHES[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as exc:
        raise ConfigurationError(f"{name} must be {expected}, not {text!r}", field=name) from exc


def _said(choices: tuple[str, ...]) -> str:
    return " or ".join(f'"{choice}"' for choice in choices)
