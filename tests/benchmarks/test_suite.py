"""The suite, run on a few hundred vectors by real peers; no assertion is on a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.data import Data
from benchmarks.driver import Failed, Process
from benchmarks.peers import REQUIRED, is_installed, peer
from benchmarks.suite import SHARES, Truth, run
from benchmarks.worker import Worker

PEERS = [
    name for name in ("kronos", "faiss-flat", "faiss-hnsw", "sqlite-vec") if is_installed(name)
]
EXACT = [name for name in PEERS if name != "faiss-hnsw"]
FULL = [name for name in PEERS if not name.startswith("faiss")]


@pytest.fixture(scope="module")
def figures(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run says of each peer."""
    return run(PEERS, data, tmp_path_factory.mktemp("stores"), lambda _: None)


def test_no_peer_fails(figures: dict[str, Any]) -> None:
    assert [*figures] == PEERS
    assert {name: each["failed"] for name, each in figures.items() if "failed" in each} == {}


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_peer_finds_the_truth(figures: dict[str, Any], name: str) -> None:
    found = figures[name]
    assert found["recall"] == found["batch_recall"] == 1
    assert found["least_hits"] == 10
    assert found["fresh_found"] == 1


@pytest.mark.parametrize("name", FULL)
def test_a_full_store_finds_the_truth_under_filters(figures: dict[str, Any], name: str) -> None:
    filters = figures[name]["filters"]
    assert {*filters} == {str(share) for share in SHARES}
    assert [each["recall"] for each in filters.values()] == [1, 1, 1]


@pytest.mark.parametrize("name", EXACT)
def test_what_was_deleted_is_not_found(figures: dict[str, Any], name: str) -> None:
    assert figures[name]["after_deletes"] == {"dead": 0, "least_hits": 10, "recall": 1}


def test_what_a_peer_cannot_do_is_said_and_the_rest_is_measured(figures: dict[str, Any]) -> None:
    found = figures["faiss-hnsw"]
    assert found["filters_failed"] == "it keeps no metadata"
    assert found["deletes_failed"] == "a graph of FAISS deletes nothing"
    assert "singles_per_s" not in found  # it syncs nothing
    assert found["disk_bytes"] > 400 * 384 * 4


def test_a_graph_is_tried_harder_until_it_finds_enough(figures: dict[str, Any]) -> None:
    found = figures["faiss-hnsw"]
    efforts = [point["effort"] for point in found["curve"]]
    assert efforts == found["efforts"][: len(efforts)]
    enough = [point["effort"] for point in found["curve"] if point["recall"] >= 0.97]
    assert found["effort"] == enough[0]


def test_writes_one_by_one_are_timed_and_leave_nothing(figures: dict[str, Any]) -> None:
    for name in FULL:
        assert figures[name]["singles_per_s"] > 0
    assert figures["kronos"]["at_once_per_s"] > 0
    assert "at_once_failed" in figures["faiss-flat"]


def test_only_some_parts_can_be_measured(data: Data, tmp_path: Path) -> None:
    found = run(["faiss-flat"], data, tmp_path, lambda _: None, ["search"])["faiss-flat"]
    assert found["recall"] == 1
    assert "after_deletes" not in found
    assert "filters_failed" not in found


def test_a_peer_that_cannot_start_says_why(tmp_path: Path) -> None:
    process = Process("faiss-flat", tmp_path / "store", tmp_path / "no-data")
    try:
        with pytest.raises(Failed, match=r"FileNotFoundError.*no-data"):
            process("about")
    finally:
        process.end()


def test_a_worker_adds_asks_and_deletes(data: Data, tmp_path: Path) -> None:
    worker = Worker(peer("faiss-flat"), tmp_path, data)
    worker.open()
    worker.fill()
    query = data.queries()[0]
    best = np.argsort(-(data.rows() @ query))
    assert worker.search(0, 1, 10)["ids"] == [best[:10].tolist()]
    assert worker.many(0, 1, 10)["ids"] == [best[:10].tolist()]
    worker.delete(10)
    left = [id for id in best.tolist() if id % 10]
    assert worker.search(0, 1, 10)["ids"] == [left[:10]]
    worker.singles(3)
    assert worker.search(0, 1, 10)["ids"] == [left[:10]]
    worker.close()
    assert worker.disk() == (tmp_path / "index.faiss").stat().st_size


def test_recall_is_the_share_of_the_nearest_that_were_found() -> None:
    rows = np.eye(20, 384, dtype=np.float32)
    rows[:, 0] += np.arange(20) / 100  # the later, the nearer to the first axis, but for the first
    truth = Truth(rows, rows[:1], np.arange(20))
    truth.learn("all")
    truth.learn("even", np.arange(20) % 2 == 0)
    assert truth.recall("all", [[0, *range(11, 20)]]) == 1
    assert truth.recall("all", [[0, 19, 18, 1, 2]]) == pytest.approx(0.3)
    assert truth.recall("even", [[*range(0, 20, 2)]]) == 1
    assert truth.recall("even", [[*range(11, 20)]]) == pytest.approx(0.4)


def test_a_row_that_is_as_near_is_as_good_but_not_twice() -> None:
    rows = np.eye(20, 384, dtype=np.float32)
    rows[:, 0] += 1  # all but the first are equally near to the first axis
    truth = Truth(rows, np.eye(1, 384, dtype=np.float32), np.arange(20))
    truth.learn("all")
    assert truth.recall("all", [[*range(10)]]) == truth.recall("all", [[0, *range(11, 20)]]) == 1
    assert truth.recall("all", [[0, *[5] * 9]]) == pytest.approx(0.2)
    assert truth.recall("all", [[10**9, *range(9)]]) == pytest.approx(0.9)


def test_the_command_writes_what_it_found_and_keeps_other_sizes(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REQUIRED, "txtai", "a_module_that_nobody_has")
    out = tmp_path / "results" / "store.json"
    for size in ("200", "300"):
        command.main(
            [
                *("--data", "nowhere", "--cache", str(cache), "--out", str(out)),
                *("--sizes", size, "--only", "search", "--peers", "faiss-flat", "txtai"),
            ]
        )
    assert "txtai is not installed, and left out" in capsys.readouterr().out
    text = out.read_text("utf-8")
    sizes = json.loads(text)["sizes"]
    assert [*sizes] == ["200", "300"]
    assert sizes["300"]["peers"]["faiss-flat"]["recall"] == 1
    assert sizes["300"]["machine"]["versions"]["numpy"] == np.__version__
    assert str(cache) not in text
