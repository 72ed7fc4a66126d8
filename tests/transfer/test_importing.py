"""Files become passages that fit a model and know their line; a second import adds nothing."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos.errors import ContentError, InputError
from kronos.transfer.chunking import MAX_TOKENS, cut, estimate_tokens
from kronos.transfer.importing import find_files, read_file

MARKDOWN = """\
# Boats

Sloops have one mast.
They sail well to windward.

## Ketches

A ketch has two masts.
"""


def words(text: str) -> str:
    return "".join(text.split())


def test_markdown_is_cut_at_its_headings() -> None:
    passages = list(cut(MARKDOWN, markdown=True))
    assert [(p.line, p.text.splitlines()[0]) for p in passages] == [
        (1, "# Boats"),
        (6, "## Ketches"),
    ]
    assert passages[0].text.endswith("They sail well to windward.")


def test_plain_text_has_no_headings() -> None:
    assert len(list(cut(MARKDOWN))) == 1


def test_long_text_is_cut_at_blank_lines_before_lines_before_words() -> None:
    paragraph = "A line of eleven words that says not very much at all.\n" * 8
    passages = list(cut("\n".join([paragraph] * 6)))
    assert all(p.text.startswith("A line") and p.text.endswith("at all.") for p in passages)
    assert [p.line for p in passages] == [1, 19, 37]
    long_line = "word " * 1000
    assert all(p.text.split() == ["word"] * len(p.text.split()) for p in cut(long_line))
    assert [p.line for p in cut("x" * 5000)] == [1] * len(list(cut("x" * 5000)))


@given(st.text(st.sampled_from("ab1é字 \n\t#.\r"), max_size=3000), st.booleans())
def test_a_cut_keeps_every_word_and_fits(text: str, markdown: bool) -> None:
    passages = list(cut(text, markdown=markdown))
    assert words("".join(p.text for p in passages)) == words(text)
    lines = text.split("\n")
    for passage in passages:
        assert passage.text.strip()
        assert estimate_tokens(passage.text) <= MAX_TOKENS
        assert words(passage.text)[:1] in words(lines[passage.line - 1])


def test_passages_fit_the_real_model(mini_tokenizer: Any) -> None:
    root = Path(__file__).parents[2]
    files = [root / "README.md", *root.glob("kronos/**/*.py")]
    texts = [passage.text for file in files for passage in cut(file.read_text("utf-8"))]
    counts = [len(encoding.ids) for encoding in mini_tokenizer.encode_batch(texts)]
    assert len(counts) > 100
    assert max(counts) <= 256


def test_a_folder_gives_its_text_files_in_order(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "sub/c.py", ".hidden/d.md", ".e.md", "__pycache__/f.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "binary").write_bytes(b"\x00\x01\x02")
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1") * 10)
    (tmp_path / "cut.txt").write_text("é" * 8191, "utf-8")
    found = find_files([tmp_path, tmp_path / "a.txt"])
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["a.txt", "b.md", "cut.txt", "sub/c.py"]
    with pytest.raises(InputError, match="does not exist"):
        find_files([tmp_path / "nothing"])


def test_ids_depend_only_on_namespace_source_and_content(tmp_path: Path) -> None:
    file = tmp_path / "boats.md"
    file.write_text(MARKDOWN)
    first = list(read_file(file, namespace="n"))
    assert [m.metadata for m in first] == [
        {"source": str(file), "line": 1},
        {"source": str(file), "line": 6},
    ]
    file.write_text("New words on top.\n\n" + MARKDOWN)
    again = list(read_file(file, namespace="n"))
    assert [m.id for m in again][1:] == [m.id for m in first]
    other = list(read_file(file, namespace="other"))
    assert not {m.id for m in other} & {m.id for m in again}


def test_jsonl_lines_are_memories(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    lines = [
        {"content": "one", "id": "x", "metadata": {"a": 1}, "importance": 0.9, "namespace": "m"},
        {"text": "two", "title": "T", "expires_at": "2030-01-01T00:00:00+00:00"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    one, two = read_file(file, namespace="n")
    assert (one.content, one.id, one.importance, one.namespace) == ("one", "x", 0.9, "m")
    assert one.metadata == {"a": 1, "source": str(file), "line": 1}
    assert (two.content, two.namespace) == ("two", "n")
    assert two.metadata == {"title": "T", "source": str(file), "line": 2}
    assert two.expires_at == datetime(2030, 1, 1, tzinfo=timezone.utc)
    assert two.id is not None


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", "3", "{}", '{"content": 3}', '{"content": "x", "metadata": 1}',
     '{"content": "x", "expires_at": "soon"}', "[" * 100_000],
)  # fmt: skip
def test_the_error_names_a_line_that_is_not_a_memory(tmp_path: Path, line: str) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text('{"content": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"notes\.jsonl, line 2"):
        list(read_file(file, namespace="n"))


def test_the_error_names_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ContentError, match=r"picture\.png"):
        list(read_file(file, namespace="n"))
