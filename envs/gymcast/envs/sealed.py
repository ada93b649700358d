"""Bytes with a header and a seal: how snapshots are stored, and which of them may hold a pickle.

Layout: magic, SHA-256 (32 bytes) of all that follows, signature (32 bytes, zero without one), header size (4 bytes),
header (JSON), payload. The signature is an HMAC-SHA256 under a secret key of this user on this machine: a pickle is
code, so only one that this user's own processes wrote is ever opened.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymcast.envs.errors import SnapshotError

MAGIC = b"GCSN1\n"
FORMAT = 1
_HASH_SIZE = 32
_BODY_AT = len(MAGIC) + 2 * _HASH_SIZE
_UNSIGNED = bytes(_HASH_SIZE)


def pack(header: Mapping[str, Any], *payload: bytes | memoryview, signed: bool) -> bytes:
    """The bytes of a snapshot, its payload in one or more parts; `signed` is a must when a part holds a pickle."""
    text = json.dumps(header, separators=(",", ":")).encode()
    body = (len(text).to_bytes(4, "big"), text, *payload)
    signature = _sign(*body) if signed else _UNSIGNED
    digest = hashlib.sha256(signature)
    for part in body:
        digest.update(part)
    return b"".join((MAGIC, digest.digest(), signature, *body))


@dataclass(frozen=True)
class Sealed:
    """A snapshot that was read and is undamaged; nothing in it has been opened."""

    header: dict[str, Any]
    payload: memoryview
    _signature: bytes
    _body: memoryview

    def require_signature(self) -> None:
        """Raises SnapshotError unless this was signed with this user's key; to be called before a pickle is opened."""
        if self._signature == _UNSIGNED:
            raise SnapshotError("this snapshot holds a pickle without a signature: it is not opened, it may be code.")
        if not hmac.compare_digest(self._signature, _sign(self._body)):
            raise SnapshotError(
                "this snapshot holds a pickle that was signed by another user or on another machine: it is not opened, "
                f"it may be code. If it is your own, copy {key_path()} from there; otherwise begin new episodes."
            )


def unpack(data: bytes) -> Sealed:
    """Read what `pack` wrote; raises SnapshotError when it is damaged or something else."""
    if data[: len(MAGIC)] != MAGIC:
        raise SnapshotError("this is not a gymcast snapshot (wrong first bytes).")
    signature_at = len(MAGIC) + _HASH_SIZE
    digest, signature, body = data[len(MAGIC) : signature_at], data[signature_at:_BODY_AT], memoryview(data)[_BODY_AT:]
    found = hashlib.sha256(signature)
    found.update(body)
    if found.digest() != digest:
        raise SnapshotError("this snapshot is damaged (its SHA-256 does not fit): take an older one.")
    size = int.from_bytes(body[:4], "big")
    try:
        header = json.loads(bytes(body[4 : 4 + size]))
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"this snapshot is damaged ({error}): take an older one.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        other = header.get("format") if isinstance(header, dict) else header
        raise SnapshotError(
            f"this snapshot has format {str(other)[:40]!r}, this gymcast reads {FORMAT}: use the release that wrote it."
        )
    return Sealed(header, body[4 + size :], signature, body)


_POINTS = {"env_id": "environment", "version": "version", "opponent": "opponent", "levels": "wrappers"}


def must_match(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises SnapshotError with every point in which a snapshot's header differs from the environment here."""
    points = []
    for name, called in _POINTS.items():
        if name in now and then.get(name) != now[name]:
            points.append(f"{called} {then.get(name)!r}, here {now[name]!r}")
    old, new = then.get("options"), now["options"]
    for name in sorted({*old, *new} if isinstance(old, dict) else new):
        before = old.get(name) if isinstance(old, dict) else None
        if before != new.get(name):
            points.append(f"option {name} {before!r}, here {new.get(name)!r}")
    if points:
        raise SnapshotError(
            f"this snapshot is of another environment: {'; '.join(points)}. Make one like it, or begin a new episode."
        )


def key_path() -> Path:
    """Where this user's key is: `$XDG_STATE_HOME/gymcast/snapshot.key`, by default below `~/.local/state`."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "gymcast" / "snapshot.key"


def _sign(*body: bytes | memoryview) -> bytes:
    code = hmac.new(_key(), digestmod=hashlib.sha256)
    for part in body:
        code.update(part)
    return code.digest()


def _key() -> bytes:
    """The key, made at the first use; readable by its owner only."""
    try:
        path = key_path()
        if not path.exists():
            _make_key(path)
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            key = file.read()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise SnapshotError(
            f"the key for snapshots cannot be read or made ({error}): set XDG_STATE_HOME to a folder of yours."
        ) from error
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise SnapshotError(f"others can read or change the key {path}: run chmod 600 on it, or delete it.")
    if len(key) != _HASH_SIZE:
        raise SnapshotError(f"the key {path} has {len(key)} bytes, expected {_HASH_SIZE}: delete it.")
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    with open(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(_HASH_SIZE))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(own, path)  # whole or not at all; the first of several processes wins
    except FileExistsError:
        pass
    finally:
        own.unlink()
