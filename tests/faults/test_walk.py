"""A fault at system calls that write, in everything that writes: nothing is lost, nothing is left.

Every call takes many minutes (`python -m tests.faults.walk`), so here it is every so many, with
another beginning for each operation.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator

import pytest

from tests.faults.walk import (
    FAIL_ON,
    FAIL_ONCE,
    KILL_BEFORE,
    KILL_WITHIN,
    OPERATIONS,
    Walk,
    Zygote,
    build_shim,
)

_FAULTS = 14
"""About so many points an operation."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shim is for Linux")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("walk")
    try:
        shim = build_shim(folder)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    zygote = Zygote(shim)
    yield Walk(zygote, folder)
    zygote.close()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_write_leaves_all_or_nothing(walk: Walk, operation: str) -> None:
    found = walk.through(operation, [(KILL_WITHIN, 0), (KILL_BEFORE, 0)], points=_FAULTS)
    assert found.attempts >= min(found.points, _FAULTS) > 0
    assert found.violations == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_failing_disk_is_named_and_loses_nothing(walk: Walk, operation: str, number: int) -> None:
    found = walk.through(operation, [(FAIL_ONCE, number), (FAIL_ON, number)], points=_FAULTS // 2)
    assert found.attempts > 0
    assert found.violations == []


@pytest.mark.parametrize("operation", ["insert", "snapshot", "close"])
def test_a_kill_in_the_recovery_from_a_kill_loses_nothing(walk: Walk, operation: str) -> None:
    found = walk.through_recovery(operation, points=1)
    assert found.points > 10
    assert found.violations == []
