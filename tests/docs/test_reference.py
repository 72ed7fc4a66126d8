"""The reference documents every public name."""

from __future__ import annotations

import re

import kronos
from tests.docs.pages import DOCS, ROOT

PAGES = sorted((DOCS / "reference").glob("*.md"))


def test_every_public_name_has_a_place_in_the_reference() -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    documented = set(re.findall(r"^::: kronos\.(\w+)$", text, re.MULTILINE))
    assert documented | {"KronosError"} >= set(kronos.__all__)  # `errors` documents its own


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r"(\S+\.md)$", navigation, re.MULTILINE))
