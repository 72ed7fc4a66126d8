"""The layered index alone: builds beside searches, dead rows, recall, its bytes."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kronos.errors import ConfigurationError, SnapshotError
from kronos.index.exact import ExactIndex
from kronos.index.faiss.flat import FaissIndex
from kronos.index.faiss.graph import Graph
from kronos.index.faiss.rows import bits_of
from kronos.index.layered import LayeredIndex
from kronos.index.part import Part
from kronos.index.policy import IndexPolicy
from kronos.index.tuning import EFFORTS, TuningResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from kronos.types import Vectors

DIM = 24
POLICY = IndexPolicy(flat_below=500, tail_least=100, rows_for_step=4)
"""Searches the graph in small indexes too."""


def rows(count: int, seed: int) -> Vectors:
    """Unit vectors about 50 centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((50, DIM))
    made = centres[rng.integers(0, 50, count)] + rng.standard_normal((count, DIM))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def build(index: LayeredIndex) -> None:
    made = index.begin_build()
    assert made.run()
    assert index.finish_build(made)


def built(count: int = 2000, policy: IndexPolicy = POLICY) -> LayeredIndex:
    index = LayeredIndex(DIM, device="cpu", policy=policy)
    index.upsert(np.arange(count), rows(count, 1))
    build(index)
    return index


def copied(index: LayeredIndex) -> ExactIndex:
    exact = ExactIndex(DIM)
    exact.upsert(keys := index.keys(), index.vectors_of(keys))
    return exact


def recall(index: LayeredIndex, exact: ExactIndex, k: int = 10, allowed: Any = None) -> float:
    queries = rows(60, 77)
    scores, found = index.search(queries, k, allowed=allowed)
    best, wanted = exact.search(queries, k, allowed=allowed)
    assert found.shape == wanted.shape
    assert (scores <= best + 1e-5).all()
    pairs = zip(found.tolist(), wanted.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) if b else 1 for a, b in pairs]))


def assert_same(index: LayeredIndex, exact: ExactIndex) -> None:
    assert len(index) == len(exact)
    np.testing.assert_array_equal(index.keys(), exact.keys())
    np.testing.assert_array_equal(index.vectors_of(exact.keys()), exact.vectors_of(exact.keys()))


@pytest.mark.parametrize("seed", range(6))
def test_a_random_walk_equals_the_exact_index(seed: int) -> None:
    rng = np.random.default_rng(seed)
    index, exact = LayeredIndex(DIM, device="cpu", policy=POLICY), ExactIndex(DIM)
    pending: Any = None
    recalls, kinds = [], set()
    for step in range(40):
        keys = np.unique(rng.integers(0, 4000, int(rng.integers(1, 300))))
        if rng.random() < 0.3:
            assert index.remove(keys) == exact.remove(keys)
        else:
            vectors = rows(keys.size, 1000 * seed + step)
            index.upsert(keys, vectors)
            exact.upsert(keys, vectors)
        if pending is not None:  # what it was made of has changed since
            index.finish_build(pending)
            pending = None
        elif index.build_is_due:
            pending = index.begin_build()
            assert pending.run()
        if rng.random() < 0.1:
            index = LayeredIndex.from_bytes(
                b"".join(index.to_buffers()), DIM, device="cpu", policy=POLICY
            )
        if rng.random() < 0.1:
            index = index.compacted()
        kinds.add(index.kind)
        assert_same(index, exact)
        allowed = rng.choice(4000, 1500, replace=False)
        recalls += [recall(index, exact), recall(index, exact, allowed=allowed)]
        assert recall(index, exact, allowed=allowed[:40]) == 1
    assert kinds == {"faiss-flat", "faiss-hnsw"}
    assert np.mean(recalls) >= 0.97


