"""Hostile inputs: each is stored exactly, or refused with an error that names the field.

    python -m benchmarks.hostile [--inputs 10000]

hypothesis makes the items: texts with lone surrogates, numbers, bytes and everything else in the
place of every field. What was stored is read back and searched for; after a refusal nothing may
have been written. Prints how many were stored, and how many were refused by which field; any other
end stops it with the item.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from kronos import MemoryStore
from tests.store.test_hostile_input import hostile_items, outcome

_KEPT = 1000
"""Memories that the store may hold before it is emptied: searches stay fast."""


def main() -> None:
    """Hand them in, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as name,
        MemoryStore.open(name, embedding_model="hash", embedding_dim=64) as store,
    ):

        @settings(
            max_examples=options.inputs,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(item=hostile_items)
        def hand_in(item: dict[str, Any]) -> None:
            found[outcome(store, item)] += 1
            if found["stored"] % _KEPT == 0:
                store.delete(namespace="*")

        hand_in()
    refused = {field: count for field, count in found.most_common() if field != "stored"}
    told = ", ".join(f"{field} {count}" for field, count in refused.items())
    print(
        f"{sum(found.values())} inputs: {found['stored']} stored exactly, "
        f"{sum(refused.values())} refused by name ({told}), 0 other ends"
    )


if __name__ == "__main__":
    main()
