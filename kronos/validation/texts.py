"""Texts, ids and namespaces: each is stored exactly, or refused by name.

Lone surrogates are not Unicode, and NUL is not portable between databases, so both are refused
everywhere: in content, ids, namespaces, metadata and filters.
"""

from __future__ import annotations

import hashlib
import re

from kronos.errors import ContentError, IdentifierError, InputError

MAX_NAME = 256
"""Characters of an id or a namespace, at most."""
ALL_NAMESPACES = "*"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SHOWN_CHARACTERS = 120


def check_content(content: object, max_bytes: int, *, field: str = "content") -> bytes:
    """Check the content of a memory.

    Args:
        content: what the caller passed in.
        max_bytes: limit, in UTF-8 bytes.
        field: the name for errors.

    Returns:
        The UTF-8 bytes.

    Raises:
        ContentError: not a str, blank, too long, or not storable exactly.
    """
    if not isinstance(content, str):
        raise ContentError(f"{field} must be a str, not {type_name(content)}", field=field)
    if not content or content.isspace():
        raise ContentError(f"{field} is blank: there is nothing to remember", field=field)
    encoded = encode(content, ContentError, field)
    if len(encoded) > max_bytes:
        raise ContentError(
            f"{field} has {len(encoded)} bytes, and the limit is {max_bytes} "
            "(settings.max_content_bytes): cut it into passages",
            field=field,
        )
    return encoded


def hash_content(content: bytes) -> bytes:
    """The sha256 of a text's UTF-8 bytes; equal texts have equal hashes."""
    return hashlib.sha256(content).digest()


def encode(text: str, error: type[InputError], field: str, name: str | None = None) -> bytes:
    """Encode a text as UTF-8.

    Args:
        text: any str.
        error: the error to raise.
        field: the error's field.
        name: what the message calls the text; None: the field.

    Raises:
        InputError: of the given kind; the text holds a lone surrogate or NUL.
    """
    name = name or field
    try:
        encoded = text.encode()
    except UnicodeEncodeError as exc:
        raise error(
            f"{name} holds a lone surrogate at character {exc.start}, which is not Unicode text: "
            'encode it with errors="replace" first',
            field=field,
        ) from None
    if b"\0" in encoded:
        raise error(
            f"{name} holds NUL at character {text.index(chr(0))}, which not every database "
            "can store: remove it first",
            field=field,
        )
    return encoded


def check_id(value: object, *, field: str = "id") -> str:
    """Check an id: 1 to 256 characters, no control characters, not blank."""
    return _check_name(value, field)


def check_namespace(value: object, *, field: str = "namespace") -> str:
    """Check a namespace: names separated by `/`; no name is empty, `.` or `..`, or contains `*`."""
    name = _check_name(value, field)
    for part in name.split("/"):
        if part.strip() in ("", ".", "..") or ALL_NAMESPACES in part:
            raise IdentifierError(
                f"{field} must be names separated by single slashes, without '.', '..' or '*', "
                f"not {name!r}",
                field=field,
            )
    return name


def check_scope(namespace: str | None, own: str) -> str | None:
    """Find the namespace in which to read.

    Args:
        namespace: the caller's; None means the store's, "*" means all.
        own: the store's namespace.

    Returns:
        A namespace, which includes all namespaces below it; None for all namespaces.
    """
    if namespace == ALL_NAMESPACES:
        return None
    return own if namespace is None else check_namespace(namespace)


def _check_name(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise IdentifierError(f"{field} must be a str, not {type_name(value)}", field=field)
    if not 0 < len(value) <= MAX_NAME or not value.strip():
        raise IdentifierError(
            f"{field} must have 1 to {MAX_NAME} characters and not be blank, not {len(value)}",
            field=field,
        )
    encode(value, IdentifierError, field)
    if _CONTROL.search(value):
        raise IdentifierError(f"{field} holds a control character: {value!r}", field=field)
    return str(value)


def type_name(value: object) -> str:
    """The name of a value's type, with its module unless it is a builtin."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def shorten(text: str) -> str:
    """The beginning of a text, for error messages."""
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[: _SHOWN_CHARACTERS - 3]}..."
