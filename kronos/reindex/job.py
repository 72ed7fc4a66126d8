"""Bringing a space up to date, and switching to it: the one way by which vectors are made anew.

A model change, an interrupted run, a fallback and texts that waited for a model are the same thing:
some space has pending memories. A job embeds their texts outside any transaction, stores each batch
by compare-and-set on the texts' hashes and commits it together with its lease, so a killed worker
costs its batch and no more, and an edit during a job is never overwritten. Any number of workers
share a job, in this process and in others (`kronos.repository.jobs` says how). The active space
changes in the transaction that sees nothing pending.

An embedder that fails in passing is waited for; no text is blamed for that. No write transaction is
held while an embedder works, but for a few last texts, and then for `_LOCKED_S` at most.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kronos.embedding.checked import Embedded, embed_each
from kronos.embedding.patience import Patience
from kronos.errors import KronosError, StorageError, StoreBusyError
from kronos.reindex.cleanup import drop_spaces
from kronos.repository.jobs import CANCELLED, Advance, Position
from kronos.repository.memories import Repository
from kronos.repository.owners import new_owner
from kronos.repository.spaces import PendingText, Spaces
from kronos.types import JobState, Progress, ReindexReport

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.database import Database
    from kronos.settings import Settings
    from kronos.types import Embedder, ProgressCallback, Space

T = TypeVar("T")

# The last texts are embedded inside the write transaction, so that steady writers cannot keep a job
# from its end: so many at most, and only if that takes, by the pace so far, no longer than this and
# than this share of the busy timeout. Whatever the embedder does, the transaction ends by then.
_LAST_TEXTS = 16
_LOCKED_S = 0.5
_LOCKED_SHARE = 0.25
# A part takes about so long, whatever the embedder: who is asked to stop stops soon.
_SECONDS_A_PART = 5.0
_FIRST_PART = 64
# What a model reads at once by default: a last batch that is half full costs as much as a full one.
_READ_AT_ONCE = 32
# So many parts are claimed at once, and sorted by length; fewer towards the end, when this share of
# what remains is less, so that all workers end together.
_PARTS_A_CLAIM = 8
_SHARE_A_CLAIM = 4
_PIECE = re.compile(r"[^\W\d_]{1,6}|\d{1,3}|[^\w\s]|_")
_LETTERS_LOOKED_AT = 2**16
"""No model reads beyond; one look at 15 million letters would keep Python's lock for a second."""
_LONGEST_PAUSE_S = 0.5
# So often whoever waits for an embedder looks whether to stop.
_LOOKS_UP_S = 0.05
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Work:
    """How this process works on a job."""

    workers: int = 1
    """Threads; they share the embedder."""
    batch_size: int = 2000
    """Texts that a worker has embedded and not yet stored, at most; a kill costs no more."""
    rate: float | None = None
    """Texts a second, at most, of all these workers together."""
    max_seconds: float | None = None
    """Take up no more texts after so long."""
    lease_s: float = 60.0
    """How long texts in hand stay a worker's own after it was last heard of."""
    keep_spaces: int = 1
    """Retired spaces to keep after a switch."""
    locked_s: float = _LOCKED_S
    """How long other writers may be kept waiting while the last texts are embedded."""

    @classmethod
    def of(cls, settings: Settings, **options: Any) -> Work:
        """The settings' way to work; options that are None do not count."""
        given = {name: value for name, value in options.items() if value is not None}
        defaults = {
            "batch_size": 2 * settings.batch_size,  # one is embedded while the other is stored
            "lease_s": settings.lease_s,
            "keep_spaces": settings.keep_spaces,
            "locked_s": min(_LOCKED_S, _LOCKED_SHARE * settings.busy_timeout_s),
        }
        return cls(**{**defaults, **given})


