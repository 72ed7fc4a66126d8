"""SQLite's library: the module that talks to it, its error codes and its known bug."""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from kronos.db.statements import driver_of

if TYPE_CHECKING:
    import sqlite3


def _newest_driver() -> Any:
    """Python's own SQLite, or the package pysqlite3 when it is installed and newer."""
    import sqlite3

    try:
        from pysqlite3 import dbapi2
    except ImportError:
        return sqlite3
    return dbapi2 if dbapi2.sqlite_version_info > sqlite3.sqlite_version_info else sqlite3


driver: Any = _newest_driver()
"""The module that makes every connection: two libraries on one file in one process would break each
other's locks."""
ERRORS: tuple[type[Exception], type[Exception]] = (driver.Error, UnicodeDecodeError)
"""What the driver raises. The second comes when its message quotes a damaged schema."""

# The "WAL-reset bug": when two connections write and checkpoint at the same instant, a later
# checkpoint may skip committed pages. https://sqlite.org/wal.html#walresetbug
_FIRST_WITH_BUG, _FIRST_WITHOUT_BUG = (3, 7, 0), (3, 51, 3)
_FIXED_BRANCHES = {(3, 44): 6, (3, 50): 7}


class Code(IntEnum):
    """SQLite's primary result codes; the module sqlite3 names them only from Python 3.11 on."""

    BUSY = 5
    LOCKED = 6
    READONLY = 8
    INTERRUPT = 9
    IOERR = 10
    CORRUPT = 11
    FULL = 13
    CANTOPEN = 14
    NOTADB = 26


# Python 3.10 passes on SQLite's message but not its code.
_CODES_BY_MESSAGE = {
    "is locked": Code.BUSY,
    "readonly database": Code.READONLY,
    "interrupted": Code.INTERRUPT,
    "disk I/O error": Code.IOERR,
    "malformed": Code.CORRUPT,
    "disk is full": Code.FULL,
    "unable to open": Code.CANTOPEN,
    "not a database": Code.NOTADB,
}
# SQLite reports a value that Kronos never wrote with these messages, and without a damage code.
_DAMAGED_VALUES = ("malformed JSON", "Could not decode to UTF-8")
_CODES_BY_ERRNO = {
    errno.ENOSPC: Code.FULL,
    errno.EDQUOT: Code.FULL,
    errno.EACCES: Code.READONLY,
    errno.EPERM: Code.READONLY,
    errno.EROFS: Code.READONLY,
    errno.EIO: Code.IOERR,
}


def code_of(error: BaseException | None) -> int | None:
    """The primary result code of an error; None when Kronos knows none for it."""
    if isinstance(error, OSError):
        return _CODES_BY_ERRNO.get(error.errno or 0)
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or any(part in text for part in _DAMAGED_VALUES):
        return Code.CORRUPT
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF
    return next((code for part, code in _CODES_BY_MESSAGE.items() if part in text), None)


def is_damage(error: BaseException | None) -> bool:
    """Whether an error of the driver says that stored data is damaged."""
    return code_of(error) in (Code.CORRUPT, Code.NOTADB)


def version() -> str:
    """The version of the SQLite library in use."""
    return str(driver.sqlite_version)


def may_lose_commits(found: tuple[int, int, int] | None = None) -> bool:
    """Whether a version of SQLite has the WAL-reset bug; None means the version in use."""
    found = found or driver.sqlite_version_info
    assert found is not None
    if not _FIRST_WITH_BUG <= found < _FIRST_WITHOUT_BUG:
        return False
    fixed = _FIXED_BRANCHES.get(found[:2])
    return fixed is None or found[2] < fixed


def sqlite_of(connection: Connection) -> sqlite3.Connection:
    """The driver's connection below SQLAlchemy's."""
    found: sqlite3.Connection = driver_of(connection)
    return found


def define(connection: Connection, name: str, function: Callable[..., Any]) -> None:
    """Let SQL on a connection call a pure Python function with positional arguments."""
    arguments = function.__code__.co_argcount
    sqlite_of(connection).create_function(name, arguments, function, deterministic=True)