@pytest.mark.parametrize("percent", [1, 10, 30, 50, 90])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_filtered_searches_find_all_that_is_allowed(percent: int, k: int) -> None:
    index = built(6000)
    index.remove(np.arange(0, 6000, 7))
    index.upsert(np.arange(3000, 3050), rows(50, 5))
    allowed = np.flatnonzero(np.random.default_rng(3).random(6000) * 100 < percent)
    assert recall(index, copied(index), k, allowed) >= 0.99


@pytest.mark.parametrize("read_only", [True, False])
def test_a_repeated_filter_follows_the_writes(read_only: bool) -> None:
    index = built(6000)
    allowed = np.flatnonzero(np.random.default_rng(3).random(6000) < 0.3)
    allowed.flags.writeable = not read_only
    writes: list[Callable[[], object]] = [
        lambda: None,
        lambda: index.remove(allowed[:500]),
        lambda: index.upsert(allowed[400:700], rows(300, 5)),
        lambda: build(index),
        lambda: index.remove(allowed[:600]),
    ]
    for number, write in enumerate(writes):
        write()
        for _ in range(2):
            assert recall(index, copied(index), allowed=allowed) >= 0.98, number


def test_a_filter_array_changed_in_place_is_looked_up_again() -> None:
    index = built(6000)
    allowed = np.arange(0, 2000)
    assert recall(index, copied(index), allowed=allowed) >= 0.98
    allowed += 2000
    assert recall(index, copied(index), allowed=allowed) >= 0.98
    _, found = index.search(rows(60, 77), 10, allowed=allowed)
    assert found.min() >= 2000


def test_each_of_many_short_lived_filters_uses_its_own_keys() -> None:
    index, rng = built(3000), np.random.default_rng(4)
    for _ in range(60):  # arrays that are gone leave their identity to others
        allowed = np.flatnonzero(rng.random(3000) < 0.2)
        allowed.flags.writeable = False
        _, found = index.search(rows(5, 6), 10, allowed=allowed)
        assert np.isin(found, allowed).all()
        assert found.shape == (5, 10)


@pytest.mark.parametrize("k", [1, 10, 100, 1000, 5000, 7000])
def test_any_number_of_neighbours_is_found(k: int) -> None:
    index = built(6000)
    assert recall(index, copied(index), k) >= 0.97


def test_all_live_rows_are_found_when_nearly_all_are_dead() -> None:
    index = built()
    index.remove(np.arange(1990))
    _, keys = index.search(rows(3, 9), 10)
    assert (np.sort(keys) == np.arange(1990, 2000)).all()
    index.remove(np.arange(2000))
    assert index.search(rows(3, 9), 10)[1].shape == (3, 0)
    build(index)
    assert (len(index), index.kind) == (0, "faiss-flat")


def test_all_rows_are_compared_if_a_graph_leads_to_too_few() -> None:
    index = LayeredIndex(DIM, device="cpu", policy=replace(POLICY, rows_for_step=0))
    index.upsert(np.arange(2000), np.repeat(rows(40, 1), 50, axis=0))  # linked among themselves
    build(index)
    queries, exact = rows(5, 9), copied(index)
    _, led = index._parts[0].rows.search(queries, 1000, 2000, None)  # type: ignore[attr-defined]
    assert (led < 0).any()
    scores, keys = index.search(queries, 1000)
    assert [len(set(row)) for row in keys.tolist()] == [1000] * 5
    np.testing.assert_allclose(scores, exact.search(queries, 1000)[0], atol=1e-5)


def test_a_write_is_found_at_once_while_a_build_runs_and_after_it() -> None:
    index = built()
    index.upsert(np.arange(2000, 2200), rows(200, 2))
    made = index.begin_build()
    new = rows(3, 50)
    index.upsert(np.array([5, 2100, 9000]), new)  # of the graph, of the frozen tail, and a new one
    index.remove(np.array([6, 2101]))
    for finish in (lambda: None, made.run, lambda: index.finish_build(made)):
        finish()
        assert index.search(new, 1)[1][:, 0].tolist() == [5, 2100, 9000]
        assert not index.contains(np.array([6, 2101])).any()
        assert len(index) == 2199
        assert not np.isin([6, 2101], index.search(rows(1, 1), 2199)[1]).any()
        np.testing.assert_array_equal(index.vectors_of(np.array([9000, 5, 2100])), new[[2, 0, 1]])


