r"""Filters: which memories a call means, written as a dict or with `F`, and compiled to SQL.

A dict and the builder `F` are two ways to write the same filter:

    {"year": {"$gte": 2020}, "$or": [{"lang": "en"}, {"tags": {"$contains": "x"}}]}
    (F.year >= 2020) & ((F.lang == "en") | F.tags.contains("x"))

`expression` holds the filters as values, `parser` reads dicts, `compiler` writes SQL, and `schema`
describes the dicts for other programs.

**Fields.** id, namespace, content, importance, created_at, updated_at, expires_at and parent_id are
the record's own. Every other key is a path into the metadata, with dots between levels;
"metadata.id" is the metadata key "id". Times are compared with timezone-aware datetimes or ISO 8601
texts with an offset, importance with numbers, the other four with text. parent_id and expires_at
may also be compared with None.

**Comparisons** are true or false, never unknown, and `$not` is the exact opposite of its operand.

- `$eq` (a plain value means it), `$in`: equal within the JSON type. true is not 1 and "1" is not 1;
  ints and floats are numbers and compare exactly. No value equals an array, an object, or a missing
  key; None equals null. `$ne` is not `$eq`, and `$nin` not `$in`.
- `$gt`, `$gte`, `$lt`, `$lte`: numbers with numbers, text with text by code point; false for
  everything else.
- `$exists`: the key exists, even if its value is null. A field of the record exists if it is not
  None.
- `$contains`: an element of an array equals the value, with the same JSON type; or a text contains
  the text, case-sensitively. False for everything else.
- `$like`: the pattern matches the whole text. `%` is any run of characters, `_` is one, and a
  backslash escapes the next character. A-Z match a-z; other letters match only themselves. U+FFFE
  and U+FFFF count as U+FFFD here.

A missing key therefore meets `$exists: false`, `$ne`, `$nin`, the `$not` of comparisons that it
does not meet, and nothing else.
"""

from __future__ import annotations

from kronos.search.filters.expression import (
    And,
    Comparison,
    F,
    Field,
    Fields,
    Filter,
    Not,
    Or,
    canonical,
)
from kronos.search.filters.parser import Where, parse
from kronos.search.filters.schema import filter_schema

__all__ = [
    "And",
    "Comparison",
    "F",
    "Field",
    "Fields",
    "Filter",
    "Not",
    "Or",
    "Where",
    "canonical",
    "filter_schema",
    "parse",
]
