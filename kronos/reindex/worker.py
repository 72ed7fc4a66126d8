"""A worker of a job: it claims texts, embeds them and stores their vectors, until none is left.

Embedding one part overlaps with storing the previous part and claiming the next texts.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kronos.embedding.embedder_calls import Embedded, embed_each
from kronos.errors import KronosError, StorageError
from kronos.reindex.finishing import drop_retired, finish
from kronos.reindex.pacing import LONGEST_PAUSE_S, JobStopped, Pace, retry_while_busy
from kronos.repository.owners import new_owner

if TYPE_CHECKING:
    from kronos.reindex.run import JobRun
    from kronos.repository.jobs import Advance, Position
    from kronos.repository.pending import PendingText
    from kronos.types import Embedder

_FIRST_PAUSE_S = 0.01
_TOKEN = re.compile(r"[^\W\d_]{1,6}|\d{1,3}|[^\w\s]|_")
_MEASURED_CHARACTERS = 2**16
"""No model reads beyond this, and one regular expression over a huge text would hold Python's lock
for a second."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """Texts that one worker holds, in the order of their hashes."""

    texts: list[PendingText]

    @property
    def last_hash(self) -> bytes:
        """Identifies the claim's lease."""
        return self.texts[-1].content_hash

    def parts(self, size: Callable[[], int], length: Callable[[str], int]) -> Iterator[_Part]:
        """Cut the texts into parts; `size` is asked before each one.

        Long texts come first, and texts of similar length together, because a model pads the texts
        of a batch to the longest one.
        """
        rest = sorted(self.texts, key=lambda text: length(text.content), reverse=True)
        while rest:
            most = size()
            part, rest = rest[:most], rest[most:]
            yield _Part(part, None if rest else self.last_hash)


@dataclass(frozen=True, slots=True)
class _Part:
    """Texts that are embedded and stored together."""

    texts: list[PendingText]
    lease: bytes | None
    """The lease to release with this part, if it is the last one of its claim."""


@dataclass(frozen=True, slots=True)
class _Unclaimed:
    """Texts that no worker had claimed when they were read, and the job's position then."""

    position: Position
    claim: _Claim


@dataclass(frozen=True, slots=True)
class _EmbeddedPart:
    """A part, and the outcome for its texts."""

    part: _Part
    embedded: Embedded


