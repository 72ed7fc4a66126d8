"""The FAISS index alone: its checks also work under `python -O`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kronos.index

ROOT = Path(kronos.index.__file__).parents[2]


WRONG_WIDTHS = """
import numpy as np
from kronos.errors import DimensionMismatchError
from kronos.index.faiss.flat import FaissIndex

index = FaissIndex(64)
index.upsert(np.arange(9), np.ones((9, 64), np.float32))
narrow = np.ones((1, 8), np.float32)
for call in (lambda: index.upsert(np.array([9]), narrow), lambda: index.search(narrow, 1)):
    try:
        call()
    except DimensionMismatchError as exc:
        print(exc.field)
print(len(index), __debug__)
"""


def test_a_wrong_width_is_refused_when_asserts_are_off() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-c", WRONG_WIDTHS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["vectors", "queries", "9", "False"]
