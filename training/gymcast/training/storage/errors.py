"""What can go wrong in storage. One tree, so that a caller can map it in one place."""

from __future__ import annotations


class StorageError(Exception):
    """Base of every storage error."""


class NotFoundError(StorageError):
    """There is no such row. ``what`` names the kind ("session", "replay"), ``key`` the id asked for."""

    def __init__(self, what: str, key: str) -> None:
        self.what = what
        self.key = key
        super().__init__(f"no {what} {key!r}")


class VersionConflictError(StorageError):
    """The session changed since the caller read it."""

    def __init__(self, expected: int, actual: int) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(f"the session is at version {actual}, not at the expected version {expected}")


class StateError(StorageError):
    """A change of status that the state machine does not have."""

    def __init__(self, current: str, wanted: str, allowed: tuple[str, ...]) -> None:
        self.current = current
        self.wanted = wanted
        self.allowed = allowed
        super().__init__(
            f"a session that is {current} cannot become {wanted}; "
            + (f"it can become {', '.join(allowed)}" if allowed else "it has ended")
        )


class LeaseLostError(StorageError):
    """A session is run by someone else now, or by nobody; what the former owner has to say comes too late."""

    def __init__(self, session_id: str, owner: str, holder: str | None) -> None:
        self.session_id = session_id
        self.owner = owner
        self.holder = holder
        super().__init__(f"session {session_id} is held by {holder or 'nobody'}, not by {owner}")


class DuplicateIdError(StorageError):
    """An id chosen by a producer is taken by another session."""


class IdempotencyError(StorageError):
    """An idempotency key that was used with another body, or whose first request is still at work."""

    def __init__(self, message: str, *, running: bool) -> None:
        self.running = running
        super().__init__(message)


class BadCursorError(StorageError):
    """A list cursor that this storage did not hand out."""


class StorageBusyError(StorageError):
    """The writer's queue is full; nothing of the request was stored. Try again after ``retry_after`` seconds."""

    def __init__(self, retry_after: int = 1) -> None:
        self.retry_after = retry_after
        super().__init__("the database cannot keep up; nothing of this request was stored")


class StorageUnavailableError(StorageError):
    """The database cannot be opened, migrated or written (disk full, locked, newer schema)."""
