"""The edge: everything that a caller passes in is checked here, once. Below, the types hold.

A value is stored exactly, or refused with an error that names it. `records` checks new memories,
`texts` content, ids and namespaces; `metadata`, `numbers` and `vectors` check what they are named
after.
"""

from kronos.validation.metadata import check_metadata
from kronos.validation.numbers import (
    check_importance,
    check_limit,
    check_number,
    check_time,
    to_datetime,
    to_microseconds,
)
from kronos.validation.records import Item, Record, check_item
from kronos.validation.texts import (
    check_content,
    check_id,
    check_namespace,
    check_scope,
    hash_content,
)
from kronos.validation.vectors import (
    check_embeddings,
    not_unit,
    scale_to_unit,
    unusable_rows,
)

__all__ = [
    "Item",
    "Record",
    "check_content",
    "check_embeddings",
    "check_id",
    "check_importance",
    "check_item",
    "check_limit",
    "check_metadata",
    "check_namespace",
    "check_number",
    "check_scope",
    "check_time",
    "hash_content",
    "not_unit",
    "scale_to_unit",
    "to_datetime",
    "to_microseconds",
    "unusable_rows",
]