@dataclass(frozen=True, slots=True)
class _Claim:
    """Texts that are one worker's, in the order of their hashes."""

    texts: list[PendingText]

    @property
    def last_hash(self) -> bytes:
        """What its lease is known by."""
        return self.texts[-1].content_hash

    def parts(self, size: Callable[[], int], length: Callable[[str], int]) -> Iterator[_Part]:
        """Cut the texts into what is embedded and stored at once, asking each time how many.

        Long texts first and texts of one length together: a model pads those that it reads at once
        to the longest of them.
        """
        rest = sorted(self.texts, key=lambda text: length(text.content), reverse=True)
        while rest:
            most = size()
            part, rest = rest[:most], rest[most:]
            yield _Part(part, None if rest else self.last_hash)


@dataclass(frozen=True, slots=True)
class _Part:
    """Texts that are embedded and stored at once."""

    texts: list[PendingText]
    lease: bytes | None
    """The lease that ends with this part, if it is the last of its claim."""


@dataclass(frozen=True, slots=True)
class _Unclaimed:
    """Texts that nobody had claimed when they were read, and how far the job was then."""

    position: Position
    claim: _Claim


@dataclass(frozen=True, slots=True)
class _Made:
    """A part, and what became of its texts."""

    part: _Part
    embedded: Embedded


class _Stopped(Exception):
    """Somebody wants the job to stop, while an embedder is waited for."""


class _TooSlow(Exception):
    """The last texts take longer than other writers may be kept waiting, or fail."""


