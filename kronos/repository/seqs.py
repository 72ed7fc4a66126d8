"""The seq: the number that orders every change of a store."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, update

from kronos.db.statements import Prepared
from kronos.db.tables import store


def next_seqs(connection: Connection, count: int) -> range:
    """Take the numbers of the next changes, inside the write transaction."""
    ((last,),) = _NEXT.fetch(connection, count=count)
    return seqs_up_to(last, count)


def seqs_up_to(last: int, count: int) -> range:
    """The last `count` numbers that were taken."""
    return range(last - count + 1, last + 1)


_NEXT = Prepared(update(store).values(seq=store.c.seq + bindparam("count")).returning(store.c.seq))
