"""Kronos beside other stores and bare FAISS, on the same vectors, in one run.

    pip install 'kronos-memory[models,offline,bench]'
    python -m benchmarks --data ../shared/data [--sizes 1000 10000 60000] [--peers kronos zvec ...]

Every peer runs in a process of its own; they take turns, so ratios hold on a noisy machine. Vectors
are made once and kept in a cache folder. What was found is printed beside the targets and written
as JSON; `python -m benchmarks.report` makes the tables and pictures of docs/benchmarks.md of it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import data, suite
from benchmarks.peers import MODULES, is_installed
from benchmarks.targets import judged

RESULTS = Path(__file__).parent / "results" / "store.json"
SIZES = (1000, 10_000, 60_000)
_LIBRARIES = (
    *("faiss-cpu", "numpy", "sqlalchemy", "qdrant-edge-py", "zvec", "sqlite-vec", "apsw"),
    *("lancedb", "chromadb", "txtai"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print and write."""
    options = _options(arguments)
    names = [name for name in options.peers if is_installed(name)]
    for name in options.peers:
        if name not in names:
            print(f"{name} is not installed, and left out")
    results: dict[str, Any] = {"sizes": {}}
    if options.out.exists():
        results = json.loads(options.out.read_text("utf-8"))
    for size in options.sizes:
        print(f"{size:,} memories", flush=True)
        results["sizes"][str(size)] = run(names, size, options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(_rounded(results), indent=1) + "\n", "utf-8")
    for line in judged({str(size): results["sizes"][str(size)] for size in options.sizes}):
        print(line)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a folder of collections in BEIR format")
    add("--sizes", type=int, nargs="+", default=[*SIZES], help="memories; 1000000 takes hours")
    add("--peers", nargs="+", choices=MODULES, default=[*MODULES], help="all, if not given")
    add(
        "--only",
        nargs="+",
        choices=suite.PARTS,
        default=[*suite.PARTS],
        help="what to measure beside adding, opening, and recall against latency",
    )
    default = Path(tempfile.gettempdir()) / "kronos-bench"
    add("--cache", type=Path, default=default, help=f"keeps the vectors; {default} if not given")
    add("--out", type=Path, default=RESULTS, help="the JSON file; other sizes in it are kept")
    return parser.parse_args(arguments)


def run(names: Sequence[str], size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one size: what ran where, on what, and what was found by peer."""
    made = data.make(options.data, options.cache, size)
    with tempfile.TemporaryDirectory() as folder:
        peers = suite.run(
            names, made, Path(folder), lambda line: print(line, flush=True), options.only
        )
    return {
        "machine": machine(),
        "data": data.described(size),
        "text_bytes": made.text_bytes(),
        "peers": peers,
    }


def machine() -> dict[str, Any]:
    """What it ran on, in words that name nobody's machine."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _rounded(value: Any) -> Any:
    """With numbers of five digits: more were not measured."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