def test_searches_and_writes_go_on_beside_a_build() -> None:
    index, exact = built(4000), ExactIndex(DIM)
    exact.upsert(np.arange(4000), rows(4000, 1))
    keys = np.arange(4000, 8000)
    index.upsert(keys, rows(4000, 8))
    exact.upsert(keys, rows(4000, 8))
    made = index.begin_build()
    thread = threading.Thread(target=made.run)
    thread.start()
    step = 0
    while thread.is_alive():
        changed = np.random.default_rng(step).choice(9000, 50, replace=False)
        vectors = rows(50, 200 + step)
        for each in (index, exact):
            each.remove(changed[:20])
            each.upsert(changed[20:], vectors[20:])
        found = index.search(vectors[20:], 1)[1][:, 0]
        assert np.isin(changed[20:], found).mean() > 0.95
        step += 1
    thread.join()
    assert index.finish_build(made)
    assert_same(index, exact)
    assert recall(index, exact) >= 0.97


def test_a_stopped_build_changes_nothing() -> None:
    index = built()
    index.upsert(np.arange(2000, 4000), rows(2000, 2))
    exact = copied(index)
    asked: list[bool] = []

    def stopped() -> bool:
        asked.append(len(asked) > 2)
        return asked[-1]

    half = index.begin_build()
    assert not half.run(stopped)
    assert not index.finish_build(half)
    assert_same(index, exact)
    assert index.build_is_due
    build(index)
    assert not index.build_is_due
    assert_same(index, exact)


def test_a_build_whose_parts_are_gone_is_rejected() -> None:
    index = built()
    index.upsert(np.arange(2000, 2200), rows(200, 2))
    first, second = index.begin_build(), index.begin_build()
    assert first.run()
    assert second.run()
    assert index.finish_build(second)
    assert not index.finish_build(first)
    assert len(index) == 2200


def test_rows_frozen_while_another_build_ran_stay() -> None:
    index = built()
    index.upsert(np.arange(2000, 2200), rows(200, 2))
    first = index.begin_build()
    index.upsert(np.arange(2200, 2400), rows(200, 3))
    index.begin_build()
    assert first.run()
    assert index.finish_build(first)
    assert index.keys().tolist() == list(range(2400))
    assert recall(index, copied(index)) >= 0.97


def test_a_tail_is_merged_and_a_worn_graph_is_rebuilt() -> None:
    index = built()
    index.upsert(np.arange(2000, 2150), rows(150, 2))
    merge = index.begin_build()
    assert not merge.is_from_scratch
    assert merge.run()
    assert index.finish_build(merge)
    index.remove(np.arange(500))
    assert index.build_is_due
    rebuild = index.begin_build()
    assert rebuild.is_from_scratch
    assert rebuild.run()
    assert index.finish_build(rebuild)
    assert len(b"".join(index.to_buffers())) < len(b"".join(built(2000).to_buffers()))
    assert recall(index, copied(index)) >= 0.97


def test_the_policy_tells_when_to_build() -> None:
    index = LayeredIndex(DIM, device="cpu", policy=POLICY)
    index.upsert(np.arange(499), rows(499, 1))
    assert not index.build_is_due
    index.upsert(np.array([499]), rows(1, 2))
    assert index.build_is_due
    build(index)
    assert (index.build_is_due, index.kind) == (False, "faiss-hnsw")
    index.upsert(np.arange(99), rows(99, 2))
    assert not index.build_is_due
    index.upsert(np.array([99]), rows(1, 3))
    assert index.build_is_due
    never = LayeredIndex(DIM, device="cpu", policy=IndexPolicy.of("flat"))
    never.upsert(np.arange(2000), rows(2000, 1))
    assert not never.build_is_due


