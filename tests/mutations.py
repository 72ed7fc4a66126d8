"""Bugs planted on purpose: the suite must catch each of them.

    python -m tests.mutations [NAME...]

Each bug is planted in a copy of the sources, the tests that should catch it are run against it, and
a line says which test did. A bug that no test catches ends the program with 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Bug:
    """Text to be replaced in a file, and the tests that look there."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


BUGS = [
    Bug(
        "commits are not synced",
        "kronos/db/sqlite.py",
        'f"PRAGMA synchronous={self.settings.durability.upper()}"',
        '"PRAGMA synchronous=OFF"',
        "tests/db/test_engine.py",
    ),
    Bug(
        "a snapshot is published before it is synced",
        "kronos/files.py",
        "    sync(part)\n",
        "",
        "tests/index/test_snapshot.py tests/faults/test_power.py",
    ),
    Bug(
        "a snapshot's checksum is not looked at",
        "kronos/index/snapshot.py",
        "if not known and hashlib.sha256(payload).hexdigest() != checksum:",
        "if False:",
        "tests/index/test_snapshot.py",
    ),
    Bug(
        "an export's checksum is not looked at",
        "kronos/transfer/export.py",
        "    if place >= 0 and found == _seal(file, place, end):",
        "    if True:",
        "tests/transfer/test_export.py",
    ),
    Bug(
        "doctor does not compare texts with their hashes",
        "kronos/repository/rows.py",
        "if hash_content(memory.content.encode()) != content_hash:",
        "if False:",
        "tests/faults/test_damaged_database.py",
    ),
    Bug(
        "a seq is given out twice",
        "kronos/repository/seqs.py",
        "return range(last - count + 1, last + 1)",
        "return range(last - count, last)",
        "tests/following/test_replica.py tests/store/test_laws.py",
    ),
    Bug(
        "the count of a space's vectors is lost when another one takes over",
        "kronos/repository/spaces.py",
        '.values(state="retired", vectors=VECTOR_COUNT)',
        '.values(state="retired")',
        "tests/reindex/test_reindex.py tests/serving/test_model_laws.py",
    ),
    Bug(
        "a new memory is not told to those who follow the changes",
        "kronos/repository/rows.py",
        "            select(memories.c.key).where(memories.c.key > seq),\n",
        "",
        "tests/search/test_key_sets.py",
    ),
    Bug(
        "an index does not forget what was deleted",
        "kronos/following/replica.py",
        "        index.remove(gone)\n",
        "",
        "tests/following/test_replica.py tests/store/test_laws.py",
    ),
    Bug(
        "an edit keeps the vectors of the other spaces",
        "kronos/repository/memories.py",
        "        self.vectors.await_new(changed, seqs[-1])\n",
        "        self.vectors.forget(changed, seqs[-1], space.id if space else None)\n",
        "tests/serving/test_model_laws.py tests/repository/test_jobs.py",
    ),
    Bug(
        "an index follows past tombstones that are gone",
        "kronos/following/replica.py",
        "if self._applied < repository.spaces.pruned_seq(self.space.id):",
        "if False:",
        "tests/following/test_replica.py tests/serving/test_process_laws.py",
    ),
    Bug(
        "pruning takes the tombstones of pending memories",
        "kronos/repository/vectors.py",
        "tombstones.c.seq <= seq, ~living",
        "tombstones.c.seq <= seq",
        "tests/maintenance/test_compaction.py tests/repository/test_jobs.py",
    ),
    Bug(
        "a restored database goes on with its old seq",
        "kronos/db/backup.py",
        "(seq=seq))\n        connection.execute(update(spaces).values(pruned_seq=seq))\n\n\ndef",
        "(seq=seq))\n\n\ndef",
        "tests/db/test_backup.py tests/serving/test_process_laws.py",
    ),
    Bug(
        "an open store does not see that the active space changed",
        "kronos/serving/serving.py",
        "            head.active_space != self.active.id\n"
        "            or head.fingerprint != self.active.fingerprint\n            or ",
        "            ",
        "tests/repository/test_jobs.py tests/serving/test_model_laws.py",
    ),
    Bug(
        "an open store knows spaces by their numbers alone",
        "kronos/serving/serving.py",
        "            or head.fingerprint != self.active.fingerprint\n"
        "            or head.store_id != self.replica.store_id\n",
        "",
        "tests/db/test_restore.py",
    ),
    Bug(
        "a restore copies what is there before others stop writing",
        "kronos/db/backup.py",
        "        present.files.overwrite(part, keep_and_prepare)\n",
        "        keep_and_prepare()\n        present.files.overwrite(part, lambda: None)\n",
        "tests/db/test_restore.py tests/faults/test_restore_beside_writers.py",
    ),
    Bug(
        "a write into a file that went away is acknowledged",
        "kronos/db/database.py",
        "if self._writes and not database._is_at_its_path(connection):",
        "if False:",
        "tests/db/test_restore.py",
    ),
    Bug(
        "a copy of a private database can be read by everybody",
        "kronos/files.py",
        "part.chmod(wanted if present is None else wanted & present)",
        "part.chmod(0o644)",
        "tests/test_files.py tests/db/test_restore.py",
    ),
    Bug(
        "a read notes what nobody asked it to",
        "kronos/store/browsing.py",
        "if memory is not None and as_of is None and session.settings.track_access:",
        "if memory is not None and as_of is None:",
        "tests/store/test_reads.py",
    ),
    Bug(
        "a moment is taken that cannot be given back",
        "kronos/validation/numbers.py",
        "if moment is None or not _FIRST <= moment <= _LAST:",
        "if moment is None:",
        "tests/store/test_times.py",
    ),
    Bug(
        "an edit of a memory that is pending leaves no mark",
        "kronos/repository/memories.py",
        "        self.vectors.await_new(changed, seqs[-1])\n",
        "        self.vectors.forget(changed, seqs[-1])\n",
        "tests/reindex/test_pending.py",
    ),
    Bug(
        "a job's texts are claimed without looking at its cursor",
        "kronos/repository/jobs.py",
        "                jobs.c.cursor == seen.cursor,\n",
        "",
        "tests/repository/test_jobs.py tests/reindex/test_reindex_crash.py",
    ),
    Bug(
        "the leases of dead workers stay",
        "kronos/repository/jobs.py",
        "if row.expires_at <= now or is_gone(row.owner)]",
        "if False]",
        "tests/repository/test_jobs.py tests/reindex/test_reindex_crash.py",
    ),
    Bug(
        "a write transaction begins as a reader",
        "kronos/db/sqlite.py",
        'self._run(connection, "BEGIN IMMEDIATE")\n\n    def begin_write_at_once',
        'self._run(connection, "BEGIN")\n\n    def begin_write_at_once',
        "tests/db/test_engine.py",
    ),
    Bug(
        "a connection is used again after a failed commit",
        "kronos/db/database.py",
        "            self._connection.invalidate()\n            self._idle = None\n",
        "",
        "tests/db/test_faults.py tests/faults/test_walk.py",
    ),
    Bug(
        "an expired memory is served",
        "kronos/repository/rows.py",
        '_LIVE = is_live(memories, bindparam("expired_by"))',
        '_LIVE = bindparam("expired_by") > 0',
        "tests/store/test_store.py tests/store/test_laws.py",
    ),
    Bug(
        "what a memory was is not kept when it is deleted",
        "kronos/repository/memories.py",
        "            self.history.keep(keys, text_goes=True)\n",
        "            pass\n",
        "tests/repository/test_history.py",
    ),
    Bug(
        "a version holds at its end too",
        "kronos/repository/history.py",
        "versions.c.replaced_at > moment",
        "versions.c.replaced_at >= moment",
        "tests/repository/test_history.py",
    ),
    Bug(
        "a filter that was used does not follow the writes",
        "kronos/search/key_sets.py",
        "        if known.seq != head:\n",
        "        if False:\n",
        "tests/search/test_key_sets.py tests/search/test_search.py",
    ),
    Bug(
        "a filter keeps what no longer matches",
        "kronos/search/key_sets.py",
        "np.delete(self.keys, positions), np.delete(self.beside, positions, axis=0)\n",
        "self.keys, self.beside\n",
        "tests/search/test_key_sets.py tests/search/test_search.py",
    ),
    Bug(
        "a ranking looks at the nearest alone",
        "kronos/search/answer.py",
        "            or chosen[wanted - 1].score >= bound\n",
        "            or True\n",
        "tests/search/test_search.py",
    ),
    Bug(
        "a changed text keeps its old words",
        "kronos/db/fulltext/fts5.py",
        "    VALUES ('delete', old.key, coalesce(old.folded, old.content));\n"
        "    INSERT INTO {words} (rowid, content)",
        "    SELECT 'delete', 0, '' WHERE 0;\n    INSERT INTO {words} (rowid, content)",
        "tests/db/test_migrations.py tests/repository/test_fulltext.py",
    ),
    Bug(
        "an edited text keeps its old fold",
        "kronos/repository/memories.py",
        'values = {**values, "folded": self.fulltext.folded(values["content"])}',
        "pass",
        "tests/repository/test_fulltext.py",
    ),
    Bug(
        "a past text is not read as it was folded",
        "kronos/repository/history.py",
        "            memories.c.folded,\n",
        "            null(),\n",
        "tests/repository/test_fulltext.py",
    ),
    Bug(
        "the folding of old texts forgets where it was",
        "kronos/db/fulltext/fts5.py",
        "    connection.exec_driver_sql(_SET_CURSOR, (last,))\n    return last is not None",
        "    return last is not None",
        "tests/db/test_refolding.py",
    ),
    Bug(
        "a question is not folded as the texts are",
        "kronos/db/fulltext/folding.py",
        'return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", composed).casefold())',
        "return composed.lower()",
        "tests/db/test_folding.py tests/repository/test_fulltext.py",
    ),
    Bug(
        "compact leaves the words of deleted texts",
        "kronos/maintenance/compaction.py",
        "        self._merge_fulltext()\n",
        "",
        "tests/repository/test_history.py tests/maintenance/test_compaction.py",
    ),
    Bug(
        "deleted bytes stay in their pages",
        "kronos/db/sqlite.py",
        'connection.execute("PRAGMA secure_delete=FAST")',
        'connection.execute("PRAGMA secure_delete=OFF")',
        "tests/maintenance/test_compaction.py",
    ),
    Bug(
        "writes that come at once are acknowledged before their commit",
        "kronos/serving/session.py",
        "        with self.writer() as repository:\n"
        "            return write_together(repository, writes)\n",
        "        with self.writer() as repository:\n"
        "            done = write_together(repository, writes)\n"
        "            repository.connection.connection.dbapi_connection.rollback()\n"
        "            return done\n",
        "tests/serving/test_group_commit.py",
    ),
    Bug(
        "what a refused write had written stays, among the writes beside it",
        "kronos/serving/group_commit.py",
        "        with repository.savepoint():\n            return change.make(repository)\n",
        "        return change.make(repository)\n",
        "tests/serving/test_group_commit.py",
    ),
    Bug(
        "upserts that come at once do not see each other",
        "kronos/serving/group_commit.py",
        "        and not (first.batch.match_content or write.batch.match_content)\n",
        "",
        "tests/serving/test_group_commit.py",
    ),
    Bug(
        "an interrupted leader takes the lead with it",
        "kronos/concurrency/coalescing.py",
        "            if self._leader is call or not call.is_done:\n",
        "            if call.is_done and self._leader is call:\n",
        "tests/concurrency/test_coalescing.py tests/serving/test_group_commit.py",
    ),
    Bug(
        "texts of one task are embedded in the context of another",
        "kronos/concurrency/call_context.py",
        "        return frozenset(_item_key(*item) for item in self._context.items())\n",
        "        return ()\n",
        "tests/concurrency/test_call_context.py",
    ),
    Bug(
        "questions of threads share a program's own embedder",
        "kronos/serving/resolver.py",
        "        if not sees_texts_alone(embedder):\n",
        "        if False:\n",
        "tests/concurrency/test_call_context.py",
    ),
    Bug(
        "a thread that reads waits for an embedder",
        "kronos/concurrency/threads.py",
        '    if getattr(_this_thread, "never_waits", False):\n',
        "    if False:\n",
        "tests/concurrency/test_threads.py tests/aio/test_event_loops.py",
    ),
    Bug(
        "two threads open and close a store at once",
        "kronos/aio/opening.py",
        "            opening.ended.wait(SHUTDOWN_TIMEOUT_S)",
        "            pass",
        "tests/aio/test_event_loops.py",
    ),
    Bug(
        "a call that comes as the store is closed waits for ever",
        "kronos/aio/calls.py",
        "            if self._is_closed:\n                raise StoreClosedError\n",
        "",
        "tests/aio/test_event_loops.py",
    ),
    Bug(
        "a text is cut between letters that join",
        "kronos/concurrency/large_values.py",
        "    return _stands_alone(before) and _stands_alone(behind)\n",
        "    return True\n",
        "tests/concurrency/test_large_values.py",
    ),
    Bug(
        "a backup goes on when it is stopped",
        "kronos/db/sqlite_files.py",
        "            steps.report(total - remaining, total)\n",
        "            pass\n",
        "tests/store/test_stopping.py",
    ),
    Bug(
        "a forked child finds a lock that a thread of its parent held",
        "kronos/concurrency/forking.py",
        """        \"\"\"Be free in the child.\"\"\"
        if in_child:
            self._lock = self._make()
""",
        """        \"\"\"Be free in the child.\"\"\"
""",
        "tests/serving/test_processes.py",
    ),
    Bug(
        "a parent keeps its connections while it forks",
        "kronos/db/database.py",
        "        self._gate.close()\n        self._disconnect()\n",
        "        self._gate.close()\n",
        "tests/db/test_engine.py tests/serving/test_processes.py",
    ),
    Bug(
        "a search of a graph does not mask its dead rows",
        "kronos/index/part.py",
        "return self._search_rows(queries, k, effort, self._bits)",
        "return self._search_rows(queries, k, effort, None)",
        "tests/index/test_layered.py",
    ),
    Bug(
        "the mask of dead rows is made once",
        "kronos/index/part.py",
        "            self._bits = None\n            self._remembered",
        "            self._remembered",
        "tests/index/test_layered.py",
    ),
    Bug(
        "where the keys of a filter lie is looked up once",
        "kronos/index/part.py",
        "            self._remembered.clear()\n",
        "",
        "tests/index/test_layered.py",
    ),
    Bug(
        "the keys of a filter are known by an array that anybody may change",
        "kronos/index/part.py",
        "        if not allowed.flags.writeable:",
        "        if True:",
        "tests/index/test_layered.py",
    ),
    Bug(
        "the keys of a filter are known by where its array lay",
        "kronos/index/part.py",
        "remembered is not None and remembered[0]() is allowed",
        "remembered is not None",
        "tests/index/test_layered.py",
    ),
    Bug(
        "a filtered search finds dead rows",
        "kronos/index/part.py",
        "        if self.dead:\n            known[known] = alive = self.alive[rows]\n",
        "        if False:\n            known[known] = alive = self.alive[rows]\n",
        "tests/index/test_layered.py",
    ),
    Bug(
        "an overwritten key is found in its old place too",
        "kronos/index/layered.py",
        "        for part in self._parts:\n            part.mark_dead(keys)\n",
        "",
        "tests/index/test_layered.py",
    ),
    Bug(
        "what died while a build ran comes back",
        "kronos/index/layered.py",
        "            for each in (made, *duplicates):\n",
        "            for each in duplicates:\n",
        "tests/index/test_layered.py",
    ),
    Bug(
        "a build whose parts are gone is taken",
        "kronos/index/layered.py",
        "if made is None or any(part not in self._parts for part in build.parts):",
        "if made is None:",
        "tests/index/test_layered.py",
    ),
    Bug(
        "what was frozen while another build ran is lost",
        "kronos/index/layered.py",
        "self._parts += [*duplicates, *later]\n",
        "self._parts += duplicates\n",
        "tests/index/test_layered.py",
    ),
    Bug(
        "all copies of a vector are linked into the graph",
        "kronos/index/policy.py",
        "        match = _GRAPH.match(self.main)\n",
        "        match = None\n",
        "tests/index/test_layered.py",
    ),
    Bug(
        "what was copied, changed or moved counts as verified",
        "kronos/index/snapshot.py",
        '_mark(path).read_text("ascii") == _seen(status, checksum)',
        "_mark(path).exists()",
        "tests/index/test_snapshot.py",
    ),
    Bug(
        "buffers of a snapshot do not keep the graph alive",
        "kronos/index/faiss/library.py",
        "return np.asarray(_Owned(owner, view)) if view.size else view",
        "return view",
        "tests/index/test_layered.py",
    ),
    Bug(
        "the scores of codes are not computed anew",
        "kronos/index/faiss/coded.py",
        "exact = inner_products(query, self.vectors, candidates)",
        "exact = np.arange(candidates.size, 0, -1, dtype=np.float32)",
        "tests/index/test_layered.py",
    ),
    Bug(
        "what several parts found is not ordered by score",
        "kronos/index/layered.py",
        "order = np.lexsort((keys, -scores))[:, :k]",
        "order = np.argsort(keys, axis=1)[:, :k]",
        "tests/index/test_layered.py",
    ),
    Bug(
        "equal scores of several parts are not ordered by key",
        "kronos/index/layered.py",
        "order = np.lexsort((keys, -scores))[:, :k]",
        'order = np.argsort(-scores, axis=1, kind="stable")[:, :k]',
        "tests/index/test_layered.py tests/index/test_conformance.py",
    ),
    Bug(
        "a graph that leads to fewer than k is believed",
        "kronos/index/part.py",
        "if not rows.size or rows.min() >= 0:",
        "if True:",
        "tests/index/test_layered.py",
    ),
    Bug(
        "a compacted graph keeps the vectors of the dead",
        "kronos/index/part.py",
        "        graph.vectors[dead] = np.where(",
        "        np.where(",
        "tests/index/test_layered.py",
    ),
    Bug(
        "a build takes up what had died before it",
        "kronos/index/building.py",
        "            rows = np.flatnonzero(self.alive[number])\n",
        "            rows = np.arange(self.alive[number].size)\n",
        "tests/index/test_layered.py",
    ),
    Bug(
        "a merge revives the dead of the graph that it began with",
        "kronos/index/building.py",
        "            alive = np.concatenate([self.alive[0], alive])\n",
        "            alive = np.ones(keys.size, np.bool_)\n",
        "tests/index/test_layered.py",
    ),
    Bug(
        "a merge changes the graph that is searched meanwhile",
        "kronos/index/building.py",
        "            made = base.copy()\n",
        "            made = base\n",
        "tests/index/test_layered.py",
    ),
    Bug(
        "a worn graph is never built anew",
        "kronos/index/policy.py",
        "return dead > self.dead_share * main",
        "return False",
        "tests/index/test_layered.py",
    ),
    Bug(
        "a filtered search of a graph looks no harder than another",
        "kronos/index/policy.py",
        "return math.ceil(effort * math.pow(share, -_SHARE_POWER))",
        "return math.ceil(effort)",
        "tests/index/test_layered.py",
    ),
    Bug(
        "a search for many looks no harder than one for few",
        "kronos/index/policy.py",
        " + _EFFORT_FOR_K * max(k - _USUAL_K, 0)\n",
        "\n",
        "tests/index/test_layered.py",
    ),
    Bug(
        "recall is measured with the memories themselves",
        "kronos/index/tuning.py",
        "moved = vectors + _QUERY_OFFSET * moves",
        "moved = vectors + 0.01 * moves",
        "tests/index/test_layered.py",
    ),
    Bug(
        "a graph that was built is not saved",
        "kronos/following/replica.py",
        "                    self._snapshots.must_save |= build.is_from_scratch\n",
        "                    pass\n",
        "tests/following/test_replica.py",
    ),
    Bug(
        "a process overwrites what another one measured",
        "kronos/following/replica.py",
        "            index.tune(TuningResult(newest.effort, newest.recall))\n",
        "            pass\n",
        "tests/maintenance/test_tuning.py",
    ),
    Bug(
        "what is measured is not saved",
        "kronos/following/replica.py",
        "                    self._snapshots.must_save = self._snapshots.is_tuned_here = True\n",
        "                    self._snapshots.is_tuned_here = True\n",
        "tests/maintenance/test_tuning.py",
    ),
    Bug(
        "a wait that an embedder asks for is not kept",
        "kronos/embedding/retry.py",
        "min(max(grown, asked), left)",
        "min(grown, left)",
        "tests/embedding/test_retry.py",
    ),
    Bug(
        "a transient failure is taken for a text at fault",
        "kronos/embedding/embedder_calls.py",
        "        if found is None:\n            raise EmbeddingError(why) from exc",
        "        if True:\n            raise EmbeddingError(why) from exc",
        "tests/embedding/test_embedder_calls.py",
    ),
    Bug(
        "each store has a copy of its model",
        "kronos/embedding/model_cache.py",
        "found: T | None = _alive.get(key)",
        "found: T | None = None",
        "tests/embedding/test_model_cache.py",
    ),
    Bug(
        "writers wait for the last texts of a job however long those take",
        "kronos/reindex/finishing.py",
        "return making.result(run.work.locked_s)",
        "return making.result()",
        "tests/reindex/test_quota.py",
    ),
    Bug(
        "a job is done while long texts are pending",
        "kronos/reindex/finishing.py",
        "        if repository.pending.is_complete(run.space.id):\n            state",
        "        if True:\n            state",
        "tests/reindex/test_quota.py",
    ),
    Bug(
        "a job continues in a store that was restored from another one",
        "kronos/reindex/run.py",
        "        if not repository.spaces.has(self.space):\n            return CANCELLED\n",
        "",
        "tests/db/test_restore.py",
    ),
    Bug(
        "compact drops the space that a fallback serves",
        "kronos/reindex/cleanup.py",
        "if each.fingerprint != kept]",
        "]",
        "tests/reindex/test_reindex.py",
    ),
    Bug(
        "a search of the past waits for a writer",
        "kronos/store/answering/answering.py",
        """                with self._session.writer_at_once() as repository:
                    repository.history.add_vectors""",
        """                with self._session.writer() as repository:
                    repository.history.add_vectors""",
        "tests/store/test_reads.py",
    ),
    Bug(
        "an export that failed is tried at every start",
        "kronos/embedding/engine_choice.py",
        "if (before := why_failed(fingerprint, places)) is not None:",
        "if (before := None) is not None:",
        "tests/embedding/test_onnx.py",
    ),
    Bug(
        "an export that failed is never tried again",
        "kronos/embedding/export_failures.py",
        '(note["format"], note["versions"]) == (_FORMAT, _versions()):',
        'note["format"] == _FORMAT:',
        "tests/embedding/test_onnx.py",
    ),
    Bug(
        "who follows the rows is not told of deletes",
        "kronos/repository/rows.py",
        "            select(deletions.c.memory_key).where(deletions.c.seq > seq),\n",
        "            select(deletions.c.memory_key).where(deletions.c.seq < 0),\n",
        "tests/search/test_key_sets.py",
    ),
    Bug(
        "what was forgotten is not told",
        "kronos/repository/history.py",
        "        self._connection.execute(update(store).values(pruned_seq=seq))\n",
        "",
        "tests/search/test_key_sets.py",
    ),
    Bug(
        "the past is not what was changed since",
        "kronos/repository/rows.py",
        "            select(versions.c.memory_key).where(versions.c.replaced_at > moment),\n",
        "            select(versions.c.memory_key).where(versions.c.replaced_at < 0),\n",
        "tests/search/test_key_sets.py tests/repository/test_history.py",
    ),
    Bug(
        "a filter is looked for under the index's lock",
        "kronos/search/key_sets.py",
        "        if known is None:\n            raise NotAtHand(asked)\n",
        "        if known is None:\n            known = self.learn(repository, asked)\n",
        "tests/maintenance/test_costs.py",
    ),
    Bug(
        "the full-text index is compared under the write lock",
        "kronos/maintenance/check.py",
        "            indexes.copy_aside(connection)\n",
        "",
        "tests/maintenance/test_costs.py",
    ),
    Bug(
        "a group of few is not looked for",
        "kronos/search/answer.py",
        "        more = self._retrieval.pool(size, others) if others.size else None\n",
        "        more = None\n",
        "tests/search/test_groups.py",
    ),
    Bug(
        "a linked memory is not held to the filter",
        "kronos/store/answering/judging.py",
        "allowed = rows.keys(selection.scope, selection.condition, among=among)",
        "allowed = rows.keys(None, None, among=among)",
        "tests/search/test_linked_and_near.py",
    ),
]


