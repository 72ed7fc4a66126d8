"""A text's way in, first half: what callers hand over becomes checked batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from kronos.errors import InputError
from kronos.repository.memories import Batch
from kronos.validation import Item, check_embeddings, check_item

if TYPE_CHECKING:
    from kronos.settings import Settings
    from kronos.types import OnConflict, Space


def prepare(
    items: Sequence[Item],
    on_conflict: OnConflict,
    *,
    space: Space,
    namespace: str,
    settings: Settings,
    first: int | None = None,
) -> Batch:
    """Check items that are to be written whole or not at all.

    Args:
        items: what the caller handed in.
        on_conflict: what to do with an id that exists.
        space: the space that vectors handed in are meant for.
        namespace: for items that name none.
        settings: the limits.
        first: the position of the first item among the caller's, for errors; None for a lone one.

    Raises:
        InputError: an item is refused; the error's `field` names it.
    """
    if on_conflict not in ("error", "replace", "ignore"):
        raise InputError(
            f'on_conflict must be "error", "replace" or "ignore", not {on_conflict!r}',
            field="on_conflict",
        )
    dots = [""] if first is None else [f"items[{first + i}]." for i in range(len(items))]
    records = [
        check_item(item, namespace=namespace, settings=settings, field=dot[:-1])
        for item, dot in zip(items, dots, strict=True)
    ]
    given = [i for i, record in enumerate(records) if record.embedding is not None]
    if given:
        rows = check_embeddings(
            [records[i].embedding for i in given],
            space.dim,
            space.model,
            lambda position: f"{dots[given[position]]}embedding",
        )
        for i, row in zip(given, rows, strict=True):
            records[i].embedding = row
    return Batch(records, [record.id for record in records], on_conflict, space)


def batches(
    items: Iterable[Item],
    on_conflict: OnConflict,
    *,
    space: Space,
    namespace: str,
    settings: Settings,
) -> Iterator[Batch]:
    """Cut a stream of items into batches of `settings.batch_size`, read as they are needed.

    Raises:
        InputError: as for `prepare`, or the items are a single one.
    """
    if isinstance(items, str | bytes | dict) or not isinstance(items, Iterable):
        raise InputError(
            f"items must be an iterable of memories, not {type(items).__name__}; add() takes a "
            "single text",
            field="items",
        )
    first, rest = 0, iter(items)
    while part := list(islice(rest, settings.batch_size)):
        yield prepare(
            part, on_conflict, space=space, namespace=namespace, settings=settings, first=first
        )
        first += len(part)
