"""PostgreSQL for the tests: the server that runs here, or one of their own, and databases that are dropped again."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

from .programs import missing

# Another server to use, as postgresql://user:password@host:port/postgres; its user has to be allowed to make databases.
VARIABLE = "GYMCAST_TEST_POSTGRES"
USUAL = "postgresql://postgres@127.0.0.1:5432/postgres"


def query(url: str, *statements: str) -> list[Any]:
    """Run statements outside a transaction; returns the rows of the last one."""

    async def work() -> list[Any]:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            rows: list[Any] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    # In a thread of its own, since the caller may be inside an event loop.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work()).result()


def _program(name: str) -> str | None:
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    return shutil.which(name) or (found[-1] if found else None)


class OwnServer:
    """A PostgreSQL server in a temporary folder, on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
        if initdb is None or pg_ctl is None:
            raise FileNotFoundError("neither PATH nor /usr/lib/postgresql has initdb and pg_ctl")
        self._pg_ctl = pg_ctl
        # PostgreSQL refuses to run as root.
        self._user: dict[str, Any] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="gymcast-pg-", dir="/tmp"))
        try:
            if os.geteuid() == 0:
                account = pwd.getpwnam("postgres")
                os.chown(self.folder, account.pw_uid, account.pw_gid)
                self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            self._run(initdb, "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
            self.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.folder}"
        self._run(self._pg_ctl, "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``fast`` closes connections, ``immediate`` is a crash."""
        self._run(self._pg_ctl, "-D", "data", "-w", "-m", mode, "stop")

    def close(self) -> None:
        """Stop it and remove its folder."""
        with contextlib.suppress(subprocess.CalledProcessError):  # it was stopped already
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, *command: str) -> None:
        # Output goes to a file: the server would keep a pipe open.
        with open(self.folder / "output", "ab") as output:
            done = subprocess.run(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **self._user
            )
        if done.returncode:
            raise subprocess.CalledProcessError(
                done.returncode, command, (self.folder / "output").read_text(errors="replace")
            )


def server_or_skip() -> Iterator[str]:
    """URL of a server, for as long as the generator lives. Skips the test without one, but never in CI."""
    named = os.environ.get(VARIABLE)
    try:
        query(named or USUAL, "SELECT 1")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if named:
            raise AssertionError(f"{VARIABLE} names a server that cannot be used: {error}") from error
    else:
        yield named or USUAL
        return
    with own_server_or_skip() as server:
        yield server.url


@contextlib.contextmanager
def own_server_or_skip() -> Iterator[OwnServer]:
    """A server that the test may stop. Skips the test where none can be started, but never in CI."""
    try:
        server = OwnServer()
    except (OSError, KeyError, subprocess.CalledProcessError) as error:
        reason = f"no PostgreSQL here and none can be started: {error} {getattr(error, 'output', None) or ''}"
        missing(reason)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """URL of an empty database that is dropped at the end."""
    name = f"gymcast_test_{uuid.uuid4().hex[:12]}"
    query(server_url, f'CREATE DATABASE "{name}"')
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        query(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def empty(url: str) -> None:
    """Take every row out of a database whose schema is there."""
    rows = query(url, "SELECT to_regclass('sessions') IS NOT NULL AS there")
    if rows[0]["there"]:
        query(url, "DELETE FROM sessions", "DELETE FROM idempotency")  # on small tables faster than TRUNCATE
