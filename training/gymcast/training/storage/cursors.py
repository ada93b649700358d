"""Opaque keyset cursors: where the last page ended, as URL-safe text."""

from __future__ import annotations

import base64
import binascii
import json

from .errors import BadCursorError

_MAX_LENGTH = 512


def encode(kind: str, *key: str | int) -> str:
    """A cursor for a list of ``kind`` whose last row has ``key``."""
    return base64.urlsafe_b64encode(json.dumps([kind, *key]).encode()).decode().rstrip("=")


def decode(kind: str, cursor: str, shape: tuple[type, ...]) -> list[str | int]:
    """The key in ``cursor``.

    Raises :class:`BadCursorError` unless it was made for ``kind`` with values of ``shape``.
    """
    wrong = BadCursorError("this cursor was not handed out for this list; start again without one")
    if len(cursor) > _MAX_LENGTH:
        raise wrong
    try:
        text = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        value = json.loads(text)
    except (binascii.Error, ValueError, RecursionError):
        raise wrong from None
    if not isinstance(value, list) or len(value) != len(shape) + 1 or value[0] != kind:
        raise wrong
    key: list[str | int] = value[1:]
    for part, kind_of_part in zip(key, shape, strict=True):
        if type(part) is not kind_of_part or (isinstance(part, int) and not -(2**63) <= part < 2**63):
            raise wrong
    return key