def plant(bug: Bug, copy: Path) -> None:
    """Put a bug into a copy of the sources."""
    file = copy / bug.file
    text = file.read_text()
    if text.count(bug.right) != 1:
        raise SystemExit(f"{bug.name}: its place in {bug.file} is gone; look for the new one")
    file.write_text(text.replace(bug.right, bug.wrong))


def caught_by(bug: Bug) -> str | None:
    """The first test that fails with a bug, or None."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for folder in ("kronos", "migrations", "tests", "benchmarks", "docs"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
        for file in ("pyproject.toml", "README.md", "alembic.ini"):
            shutil.copy(ROOT / file, copy)
        plant(bug, copy)
        command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["--hypothesis-profile", "unshrunk"]
        try:
            done = subprocess.run(
                [*command, *bug.tests.split()],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy)},
                capture_output=True,
                text=True,
                timeout=400,
            )
        except subprocess.TimeoutExpired:
            return "a test that hangs"
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        return found[1] if found else None


def main() -> None:
    """Plant each bug, and say what caught it."""
    missed = 0
    for bug in BUGS:
        if len(sys.argv) > 1 and bug.name not in sys.argv[1:]:
            continue
        test = caught_by(bug)
        missed += test is None
        sys.stdout.write(f"{bug.name}: {test or 'NOT CAUGHT'}\n")
        sys.stdout.flush()
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
