"""Settings of a store, where its files are, and every environment variable that Kronos reads.

An option of a store is either an argument of `KronosMemory` or a field of `Settings`.
`Settings.from_env` reads the fields from variables named `KRONOS_<FIELD>`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from kronos.errors import ConfigurationError
from kronos.files import expanded

Durability: TypeAlias = Literal["full", "normal"]
Engine: TypeAlias = Literal["auto", "sentence-transformers", "onnx"]
GpuStorage: TypeAlias = Literal["float32", "float16"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
Tokenizer: TypeAlias = Literal["porter", "unicode61", "trigram"]

DEFAULT_STORE = "./.kronos"
DATABASE_NAME = "kronos.db"
"""The database of a store that is a folder."""
SENTENCE_TRANSFORMERS_HOME = "SENTENCE_TRANSFORMERS_HOME"
"""The variable that names the folder of sentence-transformers' models."""
TRANSFORMERS_CACHE = "TRANSFORMERS_CACHE"
"""The variable that older versions of transformers read for the same purpose."""
_PREFIX = "KRONOS_"
_CHOICES: dict[str, tuple[str, ...]] = {
    "durability": get_args(Durability),
    "engine": get_args(Engine),
    "gpu_storage": get_args(GpuStorage),
    "precision": get_args(Precision),
    "tokenizer": get_args(Tokenizer),
}
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
# The other half of the cores is for the program itself and for other processes.
_THREADS = max(1, min(4, (_CORES or 1) // 2))
_GRAPH = re.compile(r"HNSW([0-9]{1,3})(,SQ(4|6|8|fp16|bf16))?")
_LISTS = re.compile(r"IVF([0-9]{1,6}),(Flat|SQ(4|6|8|fp16|bf16)|RaBitQ)")
_INDEXES = (
    '"auto", "flat", "HNSW4" to "HNSW128", or "IVF1024,Flat" with any number of lists. To store '
    'vectors in fewer bits, append ",SQ4", ",SQ6", ",SQ8", ",SQfp16" or ",SQbf16" to HNSW, or '
    'write one of them, or "RaBitQ", instead of "Flat"'
)
_IN_MEMORY = ":memory:"
# Any other text with a colon is a folder; a Windows drive, for example, is one letter and a colon.
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
    # The two share a row, and databases keep at most a thousand million bytes in one.
    "max_content_bytes": 2**28,
    "max_metadata_bytes": 2**28,
    # Python's JSON parser recurses: 1000 levels at most, minus the caller's own stack.
    "max_metadata_depth": 500,
}
_MOST_SECONDS = 1_000_000
"""Eleven days: no timeout needs more, and sockets accept at most about twice that."""
_SWITCHES = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options of a store that few programs change.

    Raises:
        ConfigurationError: a value is not valid; the error's `field` names it.
    """

    durability: Durability = "full"
    """"full": every acknowledged write survives a power cut. "normal": a power cut may lose the
    last writes; a crash of the process loses none."""
    busy_timeout_s: float = 5.0
    """How long a writer waits for another one before it raises `StoreBusyError`."""
    batch_size: int = 1000
    """Items per commit of `add_many`, and texts per commit of a reindex, at most."""
    encode_batch_size: int = 32
    """Texts per call of a model without tokens, and pairs per call of a reranker. It does not
    change the vectors."""
    encode_tokens: int = 512
    """Tokens per call of a model on a CPU, with padding; an accelerator gets 32 times as many. It
    does not change the vectors."""
    engine: Engine = "auto"
    """"auto": ONNX Runtime where it is installed and reproduces the vectors of
    sentence-transformers; otherwise sentence-transformers. The other two values: that engine only.
    It does not change the vectors."""
    precision: Precision = "float32"
    """"bfloat16": the model computes with fewer bits, which is faster. The vectors differ slightly,
    so they form a space of their own."""
    encode_threads: int = _THREADS
    """Threads of ONNX Runtime. Default: half of the cores, at most 4."""
    embed_retry_s: float = 120.0
    """How long a write or a reindex retries after a transient failure of the embedder (a quota, a
    timeout, a lost connection), in total. Then it raises `TransientEmbeddingError`. 0: no retry."""
    search_retry_s: float = 10.0
    """The same for a search, whose caller is waiting."""
    lease_s: float = 60.0
    """How long a reindex worker keeps its claim on texts after its last sign of life. A worker
    renews its claims three times in that time."""
    keep_spaces: int = 1
    """Retired spaces to keep for a rollback; a switch drops older ones."""
    index: str = "auto"
    """"auto": flat and exact below 10,000 vectors, a graph above. "flat": always exact. Otherwise
    the FAISS name of an index to use instead of the default graph, e.g. "HNSW32", "HNSW16,SQ8" or
    "IVF1024,SQfp16"; see `kronos.index.policy`."""
    gpu_storage: GpuStorage = "float32"
    """How a GPU stores vectors. "float16" takes half the memory; candidates are then scored with
    the float32 vectors of the host."""
    snapshot_changes: int = 1000
    """Save the index after this many changes, once they are a tenth of it."""
    snapshot_interval_s: float = 300.0
    """After this time, `snapshot_changes` changes are enough, however large the index is."""
    tokenizer: Tokenizer = "porter"
    """How a new store splits texts into words: "porter" (English word stems), "unicode61" (whole
    words), "trigram" (whole words, and parts of at least three letters). For an existing store use
    `store.maintenance.rebuild_fulltext`."""
    keep_history: bool = True
    """Keep earlier versions of memories, for `history` and `as_of`."""
    track_access: bool = False
    """Record when `get` and `search` return a memory, for rankings by last access. Each such read
    then makes a small write."""
    network_timeout_s: float = 0.8
    """How long to look for a network before a missing model counts as unavailable."""
    max_content_bytes: int = 16 * 2**20
    """Limit for one text, in UTF-8 bytes."""
    max_metadata_bytes: int = 2**20
    """Limit for the metadata of one memory, in bytes of JSON."""
    max_metadata_depth: int = 32
    """Limit for the nesting of one memory's metadata."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            fits, expected = _check(option.name, type(option.default), value)
            if not fits:
                raise ConfigurationError(
                    f"{option.name} must be {expected}, not {value!r}", field=option.name
                )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from `KRONOS_<FIELD>` variables; unset fields keep their defaults.

        Args:
            environ: the variables; None: those of the process.

        Raises:
            ConfigurationError: the value of a variable is not valid.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for option in fields(cls):
            name = _PREFIX + option.name.upper()
            if name in environ:
                values[option.name] = _parse(name, environ[name], type(option.default))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store lies: a database, and a folder of files that can be made again."""

    database: Path
    """The database file."""
    folder: Path
    """The folder of index snapshots and models."""

    @property
    def index(self) -> Path:
        """The folder of the index snapshots. Deleting it loses no data."""
        return self.folder / "index"

    @property
    def models(self) -> Path:
        """The folder of downloaded models. Deleting it costs a download."""
        return self.folder / "models"

    @classmethod
    def of(cls, storage_path: str | os.PathLike[str]) -> Place:
        """The place that a caller named.

        Args:
            storage_path: a folder, which holds `kronos.db`, `index/` and `models/`, or a SQLAlchemy
                URL. For `sqlite:///notes.db` the folder is `notes.db-kronos/`.

        Raises:
            ConfigurationError: the path is empty, contains NUL or is a file, or the URL names no
                database file.
        """
        text = os.fspath(storage_path) if isinstance(storage_path, str | os.PathLike) else None
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            raise _refused(f"must be a folder or a SQLAlchemy URL, not {storage_path!r}")
        if _URL.match(text):
            return cls._of_url(text)
        folder = expanded(text)
        if text.startswith("~") and folder == Path(text):
            raise _refused(
                f"{text!r} is in a home folder, and this process has none: write the path without ~"
            )
        folder = _absolute(folder)
        if folder.is_file():
            raise _refused(f"{text!r} is a file: give its folder, or the URL sqlite:///{text}")
        return cls(database=folder / DATABASE_NAME, folder=folder)

    @classmethod
    def _of_url(cls, url: str) -> Place:
        """The place of a URL. A text that is nearly a URL must not become a folder's name."""
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        if url == _IN_MEMORY:
            raise _refused(_NO_FILE.format(url=url))
        try:
            found = make_url(url)
        except (ArgumentError, ValueError):
            raise _refused(
                f"{url!r} is neither a folder nor a SQLAlchemy URL: give a folder, or "
                "sqlite:///name.db for a file (sqlite:////name.db for an absolute path)"
            ) from None
        if found.drivername not in ("sqlite", "sqlite+pysqlite"):
            raise _refused(
                f"the database {found.drivername!r} is not supported yet: give a folder or a "
                "sqlite:/// URL"
            )
        if found.host or found.username or found.port:
            raise _refused(
                f"{url!r} names a host, and SQLite has none: a file URL has three slashes, "
                "sqlite:///name.db (four for an absolute path)"
            )
        if found.query:
            raise _refused(
                f"{url!r} has the options {', '.join(found.query)}, and Kronos accepts none in a "
                "URL: use `Settings` for the options of a store"
            )
        if not found.database or _IN_MEMORY in found.database or found.database[:5] == "file:":
            raise _refused(_NO_FILE.format(url=url))
        database = _absolute(expanded(found.database))
        return cls(database=database, folder=database.with_name(database.name + "-kronos"))


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except OSError as exc:  # no working directory
        raise _refused(f"{str(path)!r} cannot be made absolute: {exc}") from exc


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(f"storage_path {why}", field="storage_path")


def default_store(environ: Mapping[str, str] | None = None) -> str:
    """The store that commands use by default: `KRONOS_STORE`, or else `./.kronos`."""
    environ = os.environ if environ is None else environ
    return environ.get(_PREFIX + "STORE") or DEFAULT_STORE


def user_cache(environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder for files that can be made again, usually `~/.cache/kronos`.

    None if the process has no home folder and `XDG_CACHE_HOME` is not set.
    """
    environ = os.environ if environ is None else environ
    named = environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = expanded(named)
    return None if named.startswith("~") and cache == Path(named) else cache.absolute() / "kronos"


def model_homes(environ: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Folders of models besides the Hugging Face cache, by the variables that name them."""
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


def _check(name: str, kind: type, value: object) -> tuple[bool, str]:
    """Whether a value is valid for an option of a kind, and which values are."""
    if name in _CHOICES:
        # The type first: an unhashable value cannot be looked up.
        return isinstance(value, str) and value in _CHOICES[name], _listed(_CHOICES[name])
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


def _listed(choices: tuple[str, ...]) -> str:
    return " or ".join(f'"{choice}"' for choice in choices)
