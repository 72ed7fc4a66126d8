"""The tables and pictures of docs/benchmarks.md, made from what the suite measured.

    python -m benchmarks.report [--results benchmarks/results/store.json]

The tables replace the text between two marks of the page; the pictures are SVG files in
`docs/images/benchmarks/`. Both are functions of the results alone: made again, they are the same
bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite import RECALL, SHARES, indexed_per_s

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/store.json"
PAGE = ROOT / "docs/benchmarks.md"
FIGURES = ROOT / "docs/images/benchmarks"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
RAW_BYTES = 384 * 4
_MIB = 2**20
_SHOWN = (60_000, 200_000, 1_000_000)
"""Sizes that have a table, when they were measured."""

Figures = dict[str, Any]
Peers = dict[str, Figures]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a figure of each peer, told as a multiple of the best full store's."""

    title: str
    unit: str
    value: Callable[[Figures], float | None]
    recall: Callable[[Figures], float | None] = lambda _: None
    less_is_better: bool = True


def filter_part(share: int, name: str) -> Callable[[Figures], float | None]:
    """What was measured of a filter that lets so many of 100 pass."""
    return lambda figures: figures.get("filters", {}).get(str(share), {}).get(name)


ROWS = (
    Row("one search, p50", "ms", lambda each: each.get("p50_ms"), lambda each: each.get("recall")),
    Row(
        "many at once",
        "/s",
        lambda each: each.get("batch_per_s"),
        lambda each: each.get("batch_recall"),
        less_is_better=False,
    ),
    *(
        Row(f"filter {share} %", "ms", filter_part(share, "p50_ms"), filter_part(share, "recall"))
        for share in SHARES
    ),
    Row("added in thousands", "/s", lambda each: each.get("added_per_s"), less_is_better=False),
    Row("and fully indexed", "/s", lambda each: each.get("indexed_per_s"), less_is_better=False),
    Row(
        "added one by one, synced",
        "/s",
        lambda each: each.get("singles_per_s"),
        less_is_better=False,
    ),
    Row("open + first search", "ms", lambda each: _scaled(each.get("open_and_first_s"), 1e3)),
    Row("memory", "MB", lambda each: _scaled(each.get("rss_bytes"), 1e-6)),
    Row("disk", "MB", lambda each: _scaled(each.get("disk_bytes"), 1e-6)),
)


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def load(path: Path) -> dict[int, Peers]:
    """What was measured, by size, ascending; peers that failed as a whole are left out."""
    sizes = json.loads(path.read_text("utf-8"))["sizes"]
    return {size: _of_size(size, sizes[str(size)]["peers"]) for size in sorted(map(int, sizes))}


def _of_size(size: int, peers: Peers) -> Peers:
    found = {name: each for name, each in peers.items() if "failed" not in each}
    for each in found.values():
        if "settled_s" in each:
            each["indexed_per_s"] = indexed_per_s(size, each)
    return found


# -- The table -----------------------------------------------------------------------------------


def tables(sizes: dict[int, Peers]) -> str:
    """A table in Markdown for each size that is shown."""
    shown = [size for size in _SHOWN if size in sizes] or [*sizes][-1:]
    return "\n\n".join("\n".join(_table(size, sizes[size])) for size in shown)


def _table(size: int, peers: Peers) -> Iterator[str]:
    yield (
        f"| {size:,} memories | best | "
        + " | ".join(each["name"] for each in peers.values())
        + " |"
    )
    yield "|---" * (len(peers) + 2) + "|"
    for row in ROWS:
        best = _best(row, peers)
        if best is None:
            continue
        cells = [_cell(row, each, best) for each in peers.values()]
        yield f"| {row.title} | {_number(best)} {row.unit} | " + " | ".join(cells) + " |"


def _best(row: Row, peers: Peers) -> float | None:
    """The best figure of a full store that finds enough."""
    known = [
        value
        for each in peers.values()
        if each["full"] and (value := row.value(each)) is not None and _finds(row, each)
    ]
    if not known:
        return None
    return min(known) if row.less_is_better else max(known)


def _finds(row: Row, figures: Figures) -> bool:
    recall = row.recall(figures)
    return recall is None or recall >= RECALL


def _cell(row: Row, figures: Figures, best: float) -> str:
    value = row.value(figures)
    if value is None:
        return "-"
    recall = row.recall(figures)
    text = f"{_number(value / best)}x"
    if value == best and figures["full"] and _finds(row, figures):
        text = f"**{text}**"
    return text if recall is None else f"{text} ({_recall(recall)})"


def _recall(value: float) -> str:
    """Three digits, cut and not rounded: what is not all is not 1."""
    return "1" if value >= 1 else f"{int(value * 1000 + 1e-6) / 1000:.3f}".lstrip("0")


def _number(value: float) -> str:
    """Three digits at most, and no more than need be."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.1 else f"{value:.2g}"


def put(page: str, table: str) -> str:
    """The page with another table between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


# -- The pictures ----------------------------------------------------------------------------------


