"""The end of a job: the last texts, the switch to the new space, and the retired spaces.

The active space changes in the transaction that sees nothing pending. Steady writers could keep a
job from that moment for ever, so the last few texts are embedded inside the transaction, if that
takes so little time that other writers hardly wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING

from kronos.embedding.embedder_calls import Embedded, embed_each
from kronos.errors import KronosError
from kronos.reindex.cleanup import drop_spaces
from kronos.types import JobState

if TYPE_CHECKING:
    from kronos.reindex.pacing import Pace
    from kronos.reindex.run import JobRun
    from kronos.repository.memories import Repository
    from kronos.repository.pending import PendingText

_LAST_TEXTS = 16
"""Texts that may be embedded in the last transaction, at most."""


class _TooSlow(Exception):
    """The last texts fail, or take longer than other writers may wait."""


def finish(run: JobRun, pace: Pace) -> JobState:
    """Embed the last few texts, switch, and end the job, in one transaction.

    Args:
        run: the run whose worker found no more texts to claim.
        pace: the measured speed of the embedder.

    Returns:
        The job's state: still "open" if other workers hold texts, or if the pending texts would
        keep other writers waiting too long.
    """
    with run.reading() as repository:
        state = run.position(repository).state
        if state != "open" or repository.jobs.owners(run.job_id):
            return state
        some = not repository.pending.is_complete(run.space.id)
    if some:
        run.embedder()  # loaded before the transaction: it may take long
    # Closed after the transaction: an embedding that is too slow ends outside it.
    with ThreadPoolExecutor(1, thread_name_prefix="kronos-reindex-last") as aside:
        try:
            return _finish(run, pace, aside)
        except _TooSlow:  # the next sweep embeds these texts, while no writer waits
            pass
    with run.writing() as repository:
        state = run.position(repository).state
        if state == "open":
            repository.jobs.sweep_again(run.job_id)
        return state


def _finish(run: JobRun, pace: Pace, aside: ThreadPoolExecutor) -> JobState:
    made = 0
    with run.writing() as repository:
        jobs, state = repository.jobs, run.position(repository).state
        if state != "open" or jobs.live_leases(run.job_id):
            return state
        advance = None
        if last := _last_texts(run, repository, pace):
            embedded = _embed_in_time(run, [text.content for text in last], aside)
            made = len(embedded.positions)
            advance = run.store(repository, last, embedded)
        # Checked again: very long texts may be pending and not among the last texts.
        if repository.pending.is_complete(run.space.id):
            state = _end(run, repository)
        else:
            state = "open"
            jobs.sweep_again(run.job_id)
    if advance is not None:
        run.report(made, advance)
    return state


def _last_texts(run: JobRun, repository: Repository, pace: Pace) -> list[PendingText]:
    """The pending texts, if they can be embedded while writers wait; otherwise none."""
    if not run.loaded:
        return []
    texts = repository.pending.texts(run.space.id, limit=_LAST_TEXTS + 1)
    fits = len(texts) <= _LAST_TEXTS and pace.fits(len(texts), run.work.locked_s)
    return texts if fits else []


def _embed_in_time(run: JobRun, texts: Sequence[str], aside: ThreadPoolExecutor) -> Embedded:
    """Embed texts; raises _TooSlow if that fails, or takes longer than writers may wait."""
    making = aside.submit(embed_each, run.embedder(), texts)
    try:
        return making.result(run.work.locked_s)
    except (FutureTimeoutError, KronosError) as exc:
        raise _TooSlow from exc


def _end(run: JobRun, repository: Repository) -> JobState:
    spaces, wanted = repository.spaces, repository.jobs.options(run.job_id)
    space = spaces.get(run.space.id) or run.space  # its state may have changed
    failed = repository.pending.failed_count(space.id)
    state: JobState = "done"
    if space.state != "active":
        if not wanted["activate"]:
            state = "ready"
        elif failed and not wanted["allow_failed"]:
            state = "failed"
        else:
            spaces.activate(space)
    why = f"{failed} memories hold a text that cannot be embedded" if failed else None
    repository.jobs.finish(run.job_id, state, why)
    return state


def drop_retired(run: JobRun) -> None:
    """Drop the oldest retired spaces, beyond those to keep, unless the job keeps all."""
    keep = run.work.keep_spaces
    with run.reading() as repository:
        may = not repository.jobs.options(run.job_id)["keep_old"]
        some = repository.spaces.droppable(keep)
    if may and some:
        drop_spaces(run.database, keep, clock=run.clock)
