"""The targets of the store, judged by what a run of the suite found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.suite import RECALL, SHARES, Figures, indexed_per_s

OURS = "kronos"
RAW_BYTES = 384 * 4
"""A vector."""


def judged(sizes: dict[str, Any]) -> Iterator[str]:
    """A line for each target: what was found, what was wanted, and whether it is met.

    Where other full stores have the figure too, what it is of the best one's stands behind.

    Args:
        sizes: what the suite wrote, by size.
    """
    for size, found in sorted(sizes.items(), key=lambda each: int(each[0])):
        if "failed" not in found["peers"].get(OURS, {"failed": "not asked"}):
            yield f"{int(size):,} memories"
            yield from _Judge(int(size), found).lines()
    yield from _growth(sizes)


class _Judge:
    """Judges Kronos at one size."""

    def __init__(self, size: int, found: dict[str, Any]) -> None:
        self._size = size
        self._text_bytes = found["text_bytes"]
        self._ours: Figures = found["peers"][OURS]
        self._others: dict[str, Figures] = {
            name: each
            for name, each in found["peers"].items()
            if name != OURS and each.get("full") and "failed" not in each
        }

    def lines(self) -> Iterator[str]:
        """All that can be judged."""
        if "p50_ms" in self._ours:
            yield _line("one search: recall@10", self._ours["recall"], RECALL)
            most = 1.2 if self._size < 1_000_000 else 1.0
            yield from self._ratio("one search", lambda each: each, most)
        if "batch_per_s" in self._ours:
            yield self._least("batch searches/s", "batch_per_s", 10_000)
        for share in SHARES:
            yield from self._filtered(str(share))
        yield from self._writes()
        yield from self._resources()

    def _filtered(self, share: str) -> Iterator[str]:
        if share not in self._ours.get("filters", {}):
            return
        ours = self._ours["filters"][share]
        yield _line(f"filter {share} %: recall@10", ours["recall"], 0.99)
        yield _line(f"filter {share} %: hits, at least", ours["least_hits"], 10)
        yield from self._ratio(
            f"filter {share} %", lambda each: each.get("filters", {}).get(share, {}), 1.5
        )

    def _ratio(self, what: str, of: Callable[[Figures], Figures], most: float) -> Iterator[str]:
        """How a latency compares with the least of a full store that finds enough."""
        found = {name: of(each) for name, each in self._others.items()}
        fit = {name: f["p50_ms"] for name, f in found.items() if f.get("recall", 0) >= RECALL}
        if fit:
            best, ours = min(fit, key=lambda name: float(fit[name])), of(self._ours)["p50_ms"]
            text = f"{what}: {ours:.3f} ms, of {best}'s {fit[best]:.3f}"
            yield _line(text, ours / fit[best], most, least=False)

    def _writes(self) -> Iterator[str]:
        ours = self._ours
        yield self._least("added/s, synced and searchable", "added_per_s", 20_000)
        yield _line("  found by the next search", ours["fresh_found"], 1)
        for name, times in (("qdrant-edge", 4), ("zvec", 10)):
            if name in self._others:
                theirs = indexed_per_s(self._size, self._others[name])
                ratio = ours["added_per_s"] / theirs
                yield _line(f"  of {name}'s, its index built, not synced", ratio, times)
                ratio = indexed_per_s(self._size, ours) / theirs
                yield f"    with our index built too: {_number(ratio)}"
        if "singles_per_s" in ours:
            yield self._least("single adds/s, synced", "singles_per_s", 2000)
        if "at_once_per_s" in ours:
            yield self._least("  by 64 callers at a time", "at_once_per_s", 10_000)
        if "after_deletes" in ours and "recall" in ours:
            after = ours["after_deletes"]
            yield _line("after deleting 10 %: dead ids", after["dead"], 0, least=False)
            yield _line("  hits, at least", after["least_hits"], 10)
            yield _line("  recall@10", after["recall"], ours["recall"] - 0.005)

    def _resources(self) -> Iterator[str]:
        ours, raw = self._ours, self._size * RAW_BYTES
        limit = 0.1 if self._size <= 60_000 else 0.2 if self._size <= 200_000 else 1.0
        yield self._most("open + first search, s", "open_and_first_s", limit)
        if self._size >= 1_000_000:
            yield self._most("memory, of the vectors", "rss_bytes", 1.3, unit=raw)
        if "disk_bytes" in ours:
            kept = 0.9 if "after_deletes" in ours else 1.0  # a tenth was deleted
            unit = kept * (raw + self._text_bytes)
            yield self._most("disk, of vectors and texts", "disk_bytes", 2.2, unit=unit)

    def _least(self, what: str, key: str, wanted: float) -> str:
        known = {name: each[key] for name, each in self._others.items() if key in each}
        best = max(known, key=lambda name: float(known[name]), default=None)
        return _line(what, self._ours[key], wanted) + self._beside(key, best)

    def _most(self, what: str, key: str, wanted: float, unit: float = 1) -> str:
        known = {name: each[key] for name, each in self._others.items() if key in each}
        best = min(known, key=lambda name: float(known[name]), default=None)
        line = _line(what, self._ours[key] / unit, wanted, least=False)
        return line + self._beside(key, best)

    def _beside(self, key: str, best: str | None) -> str:
        if best is None:
            return ""
        return f"; {_number(self._ours[key] / self._others[best][key])} of {best}'s"


def _growth(sizes: dict[str, Any]) -> Iterator[str]:
    known = {
        int(size): found["peers"][OURS]["p50_ms"]
        for size, found in sizes.items()
        if "p50_ms" in found["peers"].get(OURS, {})
    }
    if 60_000 in known and 1_000_000 in known:
        ratio = known[1_000_000] / known[60_000]
        yield _line("one search at 1,000,000, of that at 60,000", ratio, 2.5, least=False)


def _line(what: str, found: float, wanted: float, *, least: bool = True) -> str:
    met = found >= wanted if least else found <= wanted
    sign = ">=" if least else "<="
    verdict = "met" if met else "MISSED"
    return f"  {what}: {_number(found)} (target {sign} {_number(wanted)}): {verdict}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