def test_a_flat_index_and_a_layered_one_read_each_others_bytes() -> None:
    flat = FaissIndex(DIM)
    flat.upsert(np.arange(2000), rows(2000, 1))
    index = LayeredIndex.from_bytes(b"".join(flat.to_buffers()), DIM, device="cpu", policy=POLICY)
    assert b"".join(index.to_buffers()) == b"".join(flat.to_buffers())
    build(index)
    index.remove(np.arange(100))
    index.upsert(np.arange(50), rows(50, 2))
    never = IndexPolicy.of("flat")
    back = LayeredIndex.from_bytes(b"".join(index.to_buffers()), DIM, device="cpu", policy=never)
    assert back.kind == "faiss-flat"
    assert_same(back, copied(index))


def test_a_graph_is_read_from_bytes_without_a_build() -> None:
    index = built()
    index.remove(np.arange(0, 2000, 9))
    index.upsert(np.arange(0, 300, 2), rows(150, 4))
    data = b"".join(index.to_buffers())
    back = LayeredIndex.from_bytes(data, DIM, device="cpu", policy=POLICY)
    assert b"".join(back.to_buffers()) == data
    assert back.kind == "faiss-hnsw"
    for each in zip(back.search(rows(9, 3), 10), index.search(rows(9, 3), 10), strict=True):
        np.testing.assert_array_equal(*each)
    assert_same(back, copied(index))


