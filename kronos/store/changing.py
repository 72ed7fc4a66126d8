"""Changing: edits of single memories, deletes by id or by filter, and accesses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from kronos.concurrency.pacing import write_in_batches
from kronos.errors import InputError, SpaceChangedError
from kronos.search.filters import Where, parse
from kronos.serving.group_commit import MOST_ROWS
from kronos.types import Keys, Memory, Metadata, Vectors
from kronos.validation import (
    check_content,
    check_id,
    check_importance,
    check_metadata,
    check_time,
    hash_content,
)

if TYPE_CHECKING:
    from kronos.repository.memories import Repository
    from kronos.serving.serving import Serving
    from kronos.serving.session import Session
    from kronos.store.browsing import Browsing


@dataclass(frozen=True, slots=True)
class Edit:
    """New values of a memory's columns; for a new text its vector and the space it is made for."""

    id: str
    values: dict[str, Any]
    vector: Vectors | None = None
    serving: Serving | None = None

    def make(self, repository: Repository) -> Memory:
        """Write it."""
        return repository.update(
            self.id,
            self.values,
            space=None if self.serving is None else self.serving.space,
            vector=self.vector,
        )


class Changing:
    """Changes memories.

    Args:
        session: the open store.
        browsing: finds the memories that a filter means.
    """

    def __init__(self, session: Session, browsing: Browsing) -> None:
        self._session = session
        self._browsing = browsing

    def update(
        self,
        id: str,
        *,
        content: str | EllipsisType = ...,
        metadata: Metadata | EllipsisType | None = ...,
        importance: float | EllipsisType = ...,
        expires_at: datetime | EllipsisType | None = ...,
    ) -> Memory:
        """Change fields of a memory; what is left out stays, and `history` knows what was.

        Args:
            id: the memory's id.
            content: a new text, which is embedded.
            metadata: new metadata, instead of all the old.
            importance: 0..1.
            expires_at: timezone-aware; None for never.

        Returns:
            The memory as it is now.

        Raises:
            NotFoundError: no live memory has this id.
            InputError: an argument is refused; its `field` names it.
            NoEmbedderError: a new text, in a store without an embedder.
        """
        return self.write(self.encode(self.check(id, content, metadata, importance, expires_at)))

    def check(
        self,
        id: str,
        content: str | EllipsisType,
        metadata: Metadata | EllipsisType | None,
        importance: float | EllipsisType,
        expires_at: datetime | EllipsisType | None,
    ) -> Edit:
        """Check an edit, whose text is not embedded yet."""
        settings = self._session.settings
        values: dict[str, Any] = {}
        if content is not ...:
            encoded = check_content(content, settings.max_content_bytes)
            values |= {"content": content, "content_hash": hash_content(encoded)}
        if metadata is not ...:
            values["metadata"] = check_metadata(metadata, settings)
        if importance is not ...:
            values["importance"] = check_importance(importance)
        if expires_at is not ...:
            values["expires_at"] = check_time(expires_at, field="expires_at")
        return Edit(check_id(id), values)

    def encode(self, edit: Edit) -> Edit:
        """Embed an edit's text, if it has one."""
        if "content" not in edit.values:
            return edit
        serving = self._session.serving
        return replace(edit, serving=serving, vector=serving.embed([edit.values["content"]]))

    def write(self, edit: Edit) -> Memory:
        """Write an edit; embed it again when another space has become active."""
        session = self._session
        while True:
            if edit.serving not in (None, session.serving):
                edit = self.encode(edit)
            serving = edit.serving
            try:
                return session.write(edit.make, serving)
            except SpaceChangedError:
                session.follow(session.serving if serving is None else serving)

    def delete(
        self,
        ids: str | Iterable[str] | None = None,
        *,
        where: Where | None = None,
        namespace: str | None = None,
    ) -> int:
        """Delete memories, by id or by what they match.

        Many are deleted in parts of some hundreds, so that other writers need not wait: what ends
        it before its end (an error, a kill) leaves each memory whole or gone, and some may be gone.
        By a filter, those go that match when it begins and still match when their turn comes.

        Args:
            ids: one id or several, anywhere in the store; unknown ones are passed over.
            where: a filter, a dict or built with `F`.
            namespace: this one and all below it; None is the store's own, "*" every one.

        Returns:
            How many were deleted.

        Raises:
            InputError: nothing names what to delete, or both ids and a filter do.
        """
        # An empty filter names nothing: it is more often a mistake than a wish.
        matching = parse(where) is not None or namespace is not None
        if (ids is None) != matching:
            raise InputError(
                "delete takes either ids, or where and namespace (namespace='*' for everything)",
                field="ids",
            )
        if ids is not None:
            return self._delete_ids([*dict.fromkeys(check_id(id) for id in _listed(ids))])
        return self._delete_matching(where, namespace)

    def _delete_matching(self, where: Where | None, namespace: str | None) -> int:
        selection = self._browsing.selection(where, namespace)
        scope, condition = selection.scope, selection.condition

        def delete(keys: Keys) -> int:
            return self._session.write(
                lambda repository: repository.delete_keys(keys, scope, condition), rows=MOST_ROWS
            )

        return write_in_batches(self._browsing.keys_of(selection), delete)

    def _delete_ids(self, ids: Sequence[str]) -> int:
        def delete(part: Sequence[str]) -> int:
            return self._session.write(
                lambda repository: repository.delete_ids(part), rows=len(part)
            )

        return write_in_batches(ids, delete)

    def touch(self, ids: str | Iterable[str]) -> int:
        """Note that memories are made use of now, for a ranking by last access.

        Returns:
            How many live memories there were among them.
        """
        named = [*dict.fromkeys(check_id(id) for id in _listed(ids))]
        return self._session.write(lambda repository: repository.touch(named), rows=len(named))


def _listed(ids: str | Iterable[str]) -> Iterable[str]:
    if isinstance(ids, str):
        return [ids]
    if isinstance(ids, bytes | Mapping) or not isinstance(ids, Iterable):
        raise InputError(
            f"ids must be an id or several, not {type(ids).__name__}: {ids!r:.60}", field="ids"
        )
    return ids