class ReindexJob:
    """One process's share in a job.

    Args:
        database: where the job's rows are.
        job_id: the job.
        space: the space that it brings up to date.
        embedder: gives the space's embedder; called when there is something to embed.
        work: how to work.
        clock: the time, UTC.
        patience: with an embedder that fails in passing.
        stop: set by somebody who wants the job to stop soon; it can be resumed.
    """

    def __init__(
        self,
        database: Database,
        job_id: int,
        space: Space,
        embedder: Callable[[], Embedder],
        work: Work,
        *,
        clock: Callable[[], datetime],
        patience: Patience,
        stop: threading.Event | None = None,
    ) -> None:
        self.database = database
        self.id = job_id
        self.space = space
        self.loaded: list[Embedder] = []
        """The embedder, once it was asked for."""
        self.work = work
        self.embedded = 0
        """Texts embedded so far by this process."""
        self.pause = _Limiter(work.rate)
        self._source = embedder
        self._loading = threading.Lock()
        self._clock = clock
        self._patience = patience
        self._has_told = False
        self._stop = stop or threading.Event()
        self._halt = threading.Event()
        self._started = time.monotonic()
        self._progress: ProgressCallback | None = None
        self._reporting = threading.Lock()

    def run(self, progress: ProgressCallback | None = None) -> ReindexReport:
        """Work on the job until it is over, or somebody wants this process to stop.

        Args:
            progress: called after every committed batch, in the thread that stored it.

        Raises:
            TransientEmbeddingError: the embedder still failed in passing when the patience was
                over; what was stored is kept, and the job can be resumed.
            EmbeddingError: the embedder fails on any text; likewise.
            StorageError: the database failed; likewise.
        """
        self._progress = progress
        try:
            self._work()
        except KronosError as exc:
            self._tell(str(exc))
            raise
        return self._report()

    def _work(self) -> None:
        with ThreadPoolExecutor(self.work.workers, thread_name_prefix="kronos-reindex") as threads:
            # Each in the caller's context: an embedder, or `progress`, may look at it.
            others = [
                threads.submit(copy_context().run, self._one_worker)
                for _ in range(self.work.workers - 1)
            ]
            try:
                self._one_worker()
            finally:
                if self.stopping:
                    self._halt.set()
            for other in others:
                other.result()

    def _one_worker(self) -> None:
        try:
            _Worker(self).run()
        except BaseException:
            self._halt.set()  # the others need not go on to find the same
            raise

    def _tell(self, what: str) -> None:
        """Let the job's row say what it waits for, or what stopped it."""
        with suppress(KronosError), self.writing() as repository:
            if self.position(repository).state == "open":
                self._has_told = True  # inside: else `store`, on another thread, clears it too soon
                repository.jobs.note_error(self.id, what)

    def position(self, repository: Repository) -> Position:
        """How far the job has come; a job whose space is gone is cancelled.

        When a backup of another store was restored, its own job may have the same id by now.
        """
        if not repository.spaces.has(self.space):
            return CANCELLED
        return repository.jobs.position(self.id)

    def _report(self) -> ReindexReport:
        with self.reading() as repository:
            spaces = repository.spaces
            now = spaces.now(self.space)
            return ReindexReport(
                space=now or self.space,
                state=self.position(repository).state,
                embedded=self.embedded,
                pending=0 if now is None else spaces.pending_count(now.id),
                failed=0 if now is None else spaces.failed_count(now.id),
                activated=now is not None and now.state == "active" != self.space.state,
                seconds=time.monotonic() - self._started,
            )

    def embedder(self) -> Embedder:
        """The space's embedder, loaded once for all workers."""
        with self._loading:
            if not self.loaded:
                self.loaded.append(self._source())
            return self.loaded[0]

    @property
    def stopping(self) -> bool:
        """Whether to take up no more texts."""
        limit = self.work.max_seconds
        late = limit is not None and time.monotonic() - self._started >= limit
        return late or self._stop.is_set() or self._halt.is_set()

    def wait(self, seconds: float) -> None:
        """Do nothing for a while, or until somebody wants to stop."""
        self._stop.wait(min(seconds, _LONGEST_PAUSE_S))

    def patience(self) -> tuple[Patience, _Waits]:
        """How a worker waits for an embedder; the job's row says so meanwhile."""
        waits = _Waits(self, self._patience.sleep)
        return self._patience.waiting_by(waits, self._tell), waits

    def reading(self) -> AbstractContextManager[Repository]:
        """A transaction that reads the rows."""
        return _repository(self.database.read(), self._clock)

    def writing(self) -> AbstractContextManager[Repository]:
        """A transaction that changes them."""
        return _repository(self.database.write(), self._clock)

    def store(
        self, repository: Repository, texts: Sequence[PendingText], embedded: Embedded
    ) -> Advance:
        """Store what became of texts, inside a transaction."""
        if self._has_told:
            self._has_told = False
            repository.jobs.note_error(self.id, None)
        stored = _store(repository.spaces, self.space, texts, embedded)
        return repository.jobs.advance(self.id, done=stored, embedded=len(embedded.positions))

    def report(self, embedded: int, advance: Advance) -> None:
        """Say how far the job has come, after a commit."""
        with self._reporting:
            self.embedded += embedded
            if self._progress is not None:
                self._progress(Progress(advance.done, advance.total))

    def finish(self, pace: _Pace) -> JobState:
        """Embed the few last texts, switch, and end the job, in one transaction.

        Args:
            pace: how fast the embedder is, as far as it is known.

        Returns:
            The job's state: still "open" when others hold texts, or some are pending that take
            longer than other writers may be kept waiting.
        """
        with self.reading() as repository:
            state = self.position(repository).state
            if state != "open" or repository.jobs.owners(self.id):
                return state
            some = not _is_complete(repository.spaces, self.space)
        if some:
            self.embedder()  # loading may take long
        # Left after the transaction: what is too slow comes to its end without it.
        with ThreadPoolExecutor(1, thread_name_prefix="kronos-reindex-last") as aside:
            try:
                return self._finish(pace, aside)
            except _TooSlow:  # the next sweep embeds them, and holds up nobody
                pass
        with self.writing() as repository:
            state = self.position(repository).state
            if state == "open":
                repository.jobs.sweep_again(self.id)
            return state

    def _finish(self, pace: _Pace, aside: ThreadPoolExecutor) -> JobState:
        made = 0
        with self.writing() as repository:
            jobs, state = repository.jobs, self.position(repository).state
            if state != "open" or jobs.live_leases(self.id):
                return state
            advance = None
            if last := self._last_texts(repository, pace):
                embedded = self._embed_in_time([text.content for text in last], aside)
                made = len(embedded.positions)
                advance = self.store(repository, last, embedded)
            # Asked anew: very long texts are not all among the last ones.
            if _is_complete(repository.spaces, self.space):
                state = self._end(repository)
            else:
                state = "open"
                jobs.sweep_again(self.id)
        if advance is not None:
            self.report(made, advance)
        return state

    def _last_texts(self, repository: Repository, pace: _Pace) -> list[PendingText]:
        """What is pending, if it is so little that it can be embedded while writers wait."""
        if not self.loaded:
            return []
        texts = repository.spaces.pending_texts(self.space.id, limit=_LAST_TEXTS + 1)
        fits = len(texts) <= _LAST_TEXTS and pace.fits(len(texts), self.work.locked_s)
        return texts if fits else []

    def _embed_in_time(self, texts: Sequence[str], aside: ThreadPoolExecutor) -> Embedded:
        """Embed texts; _TooSlow when that fails, or is not done in the time that writers have."""
        making = aside.submit(embed_each, self.embedder(), texts)
        try:
            return making.result(self.work.locked_s)
        except (FutureTimeoutError, KronosError) as exc:
            raise _TooSlow from exc

    def _end(self, repository: Repository) -> JobState:
        spaces, wanted = repository.spaces, repository.jobs.options(self.id)
        space = spaces.get(self.space.id) or self.space  # its state may have changed
        failed = spaces.failed_count(space.id)
        state: JobState = "done"
        if space.state != "active":
            if not wanted["activate"]:
                state = "ready"
            elif failed and not wanted["allow_failed"]:
                state = "failed"
            else:
                spaces.activate(space)
        why = f"{failed} memories hold a text that cannot be embedded" if failed else None
        repository.jobs.finish(self.id, state, why)
        return state

    def drop_retired(self) -> None:
        """Drop the retired spaces beyond those to keep, if the job may."""
        keep = self.work.keep_spaces
        with self.reading() as repository:
            may = not repository.jobs.options(self.id)["keep_old"]
            some = repository.spaces.droppable(keep)
        if may and some:
            drop_spaces(self.database, keep, clock=self._clock)