@pytest.mark.parametrize("copies", [40, 1000])
def test_many_rows_with_the_same_vector_are_found_from_everywhere(copies: int) -> None:
    distinct = rows(6000 // copies + 200, 8)
    vectors = np.repeat(distinct, copies, axis=0)[np.random.default_rng(1).permutation(6000)]
    index = LayeredIndex(DIM, device="cpu", policy=POLICY)
    index.upsert(np.arange(3000), vectors[:3000])
    build(index)
    index.upsert(np.arange(3000, 6000), vectors[3000:])  # copies of what is linked already
    build(index)
    assert not index.build_is_due
    index.remove(np.arange(0, 6000, 5))
    index.upsert(np.arange(100, 200), rows(100, 9))
    exact = copied(index)
    queries = rows(100, 78)
    scores, _ = index.search(queries, 10)  # which of several that are equally near is left open
    wanted, _ = exact.search(queries, 10)
    assert (scores >= wanted[:, -1:] - 1e-5).mean() >= 0.97
    assert_same(index, exact)
    back = LayeredIndex.from_bytes(b"".join(index.to_buffers()), DIM, device="cpu", policy=POLICY)
    assert_same(back, exact)
    build(back)
    assert not back.build_is_due
    assert_same(back, exact)


def test_buffers_do_not_change_with_the_index() -> None:
    index = built()
    before = b"".join(index.to_buffers())
    buffers = index.to_buffers()
    index.remove(np.arange(0, 2000, 9))
    index.upsert(np.arange(0, 300, 2), rows(150, 4))
    build = index.begin_build()
    assert build.run()
    assert index.finish_build(build)
    del index, build
    gc.collect()
    others = [rows(2000, 5) for _ in range(20)]  # take the memory, if it was given back
    assert b"".join(buffers) == before
    del others


def test_a_build_copies_a_graph_that_is_read_in_place() -> None:
    data = b"".join(built().to_buffers())
    kept = bytes(data)
    back = LayeredIndex.from_bytes(data, DIM, device="cpu", policy=POLICY, known=True)
    back.upsert(np.arange(5000, 5500), rows(500, 4))
    back.remove(np.arange(100))
    exact = copied(back)
    build = back.begin_build()
    assert build.run()
    assert back.finish_build(build)
    assert_same(back, exact)
    assert recall(back, exact) >= 0.97
    assert data == kept


CODED = ("HNSW8,SQ8", "HNSW8,SQ4", "HNSW8,SQfp16", "HNSW8,SQbf16")
LISTS = ("IVF10,Flat", "IVF10,SQ8", "IVF10,RaBitQ")


@pytest.mark.parametrize("main", [*CODED, *LISTS])
def test_encoded_rows_are_found_with_exact_scores(main: str) -> None:
    policy = replace(POLICY, main=main, search_effort=10 if main in LISTS else 64)
    index = built(4000, policy)
    index.remove(np.arange(0, 4000, 11))
    index.upsert(np.arange(100, 400), rows(300, 5))
    index.upsert(np.arange(9000, 9050), rows(50, 6))
    assert index.kind == "faiss-coded"
    exact = copied(index)
    least = 0.5 if main.endswith("RaBitQ") else 0.97  # one bit a number, of 24 numbers
    for allowed in (None, np.arange(0, 4000, 3), np.arange(50, 99)):
        assert recall(index, exact, allowed=allowed) >= least
    query = rows(1, 99)
    scores, found = index.search(query, 30)
    np.testing.assert_allclose(scores[0], exact.vectors_of(found[0]) @ query[0], atol=1e-6)
    back = LayeredIndex.from_bytes(
        b"".join(index.to_buffers()), DIM, device="cpu", policy=policy, known=True
    )
    assert_same(back, exact)
    np.testing.assert_array_equal(back.search(query, 30)[1], found)
    build(back)  # what came since is merged into codes that were read
    assert len(back._tail) == 0
    assert_same(back, exact)
    assert recall(back, exact) >= least


@pytest.mark.parametrize("main", ["HNSW8,SQ8", "IVF10,Flat"])
def test_a_compacted_index_of_coded_rows_holds_nothing_of_a_removed_key(main: str) -> None:
    index = built(2000, replace(POLICY, main=main))
    assert index.compacted().kind == "faiss-coded"
    old = index.vectors_of(np.arange(30))
    index.remove(np.arange(30))
    compacted = index.compacted()
    data = b"".join(compacted.to_buffers())
    assert not [row for row in old if row.tobytes() in data]
    assert_same(compacted, copied(index))
    assert compacted.kind == "faiss-flat"  # until the next build
    assert compacted.build_is_due


def test_a_main_part_of_another_kind_than_the_policys_is_rebuilt() -> None:
    index = built()
    data = b"".join(index.to_buffers())
    policy = replace(POLICY, main="IVF10,SQ8", search_effort=10)
    back = LayeredIndex.from_bytes(data, DIM, device="cpu", policy=policy)
    assert back.kind == "faiss-hnsw"
    assert back.build_is_due
    build(back)
    assert back.kind == "faiss-coded"
    assert not back.build_is_due
    assert_same(back, copied(index))


def test_codes_that_do_not_fit_their_rows_are_refused() -> None:
    policy = replace(POLICY, main="HNSW8,SQ8")
    data = b"".join(built(600, policy).to_buffers())
    other = b"".join(built(601, policy).to_buffers())
    words = np.frombuffer(data[8:56], "<i8")  # dim, rows, alive, name, 0, codes
    start = 128 + 600 * 8 + 128 + 64
    codes = slice(start, start + int(words[5]))
    foreign = slice(128 + 4864 + 128 + 64, None)
    for damaged in (
        data[:-1],
        data[: codes.start] + b"IxXX" + data[codes.start + 4 :],
        data[: codes.start] + other[foreign][: int(words[5])] + data[codes.stop :],
    ):
        with pytest.raises(SnapshotError):
            LayeredIndex.from_bytes(damaged, DIM, device="cpu", policy=policy)


def test_an_index_that_faiss_cannot_make_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="cannot make index="):
        LayeredIndex(DIM, device="cpu", policy=replace(POLICY, main="HNSW16,Nonsense"))


