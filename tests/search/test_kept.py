"""The keys that filters stand for, as they are kept from search to search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kronos import F
from kronos.search import plan
from kronos.search.plan import KeySets, Selection
from tests.conftest import Opener


def test_of_too_many_keys_those_used_last_are_kept(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_MOST_KEYS", 30)
    store, sets = open_store(), KeySets()
    store.add_many([{"content": f"text {n}", "metadata": {"n": n}} for n in range(20)])
    for round_ in range(3):
        for below in (12, 15, 19, 12):
            with store._reader() as repository:
                selection = Selection.of(None, F.n < below)
                found = sets.find(repository, repository.pulse(), selection)
                assert found is not None
                np.testing.assert_array_equal(found, repository.keys(None, selection))
                assert not found.flags.writeable
                again = sets.find(repository, repository.pulse(), selection)
                assert again is found
        assert len(sets._sets) <= 2
        store.add("another", metadata={"n": round_})


def test_a_write_that_does_not_match_leaves_the_keys_as_they_are(open_store: Opener) -> None:
    store, sets = open_store(), KeySets()
    ids = store.add_many([{"content": f"text {n}", "metadata": {"n": n}} for n in range(20)])
    selection = Selection.of(None, F.n < 10)

    def keys() -> Any:
        with store._reader() as repository:
            return sets.find(repository, repository.pulse(), selection)

    before = keys()
    store.add("another", metadata={"n": 50})
    assert keys() is before
    store.delete(ids[15])
    assert keys() is before
    store.update(ids[3], metadata={"n": 60})
    store.add("one more", metadata={"n": 1})
    after = keys()
    assert set(before.tolist()) ^ set(after.tolist()) == {before[3], after[-1]}
    assert (np.diff(after) > 0).all()
