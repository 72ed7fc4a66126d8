"""`KronosMemory.models`: the verbs of `Models` for asyncio."""

from __future__ import annotations

from kronos.aio.mirroring import Mirror, as_job, reading, writing
from kronos.store.models import Models


class AsyncModels(Mirror):
    """The models of a store; each verb is that of `Models`, awaited."""

    plan = as_job(Models.plan)
    resume = as_job(Models.resume)
    activate = as_job(Models.activate)
    rollback = as_job(Models.rollback)
    cancel = writing(Models.cancel)
    jobs = reading(Models.jobs)
    failures = reading(Models.failures)
    spaces = reading(Models.spaces)
