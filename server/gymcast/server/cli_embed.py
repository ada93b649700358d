"""A server with its session manager inside this process, as ``gymcast train`` and ``gymcast serve`` run it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from gymcast.server.app import PortTakenError, RunningServer, running_server
from gymcast.server.cli_errors import EXIT_FAILED, UserError
from gymcast.server.config import ServerConfig, ServerConfigError
from gymcast.training.limits import ResourceLimits
from gymcast.training.sessions import SessionManager
from gymcast.training.storage import StorageError

WORKER_SECONDS: Final = 8.0
"""For workers to save a checkpoint and end. With what comes before and after, a server ends in ``STOP_SECONDS``."""
_PORTS_TRIED: Final = 50


@asynccontextmanager
async def serving(
    config: ServerConfig,
    *,
    runs_dir: Path,
    limits: ResourceLimits | None = None,
    any_port: bool = False,
    keep_sessions: bool = False,
) -> AsyncIterator[tuple[RunningServer, SessionManager]]:
    """The server and its manager, running. ``any_port`` takes the first free port from ``config.port`` on.

    Leaving stops every session with a checkpoint while viewers and requests are brought to an end, in
    ``WORKER_SECONDS`` or little more; with ``keep_sessions`` the next server goes on with the sessions. Raises
    :class:`UserError` when the port is taken.
    """
    for _ in range(_PORTS_TRIED):
        try:
            async with running_server(config) as server:
                server.manager = manager = SessionManager(
                    resource_limits=limits, storage=server.storage, runs_dir=runs_dir, keep_sessions=keep_sessions
                )
                await manager.start()
                try:
                    yield server, manager
                finally:
                    await manager.stop(within=WORKER_SECONDS, beside=server.leave())
                return
        except PortTakenError as taken:
            if not any_port or taken.suggestion is None:
                raise UserError(_port_taken(taken)) from None
            config = config.model_copy(update={"port": taken.suggestion})
    raise UserError(f"no free port was found up to {config.port}; name one with --port")


def _port_taken(taken: PortTakenError) -> str:
    if taken.suggestion is None:
        return f"port {taken.port} is taken; name another one with --port"
    return (
        f"port {taken.port} is taken. The next free one is {taken.suggestion}: --port {taken.suggestion}, "
        "or let it be chosen: --port auto"
    )


@contextmanager
def failures_explained() -> Iterator[None]:
    """Turn what the machine refuses (a database, a folder, a full disk) into a :class:`UserError`."""
    try:
        yield
    except StorageError as error:
        # The text holds what the database itself says, such as "database or disk is full", but no password.
        raise UserError(f"the database cannot be used: {error}", EXIT_FAILED) from None
    except ServerConfigError as error:
        raise UserError(describe_settings(error)) from None
    except BrokenPipeError:
        raise  # the reader of the output has gone, which is no fault of the machine
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise UserError(f"the system refuses: {place}{error.strerror or error}", EXIT_FAILED) from None


def describe_settings(error: ServerConfigError) -> str:
    """Every problem of the server's settings, one a line."""
    return "\n".join(["the server cannot start with these settings:", *(f"  {a}: {b}" for a, b in error.problems)])
