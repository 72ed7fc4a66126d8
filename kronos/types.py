"""The values that Kronos hands out and takes in: frozen, slotted, without behaviour of their own.

Times are timezone-aware UTC datetimes. Vectors are float32 NumPy arrays of unit length. The
protocols `Embedder`, or `AsyncEmbedder`, and `VectorIndex` are the only plug points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]
    """(n, dim) or (dim,) float32."""
    Keys: TypeAlias = NDArray[np.int64]
    """(n,) int64: the integer keys under which memories stand in SQL and in every index."""

JsonValue: TypeAlias = Any
"""None, bool, int (64 bits), finite float, str, list or dict of these with str keys."""
Metadata: TypeAlias = Mapping[str, JsonValue]
OnConflict: TypeAlias = Literal["error", "replace", "ignore"]
OnModelChange: TypeAlias = Literal["rebuild", "background", "error"]
Durability: TypeAlias = Literal["full", "normal"]
SearchMode: TypeAlias = Literal["hybrid", "dense", "lexical"]
Tokenizer: TypeAlias = Literal["porter", "unicode61", "trigram"]
SpaceState: TypeAlias = Literal["building", "active", "retired"]
JobState: TypeAlias = Literal["open", "ready", "failed", "done", "cancelled"]


@dataclass(frozen=True, slots=True)
class Memory:
    """One stored record."""

    id: str
    """Unique in the whole store."""
    namespace: str
    """A `/`-separated path, such as "team/alice"."""
    content: str
    metadata: dict[str, JsonValue]
    importance: float
    """0..1."""
    created_at: datetime
    updated_at: datetime
    parent_id: str | None = None
    """The id of the memory this one came from; not checked to exist."""
    expires_at: datetime | None = None
    """From this moment on the memory is never returned."""


@dataclass(frozen=True, slots=True)
class Version:
    """What a memory was for some time, or is."""

    memory: Memory
    recorded_at: datetime
    """When the store learnt it."""
    replaced_at: datetime | None
    """When it was changed or deleted; None while it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMemory:
    """One record to be stored; everything but the content may be left out."""

    content: str = field(kw_only=False)
    id: str | None = None
    """Left out: a new UUID."""
    namespace: str | None = None
    """Left out: the store's own."""
    metadata: Metadata | None = None
    importance: float = 0.5
    parent_id: str | None = None
    expires_at: datetime | None = None
    embedding: Vectors | Sequence[float] | None = None
    """(dim,) float, scaled to unit length on entry. It is taken as made by the store's embedder."""
    created_at: datetime | None = None
    """When it came into being, for what is brought from elsewhere; left out: now."""
    updated_at: datetime | None = None
    """When it was last changed; left out: `created_at`, else now."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result."""

    memory: Memory
    score: float
    """Higher is better. By default, for mode="dense": cosine similarity, -1..1; for "lexical":
    BM25, from 0 on; for "hybrid": the cosine and what the words add."""
    embedder: str
    """The name of the embedder that answered; "words" where none did."""
    rank: int
    """0 for the best hit."""
    shares: Mapping[str, float] | None = None
    """With explain=True: what each signal adds to the score; None otherwise."""
    via: str | None = None
    """For a memory that was brought in by expand: the id of the hit that leads to it."""

    @property
    def id(self) -> str:
        """The memory's id."""
        return self.memory.id

    @property
    def content(self) -> str:
        """The memory's content."""
        return self.memory.content