class Worker:
    """One worker thread.

    Args:
        run: the run that the worker belongs to.
    """

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self._owner = new_owner()
        # Two parts are in hand at a time: one is embedded while the other one is stored.
        self._pace = Pace(max(1, run.work.batch_size // 2), run.work.rate)

    def run(self) -> None:
        """Work until the job is over or is to stop."""
        pause = _FIRST_PAUSE_S
        with self._renewing_leases(), self._releasing_leases():
            while not self._run.stopping:
                worked = self._sweep()
                if self._run.stopping:
                    break
                state = retry_while_busy(functools.partial(finish, self._run, self._pace))
                if state != "open":
                    if state == "done":
                        drop_retired(self._run)
                    break
                pause = _FIRST_PAUSE_S if worked else min(2 * pause, LONGEST_PAUSE_S)
                self._run.sleep(pause)

    def _sweep(self) -> bool:
        """Go through the pending texts once, together with the other workers.

        Returns:
            Whether there was a text to claim.
        """
        claim = self._claim(self._find_unclaimed())
        if claim is None:
            return False
        made: _EmbeddedPart | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="kronos-reindex-store") as storer:
            while claim is not None:
                claim, made = self._embed_claim(claim, made, storer)
        self._store(made)
        return True

    def _embed_claim(
        self, claim: _Claim, made: _EmbeddedPart | None, storer: ThreadPoolExecutor
    ) -> tuple[_Claim | None, _EmbeddedPart | None]:
        """Embed a claim part by part; each part is stored while the next one is embedded.

        Args:
            claim: the texts.
            made: the last part of the previous claim.
            storer: the thread that stores and claims.

        Returns:
            The next claim, and this claim's last part, which is not stored yet.
        """
        upcoming: Future[_Claim | None] | None = None
        for part in claim.parts(lambda: self._pace.part_size, _length_for(self._run.embedder())):
            if self._run.stopping:
                return None, made
            storing = storer.submit(copy_context().run, self._store, made)
            if part.lease is not None:
                # Read in this thread, before it embeds: two threads that run Python code at the
                # same time slow each other down.
                upcoming = storer.submit(self._claim, self._find_unclaimed())
            made = self._embed(part)
            storing.result()
            if made is None:
                return None, None
        return None if upcoming is None else upcoming.result(), made

    def _find_unclaimed(self) -> _Unclaimed | None:
        """Read the next unclaimed texts; None if there are none, or the job stops or is over."""
        if self._run.stopping:
            return None
        with self._run.reading() as repository:
            position = self._run.position(repository)
            if position.state != "open":
                return None
            texts = repository.pending.texts(
                self._run.space.id,
                limit=self._pace.claim_size(position.remaining),
                after=position.cursor,
            )
        return _Unclaimed(position, _Claim(texts)) if texts else None

    def _claim(self, unclaimed: _Unclaimed | None) -> _Claim | None:
        """Claim texts; if another worker was faster, the next unclaimed ones."""
        while unclaimed is not None:
            if retry_while_busy(functools.partial(self._try_to_claim, unclaimed)):
                return unclaimed.claim
            unclaimed = self._find_unclaimed()
        return None

    def _try_to_claim(self, unclaimed: _Unclaimed) -> bool:
        with self._run.writing() as repository:
            if self._run.position(repository).state != "open":
                return False
            return repository.jobs.claim(
                self._run.job_id,
                unclaimed.position,
                unclaimed.claim.last_hash,
                owner=self._owner,
                lease_s=self._run.work.lease_s,
            )

    def _embed(self, part: _Part) -> _EmbeddedPart | None:
        """Embed a part; None if the job stops while the worker waits for the embedder."""
        self._run.limiter.wait_for(len(part.texts))
        retry, sleep = self._run.retry_policy()
        texts = [text.content for text in part.texts]
        started = time.perf_counter()
        try:
            embedded = embed_each(self._run.embedder(), texts, retry)
        except JobStopped:
            return None
        seconds = time.perf_counter() - started - sleep.seconds
        self._pace.record(len(part.texts), seconds, embedded.fits)
        return _EmbeddedPart(part, embedded)

    def _store(self, made: _EmbeddedPart | None) -> None:
        """Store a part; the last part of a claim releases its lease in the same transaction."""
        if made is None:
            return
        advance = retry_while_busy(functools.partial(self._write, made))
        if advance is not None:
            self._run.report(len(made.embedded.positions), advance)

    def _write(self, made: _EmbeddedPart) -> Advance | None:
        with self._run.writing() as repository:
            # When the job is over, its vectors are not needed, and its space may be gone.
            if self._run.position(repository).state != "open":
                return None
            if made.part.lease is not None:
                repository.jobs.release(self._run.job_id, self._owner, made.part.lease)
            return self._run.store(repository, made.part.texts, made.embedded)

    @contextmanager
    def _releasing_leases(self) -> Iterator[None]:
        """Release this worker's leases at the end of the block, also after an error."""
        try:
            yield
        finally:
            try:
                with self._run.writing() as repository:
                    repository.jobs.release(self._run.job_id, self._owner)
            except KronosError:  # the leases expire
                pass

    @contextmanager
    def _renewing_leases(self) -> Iterator[None]:
        """Renew this worker's leases in the background, because a batch may take long."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self._run.work.lease_s / 3):
                try:
                    with self._run.writing() as repository:
                        lease_s = self._run.work.lease_s
                        repository.jobs.renew(self._run.job_id, self._owner, lease_s)
                except StorageError:  # the database is busy or full: try again later
                    continue
                except KronosError:  # the database is closed
                    return

        thread = threading.Thread(target=renew, name="kronos-reindex-renew", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _length_for(embedder: Embedder) -> Callable[[str], int]:
    """The measure by which texts for an embedder are sorted."""
    # Only models pad their batches; for other embedders counting tokens costs more than it saves.
    return _estimate_tokens if getattr(embedder, "max_tokens", None) else len


def _estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text, well enough to sort by: better than its characters."""
    return len(_TOKEN.findall(text, 0, _MEASURED_CHARACTERS))