class _Worker:
    """Claims texts, embeds them, stores their vectors; stores and claims while it embeds."""

    def __init__(self, job: ReindexJob) -> None:
        self._job = job
        self._owner = new_owner()
        # Of two parts one is embedded while the other is stored.
        self._pace = _Pace(max(1, job.work.batch_size // 2), job.work.rate)

    def run(self) -> None:
        """Work until the job is over or is to stop."""
        pause = 0.01
        with self._renewal(), self._leases():
            while not self._job.stopping:
                worked = self._sweep()
                if self._job.stopping:
                    break
                state = _patiently(functools.partial(self._job.finish, self._pace))
                if state != "open":
                    if state == "done":
                        self._job.drop_retired()
                    break
                pause = 0.01 if worked else min(2 * pause, _LONGEST_PAUSE_S)
                self._job.wait(pause)

    def _sweep(self) -> bool:
        """Take part in going through the pending texts once; False when none was left to claim."""
        claim = self._claim(self._look())
        if claim is None:
            return False
        made: _Made | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="kronos-reindex-store") as hands:
            while claim is not None:
                claim, made = self._work_through(claim, made, hands)
        self._store(made)
        return True

    def _work_through(
        self, claim: _Claim, made: _Made | None, hands: ThreadPoolExecutor
    ) -> tuple[_Claim | None, _Made | None]:
        """Embed a claim part by part, and store each part while the next one is embedded.

        Returns:
            The next claim, and the last part, which is not stored yet.
        """
        upcoming: Future[_Claim | None] | None = None
        for part in claim.parts(lambda: self._pace.size, _length_for(self._job.embedder())):
            if self._job.stopping:
                return None, made
            storing = hands.submit(copy_context().run, self._store, made)
            if part.lease is not None:
                # Rows are read in this thread, before it embeds: row by row, two busy threads of
                # Python get in each other's way.
                upcoming = hands.submit(self._claim, self._look())
            made = self._embed(part)
            storing.result()
            if made is None:
                return None, None
        return None if upcoming is None else upcoming.result(), made

    def _look(self) -> _Unclaimed | None:
        """The next texts that nobody has claimed; None when there are none, or no more are due."""
        if self._job.stopping:
            return None
        with self._job.reading() as repository:
            position = self._job.position(repository)
            if position.state != "open":
                return None
            texts = repository.spaces.pending_texts(
                self._job.space.id,
                limit=self._pace.claim(position.remaining),
                after=position.cursor,
            )
        return _Unclaimed(position, _Claim(texts)) if texts else None

    def _embed(self, part: _Part) -> _Made | None:
        """Embed a part; None when somebody wants to stop while the embedder is waited for."""
        self._job.pause.before(len(part.texts), self._job)
        patience, waits = self._job.patience()
        texts = [text.content for text in part.texts]
        started = time.perf_counter()
        try:
            embedded = embed_each(self._job.embedder(), texts, patience)
        except _Stopped:
            return None
        seconds = time.perf_counter() - started - waits.seconds
        self._pace.took(len(part.texts), seconds, embedded.fits)
        return _Made(part, embedded)

    def _claim(self, unclaimed: _Unclaimed | None) -> _Claim | None:
        """Take texts that were in unclaimed, or the next ones if another worker was faster."""
        while unclaimed is not None:
            if _patiently(functools.partial(self._take, unclaimed)):
                return unclaimed.claim
            unclaimed = self._look()
        return None

    def _take(self, unclaimed: _Unclaimed) -> bool:
        with self._job.writing() as repository:
            if self._job.position(repository).state != "open":
                return False
            return repository.jobs.claim(
                self._job.id,
                unclaimed.position,
                unclaimed.claim.last_hash,
                owner=self._owner,
                lease_s=self._job.work.lease_s,
            )

    def _store(self, made: _Made | None) -> None:
        """Store a part, and with the last of a claim end its lease, in one transaction."""
        if made is None:
            return
        advance = _patiently(functools.partial(self._write, made))
        if advance is not None:
            self._job.report(len(made.embedded.positions), advance)

    def _write(self, made: _Made) -> Advance | None:
        with self._job.writing() as repository:
            # A job that is over has no use for vectors, and its space may be gone.
            if self._job.position(repository).state != "open":
                return None
            if made.part.lease is not None:
                repository.jobs.release(self._job.id, self._owner, made.part.lease)
            return self._job.store(repository, made.part.texts, made.embedded)

    @contextmanager
    def _leases(self) -> Iterator[None]:
        """Give back what this worker holds, whatever ends it."""
        try:
            yield
        finally:
            try:
                with self._job.writing() as repository:
                    repository.jobs.release(self._job.id, self._owner)
            except KronosError:  # then the leases end by their time
                pass

    @contextmanager
    def _renewal(self) -> Iterator[None]:
        """Keep this worker's leases while a batch takes long."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self._job.work.lease_s / 3):
                try:
                    with self._job.writing() as repository:
                        repository.jobs.renew(self._job.id, self._owner, self._job.work.lease_s)
                except StorageError:  # a busy or full database: the next time, then
                    continue
                except KronosError:  # closed
                    return

        thread = threading.Thread(target=renew, name="kronos-reindex-renew", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _length_for(embedder: Embedder) -> Callable[[str], int]:
    """What tells an embedder's long texts from short ones."""
    # Only a model pads; counting takes a tenth as long as a hash vector.
    return _pieces if getattr(embedder, "max_tokens", None) else len


def _pieces(text: str) -> int:
    """About how many tokens a model makes of a text, good enough to sort by.

    English prose and Python code, 2,816 texts sorted at a time, batches of 32: a tenth less is read
    than when sorted by characters; with the model's own tokenizer it would be a seventh.
    """
    return len(_PIECE.findall(text, 0, _LETTERS_LOOKED_AT))


class _Waits:
    """How a worker waits for an embedder: until it is to stop, which raises `_Stopped`."""

    def __init__(self, job: ReindexJob, sleep: Callable[[float], object]) -> None:
        self._job = job
        self._sleep = sleep
        self.seconds = 0.0
        """How long it waited in all, which says nothing of the embedder's pace."""

    def __call__(self, seconds: float) -> None:
        started = time.perf_counter()
        while (left := started + seconds - time.perf_counter()) > 0:
            if self._job.stopping:
                raise _Stopped
            self._sleep(min(left, _LOOKS_UP_S))
        self.seconds += time.perf_counter() - started


class _Pace:
    """How many texts to embed at once: so many as take a few seconds, and fit the memory."""

    def __init__(self, most: int, rate: float | None) -> None:
        self._seconds_a_text: float | None = None
        self._most = most if rate is None else max(1, min(most, int(rate)))
        self.size = min(self._most, _FIRST_PART)

    def claim(self, remaining: int) -> int:
        """How many texts to claim."""
        return max(self.size, min(_PARTS_A_CLAIM * self.size, remaining // _SHARE_A_CLAIM))

    def fits(self, texts: int, seconds: float) -> bool:
        """Whether so many texts take, as far as is known, no longer than that."""
        return self._seconds_a_text is not None and texts * self._seconds_a_text <= seconds

    def took(self, texts: int, seconds: float, fits: int | None) -> None:
        """Learn from a part."""
        self._seconds_a_text = seconds / texts
        if fits is not None:
            self._most = max(1, min(self._most, fits))
        if seconds > 0 and texts >= self.size // 2:
            wanted = int(texts / seconds * _SECONDS_A_PART)
            self.size = min(max(wanted, self.size // 2), 2 * self.size)
        self.size = max(1, min(self.size, self._most))
        if self.size > _READ_AT_ONCE:
            self.size -= self.size % _READ_AT_ONCE


class _Limiter:
    """Keeps all workers of a process together under so many texts a second."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def before(self, texts: int, job: ReindexJob) -> None:
        """Wait until so many more texts are due."""
        if self._rate is None:
            return
        with self._lock:
            due = max(self._free_at, time.monotonic())
            self._free_at = due + texts / self._rate
        while not job.stopping and (left := due - time.monotonic()) > 0:
            job.wait(left)


def _patiently(action: Callable[[], T]) -> T:
    """Do something again while other writers hold the database: a job has time."""
    started = time.monotonic()
    while True:
        try:
            return action()
        except StoreBusyError:
            if time.monotonic() - started > _PATIENCE_S:
                raise


def catch_up(
    database: Database,
    space: Space,
    embedder: Embedder,
    *,
    batch_size: int,
    clock: Callable[[], datetime],
    patience: Patience,
    progress: ProgressCallback | None = None,
    wait: bool = True,
) -> None:
    """Embed what is pending in a space here and now, without a job that others could share.

    For a few texts that another process left pending, and for the hash space of a fallback, which
    is made as fast as it could be handed out.

    With `wait` False it raises StoreBusyError as soon as another writer is in the way.

    Raises:
        TransientEmbeddingError: the embedder still failed in passing when the patience was over.
        EmbeddingError: the embedder fails on any text.
        SpaceChangedError: the space is gone.
        StorageError: the database failed.
    """
    done = 0
    while True:
        with _repository(database.read(), clock) as repository:
            texts = repository.spaces.pending_texts(space.id, limit=batch_size)
        if not texts:
            return
        embedded = embed_each(embedder, [text.content for text in texts], patience)
        with _repository(database.write(wait=wait), clock) as repository:
            done += _store(repository.spaces, space, texts, embedded)
        if progress is not None:
            progress(Progress(done, None))


def _is_complete(spaces: Spaces, space: Space) -> bool:
    """Whether nothing is pending in a space, but for texts that cannot be embedded."""
    # To count is cheap; only where something is pending, the texts are looked at.
    return not spaces.pending_count(space.id) or not spaces.pending_texts(space.id, limit=1)


def _store(spaces: Spaces, space: Space, texts: Sequence[PendingText], embedded: Embedded) -> int:
    """Store the vectors that were made, and remember the failures; how many memories got one."""
    errors = {texts[position].content_hash: why for position, why in embedded.errors.items()}
    spaces.record_failures(space, errors)
    made = [texts[position] for position in embedded.positions]
    return spaces.store_vectors(space, made, embedded.rows)


@contextmanager
def _repository(
    transaction: AbstractContextManager[Any], clock: Callable[[], datetime]
) -> Iterator[Repository]:
    with transaction as connection:
        yield Repository(connection, clock())
