"""The tables and pictures of the benchmarks page are those of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import FIGURES, PAGE, RESULTS, draw, load, main, put, tables

POINT = {"effort": 8, "recall": 0.98, "p50_ms": 0.2}


def peer(name: str, *, full: bool = True, **figures: Any) -> dict[str, Any]:
    return {"name": name, "full": full, "synced": "never", "curve": [POINT], **figures}


def results(tmp_path: Path, peers: dict[str, Any]) -> Path:
    path = tmp_path / "store.json"
    path.write_text(json.dumps({"sizes": {"60000": {"peers": peers}}}), "utf-8")
    return path


def test_the_page_says_what_was_measured() -> None:
    page = PAGE.read_text("utf-8")
    assert put(page, tables(load(RESULTS))) == page, "run python -m benchmarks.report"


def test_the_page_shows_every_picture_and_no_other() -> None:
    shown = re.findall(r"!\[[^]]+\]\((images/benchmarks/[^)]+)\)", PAGE.read_text("utf-8"))
    there = [str(path.relative_to(PAGE.parent)) for path in FIGURES.iterdir()]
    assert sorted(shown) == sorted(there)


def test_results_name_no_machine() -> None:
    text = RESULTS.read_text("utf-8")
    assert not re.search(r"/tmp|/home|/root|/work", text)


def test_the_best_is_a_full_store_that_finds_enough(tmp_path: Path) -> None:
    peers = {
        "kronos": peer("Kronos", p50_ms=0.3, recall=0.98, added_per_s=1000.0),
        "bare": peer("Bare", full=False, p50_ms=0.1, recall=0.99, added_per_s=9000.0),
        "wrong": peer("Wrong", p50_ms=0.05, recall=0.9699),
        "good": peer("Good", p50_ms=0.2, recall=0.97, added_per_s=4000.0),
        "broken": {"failed": "it broke"},
    }
    assert tables(load(results(tmp_path, peers))).splitlines() == [
        "| 60,000 memories | best | Kronos | Bare | Wrong | Good |",
        "|---|---|---|---|---|---|",
        "| one search, p50 | 0.2 ms | 1.5x (.980) | 0.5x (.990) | 0.25x (.969) | **1x** (.970) |",
        "| added in thousands | 4,000 /s | 0.25x | 2.25x | - | **1x** |",
    ]


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    assert put("a\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nz\n", "new") == (
        "a\n<!-- benchmarks -->\nnew\n<!-- /benchmarks -->\nz\n"
    )


def test_pictures_made_again_are_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'kronos-memory[bench]'")
    sizes = load(RESULTS)
    first = {path.name: path.read_bytes() for path in draw(sizes, tmp_path / "first")}
    second = {path.name: path.read_bytes() for path in draw(sizes, tmp_path / "second")}
    assert first == second
    assert {*first} == {path.name for path in FIGURES.iterdir()}
    for picture in first.values():
        assert b">Kronos<" in picture
        assert b"<dc:date>" not in picture


def test_the_command_writes_the_table_and_the_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'kronos-memory[bench]'")
    page = tmp_path / "benchmarks.md"
    page.write_text("<!-- benchmarks -->\n<!-- /benchmarks -->\n", "utf-8")
    path = results(tmp_path, {"kronos": peer("Kronos", p50_ms=0.3, recall=0.98)})
    main(["--results", str(path), "--page", str(page), "--figures", str(tmp_path / "figures")])
    assert "| one search, p50 | 0.3 ms | **1x** (.980) |" in page.read_text("utf-8")
    assert len([*(tmp_path / "figures").glob("*.svg")]) == 4