def test_bytes_of_a_graph_that_do_not_fit_are_refused() -> None:
    index = built(600)
    index.upsert(np.array([7000]), rows(1, 2))
    data = b"".join(index.to_buffers())
    words = np.frombuffer(data[8:56], "<i8")  # dim, rows, alive, width, entry, neighbours

    def changed(place: int, value: int) -> bytes:
        other = words.copy()
        other[place] = value
        return b"".join([data[:8], other.tobytes(), data[56:]])

    keys = 128  # each array begins at a multiple of 64
    levels = keys + 600 * 8 + 128
    links = levels + 600 * 4 + 32
    for damaged in (
        data[:20],
        data[:-1],
        data + b"\0",
        changed(0, 25),
        changed(1, -1),
        changed(1, 601),
        changed(2, 599),
        changed(3, 17),
        changed(3, 10**12),
        changed(4, 600),
        changed(4, -1),
        changed(5, int(words[5]) - 1),
        data[:keys] + data[keys + 8 : keys + 16] + data[keys + 8 :],
        data[:levels] + b"\0\0\0\0" + data[levels + 4 :],
        data[:levels] + b"\x7f\0\0\0" + data[levels + 4 :],
        data[:links] + b"\xff\xff\0\0" + data[links + 4 :],
        data[:links] + b"\xfe\xff\xff\xff" + data[links + 4 :],
        data.replace(np.int64(7000).tobytes(), np.int64(3).tobytes()),
    ):
        with pytest.raises(SnapshotError):
            LayeredIndex.from_bytes(damaged, DIM, device="cpu", policy=POLICY)


@pytest.mark.parametrize("gone", [100, 1500])
def test_a_compacted_index_holds_no_vector_of_a_removed_key(gone: int) -> None:
    index = built()
    old = index.vectors_of(np.arange(gone))
    index.remove(np.arange(gone - 20))
    index.upsert(np.arange(gone - 20, gone), rows(20, 6))
    index.upsert(np.arange(5000, 5010), rows(10, 7))
    exact = copied(index)
    compacted = index.compacted()
    data = b"".join(compacted.to_buffers())
    assert not [row for row in old if row.tobytes() in data]
    assert_same(compacted, exact)
    assert recall(compacted, exact) >= 0.97
    assert recall(LayeredIndex.from_bytes(data, DIM, device="cpu", policy=POLICY), exact) >= 0.97


def test_compacting_does_not_change_the_index_itself() -> None:
    index = built()
    index.remove(np.arange(100))
    before = b"".join(index.to_buffers())
    index.compacted().upsert(np.arange(100), rows(100, 3))
    assert b"".join(index.to_buffers()) == before


@pytest.mark.parametrize(
    ("name", "links", "has_main", "flat_below"),
    [
        ("auto", 24, True, 10_000),
        ("flat", 24, False, 2**62),
        ("HNSW32", 32, True, 10_000),
        ("HNSW32,SQ8", None, True, 10_000),
        ("IVF1024,SQfp16", None, True, 40_960),
    ],
)
def test_a_setting_names_a_policy(name: str, links: int, has_main: bool, flat_below: int) -> None:
    policy = IndexPolicy.of(name)
    assert (policy.links, policy.has_main, policy.flat_below) == (links, has_main, flat_below)


def test_harder_searches_find_more() -> None:
    found = []
    for effort in (1, 400):
        index = built(6000, replace(POLICY, search_effort=effort, rows_for_step=0))
        found.append(recall(index, copied(index)))
    assert found[0] < found[1]
    assert found[1] >= 0.999


