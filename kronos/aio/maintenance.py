"""`KronosMemory.maintenance`: the verbs of `Maintenance` for asyncio."""

from __future__ import annotations

from kronos.aio.mirroring import Mirror, apart, as_job, detached, reading
from kronos.store.maintenance import Maintenance


class AsyncMaintenance(Mirror):
    """The upkeep of a store; each verb is that of `Maintenance`, awaited."""

    check = as_job(Maintenance.check)
    compact = as_job(Maintenance.compact)
    tune = as_job(Maintenance.tune)
    backup = as_job(Maintenance.backup)
    restore = detached(Maintenance.restore)
    recover = detached(Maintenance.recover)
    index_field = apart(Maintenance.index_field)
    unindex_field = apart(Maintenance.unindex_field)
    indexed_fields = reading(Maintenance.indexed_fields)
    rebuild_fulltext = as_job(Maintenance.rebuild_fulltext)