class Hits(list[Hit]):
    """The hits of one search, the best first."""

    __slots__ = ("explanation",)

    def __init__(self, hits: Iterable[Hit] = (), explanation: Explanation | None = None) -> None:
        super().__init__(hits)
        self.explanation = explanation
        """With explain=True: how the search was answered; None otherwise."""


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step of a search."""

    name: str
    detail: str
    """What was done, in words."""
    count: int
    """How many memories came of it."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a search was answered."""

    mode: SearchMode
    """Which signals were asked; a question without words, or without a vector, has but one."""
    embedder: str
    steps: tuple[PlanStep, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """All vectors made by one fingerprint."""

    id: int
    fingerprint: str
    model: str
    """The embedder's resolved name, e.g. "sentence-transformers/all-MiniLM-L6-v2"."""
    alias: str | None
    """What the caller asked for, e.g. "mini"."""
    dim: int
    state: SpaceState
    created_at: datetime
    pruned_seq: int = 0
    """Tombstones up to this seq are gone: an index that is older replays from zero."""
    revision: str | None = None
    """The commit of the model's repository; None where there is none, e.g. for a folder."""
    activated_seq: int | None = None
    """The seq at which it last became the active one; None before the first time."""


@dataclass(frozen=True, slots=True)
class SpaceStats:
    """A space and how far it has come."""

    space: Space
    vectors: int
    """Memories whose vector in this space was made from their current text."""
    pending: int
    """Memories whose vector is missing or was made from an older text."""
    failed: int = 0
    """Pending memories whose text the embedder could not embed."""


@dataclass(frozen=True, slots=True)
class Link:
    """What one memory says of another one."""

    source_id: str
    target_id: str
    relation: str
    """1 to 200 characters, such as "caused"."""
    weight: float
    """Finite; a search that follows links counts it as if it were within 0..1."""
    created_at: datetime
    """When the two were first linked so; a new weight does not change it."""


@dataclass(frozen=True, slots=True)
class Step:
    """A memory that another one came from or led to."""

    memory: Memory
    depth: int
    """Steps from where the trace began, at least 1: the fewest that lead there."""
    relation: str
    """Of the last step on a shortest way: "parent", in either direction, or a link's relation."""
    from_id: str
    """The id of the memory before it on that way."""


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Memories that say nearly the same."""

    memories: tuple[Memory, ...]
    """At least two, the oldest first."""
    score: float
    """Cosine, 0..1: the highest score at which the group still hangs together. Each memory gets to
    each other one over pairs of at least this score; two of them may be less alike."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A text that an embedder could not embed."""

    space_id: int
    memory_ids: tuple[str, ...]
    """The memories that hold it."""
    error: str
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class Job:
    """A reindex job, as its rows are at one moment."""

    id: int
    space: Space
    state: JobState
    """"open": to be worked on; "ready": complete, and not activated because it was asked not to;
    "failed": worked through, and not activated because of failed texts; "done"; "cancelled"."""
    activate: bool
    """Make the space the active one at the end."""
    allow_failed: bool
    """Do so even if there are texts that cannot be embedded."""
    keep_old: bool
    """Drop no retired space at the end."""
    total: int
    """Memories that were pending when the job began, and those that came since."""
    done: int
    """Memories that have a vector through this job."""
    embedded: int
    """Texts that were embedded for that; equal texts count once."""
    pending: int
    """Memories that have no vector in the space now."""
    failed: int
    """Those of them whose text cannot be embedded."""
    workers: int
    """Workers that hold a lease now."""
    attempts: int
    """How often the job was started or resumed."""
    rate: float
    """Memories a second in the last attempt."""
    created_at: datetime
    started_at: datetime
    """When the last attempt began."""
    heartbeat_at: datetime
    """When a worker last was heard of."""
    finished_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class ReindexPlan:
    """What a reindex would do; nothing was written."""

    model: str
    dim: int
    memories: int
    """Memories that are pending in the model's space."""
    texts: int
    """Distinct texts among them: so many are embedded."""
    tokens: int | None
    """Tokens that the model would read, from a sample; None for an embedder without tokens."""
    seconds: float
    """From a sample that was embedded, with one worker."""
    disk_bytes: int
    """Bytes that the new vectors take."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a store holds and who answers."""

    store_id: str
    path: str
    memories: int
    seq: int
    """The last committed change."""
    embedder: str | None
    """The name of the embedder that answers searches; None when vectors are handed in."""
    degraded: str | None
    """Why a fallback answers in the place of the model that was asked for; None when none does."""
    dim: int
    max_tokens: int | None
    """Tokens of a text that the embedder reads; it drops the rest. None: no limit."""
    spaces: tuple[SpaceStats, ...]
    jobs: tuple[Job, ...]
    """Reindex jobs that are not finished."""
    index_size: int
    """Vectors in this process's index; 0 before its first search."""
    index_kind: str
    """E.g. "faiss-flat", which compares all, or "faiss-hnsw", a graph."""
    database_bytes: int
    schema: str
    """The database's Alembic revision."""
    versions: int = 0
    """Earlier versions of memories that are kept."""
    tokenizer: Tokenizer = "porter"
    """How texts are cut into words."""
    indexed_fields: tuple[str, ...] = ()
    """Metadata keys that have an index of their own."""
    index_effort: int | None = None
    """Candidates that a search follows (FAISS's efSearch); None: every search is exact."""
    index_recall: float | None = 1.0
    """The recall@10 that `tune` measured last, 0..1; 1 where every search is exact; None: it was
    never measured."""
    engine: str | None = None
    """What computes the vectors: "onnx", "hash", or "sentence-transformers: " and why nothing
    faster does; None where vectors are handed in, or a program's own embedder makes them."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that `check` found wrong."""

    kind: str
    detail: str
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found."""

    problems: tuple[Problem, ...]
    advice: tuple[Problem, ...] = ()
    """What is good to know, though nothing of the store is wrong by it."""
    index_kind: str | None = None
    """As in `Stats`; None: the database is so damaged that no index could follow it."""
    index_effort: int | None = None
    """As in `Stats`."""
    index_recall: float | None = None
    """As in `Stats`."""

    @property
    def ok(self) -> bool:
        """True when nothing is wrong, or all of it was repaired."""
        return all(problem.repaired for problem in self.problems)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long operation has come."""

    done: int
    total: int | None
    """None when the end is not known, e.g. for a stream of items."""


class ProgressCallback(Protocol):
    """Called after every committed batch, in the thread that works."""

    def __call__(self, progress: Progress, /) -> object:
        """Take the progress so far."""


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What a run of a reindex job did."""

    space: Space
    state: JobState
    """How the job stands; "open" when the run was stopped before the end."""
    embedded: int
    """Texts embedded by this run; equal texts count once, other runs and workers do not."""
    pending: int
    """Memories that still have no vector in the space."""
    failed: int
    """Those of them whose text cannot be embedded."""
    activated: bool
    """True when this run, or another worker meanwhile, made the space the active one."""
    seconds: float


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What `compact` gave back."""

    dropped: tuple[Space, ...]
    """Spaces whose vectors are gone."""
    expired: int
    """Memories that had expired, and are gone."""
    bytes_before: int
    """Of the database on disk, its write-ahead log included."""
    bytes_after: int


@dataclass(frozen=True, slots=True)
class TuneReport:
    """How well searches find, and how hard they look from now on."""

    vectors: int
    """Vectors in the index."""
    index_kind: str
    """As in `Stats`."""
    target: float
    """The recall@10 that was wanted."""
    recall: float
    """The recall@10 that was measured, 0..1; 1 where every search is exact."""
    effort: int | None
    """Candidates that a search follows from now on (FAISS's efSearch): the fewest that reach the
    target, or the most that were tried; None: every search is exact."""
    saved: bool
    """Whether a snapshot keeps the effort for whoever opens the store next, or nothing need be
    kept, as every search is exact."""

    @property
    def reached(self) -> bool:
        """Whether searches find as much as was wanted."""
        return self.recall >= self.target


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What `recover` found in a damaged database."""

    aside: Path
    """Where the damaged database is kept."""
    memories: int
    """Memories that could be read."""
    damaged: tuple[str, ...]
    """Ids, as far as they could be read, of memories whose text or metadata was damaged."""
    vectors: int
    """Vectors that could be read; the others are made anew when the store is opened."""


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors.

    Rows must be float, finite and of non-zero length; Kronos scales them to unit length. Two
    embedders whose vectors cannot be compared must have two fingerprints.
    """

    @property
    def model_id(self) -> str:
        """The embedder's name, for people."""

    @property
    def fingerprint(self) -> str:
        """What tells this embedder from one whose vectors cannot be compared."""

    @property
    def dim(self) -> int:
        """The width of a vector."""

    def embed_documents(self, texts: Sequence[str], /) -> Vectors:
        """Embed texts to be stored: (n, dim) float32."""

    def embed_queries(self, texts: Sequence[str], /) -> Vectors:
        """Embed questions: (n, dim) float32."""


@runtime_checkable
class AsyncEmbedder(Protocol):
    """Turns texts into vectors, awaited: an `Embedder` for `KronosMemory`.

    Its coroutines run on the event loop of the task that waits for them, in a copy of that task's
    context, and are cancelled with it. A job in the background has no such task: there they run on
    an event loop that the `KronosMemory` keeps for this.
    """

    @property
    def model_id(self) -> str:
        """The embedder's name, for people."""

    @property
    def fingerprint(self) -> str:
        """What tells this embedder from one whose vectors cannot be compared."""

    @property
    def dim(self) -> int:
        """The width of a vector."""

    async def embed_documents(self, texts: Sequence[str], /) -> Vectors:
        """Embed texts to be stored: (n, dim) float32."""

    async def embed_queries(self, texts: Sequence[str], /) -> Vectors:
        """Embed questions: (n, dim) float32."""


class VectorIndex(Protocol):
    """A search structure over int64 keys and unit vectors. Not thread-safe; its owner locks.

    The one contract for every kind is the conformance suite in `tests/index/`.
    """

    dim: int

    @property
    def kind(self) -> str:
        """A short name for people and for snapshot headers, e.g. "faiss-flat"."""

    def __len__(self) -> int:
        """The number of keys."""

    def upsert(self, keys: Keys, vectors: Vectors) -> None:
        """Set the vectors of keys.

        Args:
            keys: (n,) int64, distinct.
            vectors: (n, dim) float32.

        Raises:
            DimensionMismatchError: the width is not `dim`.
            VectorError: a value is NaN or inf, shapes do not agree, or a key occurs twice.
        """

    def remove(self, keys: Keys) -> int:
        """Forget keys; unknown ones are passed over. Returns how many were held."""

    def search(
        self, queries: Vectors, k: int, *, allowed: Keys | None = None
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest keys of each query by inner product.

        Args:
            queries: (n, dim) float32.
            k: how many, at least 1.
            allowed: (m,) int64; only these keys may be found. None: all.

        Returns:
            scores (n, k') float32, best first, and keys (n, k') int64, where
            k' = min(k, keys that may be found).
        """

    def keys(self) -> Keys:
        """All keys, in ascending order: (n,) int64."""

    def held(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of some keys the index holds: (n,) bool."""

    def vectors_of(self, keys: Keys) -> Vectors:
        """The vectors of keys, all of which must be held: (n, dim) float32."""

    def to_buffers(self) -> list[memoryview]:
        """The index as bytes, in pieces; joined, the `from_bytes` of its own class reads them.

        They stay as they are, whatever becomes of the index.
        """
