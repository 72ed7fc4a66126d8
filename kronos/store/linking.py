"""Linking: links between memories, and where a memory comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kronos.repository.links import Direction
from kronos.types import Link, Step
from kronos.validation import check_id

if TYPE_CHECKING:
    from kronos.serving.session import Session


class Linking:
    """Links memories.

    Args:
        session: the open store.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def link(self, source_id: str, target_id: str, relation: str, weight: float = 1.0) -> None:
        """Link a memory to another one, whatever their namespaces.

        Args:
            source_id: where the link begins.
            target_id: where it leads.
            relation: what it says, such as "supports"; 1 to 200 characters.
            weight: how much it counts when a search follows it, as if within 0..1. A link of this
                relation that is there gets the weight.

        Raises:
            NotFoundError: one of them is no live memory.
            InputError: they are the same, or an argument is refused.
        """
        source_id = check_id(source_id, field="source_id")
        target_id = check_id(target_id, field="target_id")
        self._session.write(
            lambda repository: repository.links.add(source_id, target_id, relation, weight)
        )

    def unlink(self, source_id: str, target_id: str, relation: str | None = None) -> int:
        """Remove a link, or with no relation every link from one memory to the other.

        Returns:
            How many there were.
        """
        source_id = check_id(source_id, field="source_id")
        target_id = check_id(target_id, field="target_id")
        return self._session.write(
            lambda repository: repository.links.remove(source_id, target_id, relation)
        )

    def links(self, id: str) -> list[Link]:
        """The links from and to a memory: those from it first, then the oldest.

        Raises:
            NotFoundError: no live memory has this id.
        """
        id = check_id(id)
        with self._session.reader() as repository:
            return repository.links.of(id)

    def trace(self, id: str, direction: Direction = "ancestors", depth: int = 10) -> list[Step]:
        """Find where a memory comes from, or what came of it, over parents and links.

        Args:
            id: where to begin; it is not among what is found.
            direction: "ancestors": parents, and the sources of links; "descendants": children, and
                the targets of links; "both": the two walks, each of which keeps its direction.
            depth: how many steps at most.

        Returns:
            Each memory once, the nearest first.

        Raises:
            NotFoundError: no live memory has this id.
            InputError: the direction or the depth is refused.
        """
        id = check_id(id)
        with self._session.reader() as repository:
            return repository.steps(repository.links.trace(id, direction, depth))