def draw(sizes: dict[int, Peers], folder: Path) -> list[Path]:
    """Draw all; the files."""
    import matplotlib as mpl

    mpl.use("svg")
    # Nothing of the day and of chance in the files; their words stay words.
    mpl.rcParams.update({"svg.hashsalt": "kronos", "svg.fonttype": "none", "font.size": 9})
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "recall": _recall_against_latency,
        "size": _cost_of_size,
        "adding": _adding,
        "filters": _filters,
    }
    return [_save(picture(sizes), folder / f"{name}.svg") for name, picture in pictures.items()]


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    return path


def _panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * count, 3.6), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, [*axes]


def _line(axis: Any, figures: Figures, names: Sequence[str], points: Sequence[Any]) -> None:
    """One peer's line: full stores drawn through, bare indexes dashed, Kronos thick."""
    name = figures["name"]
    if not points:
        return
    axis.plot(
        *zip(*points, strict=True),
        color=f"C{names.index(name)}",
        marker="o",
        markersize=4,
        label=name,
        linestyle="-" if figures["full"] else "--",
        linewidth=2.5 if name == "Kronos" else 1.2,
        zorder=3 if name == "Kronos" else 2,
    )


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)


def _names(sizes: dict[int, Peers]) -> list[str]:
    """All peers, so that each has one colour everywhere."""
    return [*dict.fromkeys(each["name"] for peers in sizes.values() for each in peers.values())]


def _recall_against_latency(sizes: dict[int, Peers]) -> Any:
    shown = [size for size in sizes if size > 10_000] or [*sizes][-1:]
    figure, axes = _panels(len(shown))
    for axis, size in zip(axes, shown, strict=True):
        for each in sizes[size].values():
            points = [(point["p50_ms"], point["recall"]) for point in each["curve"]]
            _line(axis, each, _names(sizes), points)
        axis.axhline(RECALL, color="grey", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", xlabel="one search, p50, ms", ylim=(0.8, 1.005))
        axis.set(ylabel="recall@10", title=f"{size:,} memories")
    _legend(axes[-1])
    return figure


def _by_size(sizes: dict[int, Peers], value: Callable[[Figures], float | None]) -> Iterator[Any]:
    """Each peer's figures, with its points over the sizes."""
    for name in dict.fromkeys(name for peers in sizes.values() for name in peers):
        known = {size: peers[name] for size, peers in sizes.items() if name in peers}
        values = {size: value(each) for size, each in known.items()}
        points = [(size, found) for size, found in values.items() if found is not None]
        yield next(iter(known.values())), points


def _cost_of_size(sizes: dict[int, Peers]) -> Any:
    figure, (latency, memory) = _panels(2)
    for each, points in _by_size(sizes, lambda figures: figures.get("p50_ms")):
        _line(latency, each, _names(sizes), points)
    for each, points in _by_size(sizes, lambda f: _scaled(f.get("rss_bytes"), 1 / _MIB)):
        _line(memory, each, _names(sizes), points)
    raw = [(size, size * RAW_BYTES / _MIB) for size in sizes]
    memory.plot(*zip(*raw, strict=True), color="grey", linestyle=":", label="the vectors alone")
    latency.set(xscale="log", yscale="log", xlabel="memories", ylabel="one search, p50, ms")
    latency.set(title=f"recall@10 of {RECALL:.2f}, where it can be")
    memory.set(xscale="log", yscale="log", xlabel="memories", ylabel="MiB in memory")
    memory.set(title="after opening and searching")
    _legend(memory)
    return figure


def _adding(sizes: dict[int, Peers]) -> Any:
    figure, (axis,) = _panels(1)
    for each, points in _by_size(sizes, lambda figures: figures.get("added_per_s")):
        _line(axis, each, _names(sizes), points)
        if points and each["synced"] == "each call":
            axis.annotate("synced", points[-1], fontsize=7)
    axis.set(xscale="log", yscale="log", xlabel="memories", ylabel="added a second")
    axis.set(title="in batches of 1,000")
    _legend(axis)
    return figure


def _filters(sizes: dict[int, Peers]) -> Any:
    shown = [size for size in sizes if size > 10_000] or [*sizes][-1:]
    figure, axes = _panels(len(shown))
    for axis, size in zip(axes, shown, strict=True):
        for each in sizes[size].values():
            points = []
            for share in SHARES:
                value = filter_part(share, "p50_ms")(each)
                recall = filter_part(share, "recall")(each)
                if value is None or recall is None:
                    continue
                points.append((share, value))
                if recall < RECALL:
                    axis.annotate(f"recall {recall:.2f}", (share, value), fontsize=6)
            _line(axis, each, _names(sizes), points)
        axis.set(xscale="log", yscale="log", xlabel="% of the memories that the filter lets pass")
        axis.set(ylabel="one search, p50, ms", title=f"{size:,} memories")
        axis.set_xticks(SHARES, [str(share) for share in SHARES])
        axis.minorticks_off()
    _legend(axes[-1])
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table and the pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--results", type=Path, default=RESULTS, help="what the suite wrote")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    options = parser.parse_args(arguments)
    sizes = load(options.results)
    options.page.write_text(put(options.page.read_text("utf-8"), tables(sizes)), "utf-8")
    for path in draw(sizes, options.figures):
        print(path)


if __name__ == "__main__":
    main()
