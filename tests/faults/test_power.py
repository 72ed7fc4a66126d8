"""The power fails in everything that writes: full loses nothing acknowledged, normal stays whole.

Every moment takes many minutes (`python -m tests.faults.power`), so here it is some of them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.faults.disk import NOTHING
from tests.faults.power import STORE, Cuts, Recording, record
from tests.faults.walk import Zygote, build_shim

_MOMENTS = 16

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shim is for Linux")


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    try:
        shim = build_shim(tmp_path_factory.mktemp("shim"))
    except FileNotFoundError:
        pytest.skip("no C compiler")
    zygote = Zygote(shim)
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def full(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(zygote, tmp_path_factory.mktemp("full"), "full")


@pytest.fixture(scope="module")
def normal(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(zygote, tmp_path_factory.mktemp("normal"), "normal")


def some(recording: Recording) -> list[int]:
    return random.Random(7).sample(recording.moments(), _MOMENTS)


def test_a_power_cut_loses_nothing_acknowledged(
    zygote: Zygote, full: Recording, tmp_path: Path
) -> None:
    found = Cuts(zygote, tmp_path, full).at(some(full))
    assert found.disks > _MOMENTS
    assert found.violations == []


def test_a_power_cut_leaves_an_older_state_whole_when_durability_is_normal(
    zygote: Zygote, normal: Recording, tmp_path: Path
) -> None:
    found = Cuts(zygote, tmp_path, normal).at(some(normal))
    assert found.disks > _MOMENTS
    assert found.violations == []


def test_every_acknowledged_write_was_synced(full: Recording, normal: Recording) -> None:
    assert min(full.syncs()) >= 1
    # Two more for a checkpoint and one for the log that begins anew: no more than that.
    assert max(full.syncs()) <= 4
    assert min(normal.syncs()) == 0


@pytest.mark.parametrize(
    ("unsynced", "call"),
    [
        (STORE / "kronos.db-wal", "update"),
        (STORE / "kronos.db.mine.*.part", "backup"),
        (STORE, "backup"),
        (STORE.parent, "update"),
    ],
)
def test_a_sync_that_does_nothing_is_found_out(
    zygote: Zygote, full: Recording, tmp_path: Path, unsynced: Path, call: str
) -> None:
    found = Cuts(zygote, tmp_path, full).at(
        full.returned(call), [NOTHING], syncs=lambda path: not fnmatch(str(path), str(unsynced))
    )
    assert found.violations != []


def test_an_index_that_was_never_synced_is_made_anew(
    zygote: Zygote, full: Recording, tmp_path: Path
) -> None:
    found = Cuts(zygote, tmp_path, full).at(
        full.returned("snapshot"), syncs=lambda path: "index" not in path.parts
    )
    assert found.violations == []


def test_an_index_of_changes_that_the_cut_undid_is_not_followed(
    zygote: Zygote, normal: Recording, tmp_path: Path
) -> None:
    moments = normal.returned("snapshot")
    found = Cuts(zygote, tmp_path, normal).at(moments, [NOTHING], write_first=True)
    assert found.violations == []