def test_tuning_finds_the_least_sufficient_effort() -> None:
    index = built(6000, replace(POLICY, rows_for_step=0))
    index.remove(np.arange(0, 6000, 9))
    tuning = index.begin_tuning()
    assert tuning is not None
    asked = [tuning.run(target) for target in (0.5, 0.9, 0.999, 2)]
    found = [each for each in asked if each is not None]
    efforts = [each.effort for each in found]
    assert efforts == sorted(efforts)
    assert efforts[-1] == EFFORTS[-1]
    for each, target in zip(found[:3], (0.5, 0.9, 0.999), strict=True):
        assert each.recall >= target
    index.tune(found[2])
    assert recall(index, copied(index)) >= 0.98
    back = LayeredIndex.from_bytes(b"".join(index.to_buffers()), DIM, device="cpu", policy=POLICY)
    assert (back.tuned, back.policy.search_effort) == (found[2], found[2].effort)
    assert index.compacted().tuned == found[2]
    build(index)
    assert index.tuned == found[2]


def test_an_effort_that_compares_all_rows_is_exact() -> None:
    policy = replace(POLICY, rows_for_step=400, search_effort=10)
    index = built(6000, policy)
    tuning = index.begin_tuning()
    assert tuning is not None
    assert tuning.run(1.0) == TuningResult(EFFORTS[0], 1.0)
    index.tune(TuningResult(EFFORTS[0], 1.0))
    assert recall(index, copied(index)) == 1


def test_any_of_several_equally_near_memories_counts_as_found() -> None:
    index = LayeredIndex(DIM, device="cpu", policy=replace(POLICY, rows_for_step=0))
    index.upsert(np.arange(2400), np.repeat(rows(200, 1), 12, axis=0))
    build(index)
    tuning = index.begin_tuning()
    assert tuning is not None
    tuned = tuning.run(1.0)
    assert tuned is not None
    assert tuned.recall == 1


def test_measured_recall_holds_for_queries_that_are_not_memories() -> None:
    vectors = np.random.default_rng(0).standard_normal((6000, 48)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, memories = vectors[:200], vectors[200:]
    index = LayeredIndex(48, device="cpu", policy=replace(POLICY, rows_for_step=0))
    index.upsert(np.arange(len(memories)), memories)
    build(index)
    tuning = index.begin_tuning()
    assert tuning is not None
    for target in (0.7, 0.8, 0.9):
        tuned = tuning.run(target)
        assert tuned is not None
        index.tune(tuned)
        scores, _ = index.search(queries, 10)
        best = np.sort(queries @ memories.T, axis=1)[:, :-11:-1]
        found = np.mean(scores >= best[:, -1:] - 1e-5)
        assert abs(found - tuned.recall) < 0.05


def test_an_exact_index_needs_no_tuning_and_tuning_can_be_stopped() -> None:
    index = LayeredIndex(DIM, device="cpu", policy=POLICY)
    index.upsert(np.arange(600), rows(600, 1))
    assert index.begin_tuning() is None
    build(index)
    tuning = index.begin_tuning()
    assert tuning is not None
    assert tuning.run(0.9, lambda: True) is None
    index.remove(np.arange(1, 600))
    alone = index.begin_tuning()
    assert alone is not None
    assert alone.run(0.98) == TuningResult(EFFORTS[0], 1.0)


def test_a_graph_that_leads_to_too_few_rows_is_not_trusted() -> None:
    """The allowed rows are far from the query, beyond the reach of such a small effort."""
    graph, vectors = Graph(DIM, width=8, effort=40), rows(2000, 4)
    graph.add(vectors)
    far = np.sort(np.argsort(vectors @ vectors[0])[:10])
    allowed = bits_of(far, 2000)
    assert graph.search(vectors[:1], 10, 10, allowed)[1].min() < 0, "it finds fewer"
    scores, keys = Part(np.arange(5000, 7000), graph)._search_rows(vectors[:1], 10, 10, allowed)
    assert sorted(keys[0].tolist()) == (5000 + far).tolist()
    assert scores[0] == pytest.approx(np.sort(vectors[far] @ vectors[0])[::-1], abs=1e-5)
