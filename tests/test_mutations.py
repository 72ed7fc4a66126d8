"""The planted bugs still have their places."""

from __future__ import annotations

import pytest

from tests.mutations import BUGS, ROOT, Bug


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_has_one_place_and_tests_that_look_there(bug: Bug) -> None:
    assert (ROOT / bug.file).read_text("utf-8").count(bug.right) == 1
    for test in bug.tests.split():
        assert (ROOT / test.partition("::")[0]).exists()
