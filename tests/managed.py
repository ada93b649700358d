"""What tests of managed sessions share: small trainings, managers to be killed, and what the database says of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy.engine import make_url

from gymcast.training.checkpoints import CheckpointManager, load_tensors, tensors_sha256
from gymcast.training.config import TrainingConfig
from gymcast.training.run_folder import Outcome
from gymcast.training.sessions import SessionManager
from gymcast.training.storage import SessionRecord, Storage

from .postgres_server import query

KEEPER = Path(__file__).parent / "faults" / "keeper.py"


def endless(lanes: int = 2, **more: object) -> TrainingConfig:
    """A training that starts fast and never reaches its goal."""
    given = {"total_timesteps": 10**12, "evaluation_games": 0, "parallel_episodes": lanes, **more}
    return TrainingConfig.for_env("CartPole-v1", **given)


def short(steps: int = 2048, lanes: int = 2, **more: object) -> TrainingConfig:
    """A training of a second, with a checkpoint every 256 decisions; its seed is fixed.

    With ``speed_multiplier`` it takes ``steps / (50 lanes speed_multiplier)`` seconds, and comes to the same weights.
    """
    return endless(
        lanes,
        **{
            "total_timesteps": steps,
            "seed": 7,
            "checkpoint_interval_steps": 256,
            "hyperparameters": {"n_steps": 64, "batch_size": 64, "n_epochs": 1},
            "replays_kept": 0,
            **more,
        },
    )


# Two seconds of training at a pace that leaves the processor to others; the pace does not change what is learnt.
PACED = short(3000, speed_multiplier=15)


async def settled(
    manager: SessionManager, session_id: str, wanted: Callable[[SessionRecord], bool], seconds: float = 120.0
) -> SessionRecord:
    """The session once it is as ``wanted``."""
    changed = asyncio.Event()
    unlisten = manager.storage.listen(lambda _committed: changed.set())
    try:
        async with asyncio.timeout(seconds):
            while not wanted(record := await manager.storage.get_session(session_id)):
                await changed.wait()
                changed.clear()
        return record
    finally:
        unlisten()


async def until(manager: SessionManager, session_id: str, *statuses: str, seconds: float = 120.0) -> SessionRecord:
    """The session once it is in one of ``statuses``."""
    return await settled(manager, session_id, lambda record: record.status in statuses, seconds)


async def seen(storage: Storage, session_id: str, wanted: Callable[[SessionRecord], bool]) -> SessionRecord:
    """The session once it is as ``wanted``, whichever process runs it."""
    async with asyncio.timeout(120):
        while not wanted(record := await storage.get_session(session_id)):  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.05)
    return record


class Keeper:
    """A manager in a process of its own (keeper.py), to be killed."""

    running: ClassVar[set[Keeper]] = set()

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        Keeper.running.add(self)

    @classmethod
    async def start(
        cls, folder: Path, url: str, sessions: int, configs: list[TrainingConfig], **options: object
    ) -> Keeper:
        """Start it on the database at ``url``; it submits what is missing to ``sessions``, and has when this returns.

        ``options`` are more arguments of its ``SessionManager``, and ``environ``.
        """
        environ: Any = options.pop("environ", None)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(KEEPER), str(folder), url, str(sessions)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environ,
        )
        assert process.stdin is not None and process.stdout is not None
        given = {"configs": [config.model_dump(mode="json") for config in configs], "options": options}
        process.stdin.write(json.dumps(given).encode())
        process.stdin.close()
        async with asyncio.timeout(120):
            assert await process.stdout.readline() == b"ready\n"
        return cls(process)

    async def kill(self) -> None:
        """SIGKILL, unless everything has been trained and it has left."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        Keeper.running.discard(self)

    async def finish(self, seconds: float = 200.0) -> None:
        """Wait until everything has been trained."""
        async with asyncio.timeout(seconds):
            assert await self.process.wait() == 0
        Keeper.running.discard(self)


def weights(run_dir: Path) -> str:
    """Hash of everything learnt in the newest checkpoint of a run."""
    checkpoint = CheckpointManager(run_dir / "checkpoints").newest()
    assert checkpoint is not None
    return tensors_sha256(load_tensors(checkpoint)["model"]["policy"])


def run_dir_of(record: SessionRecord) -> Path:
    """Where a session is trained."""
    return Path((record.resources or {})["run_dir"])


async def statuses(storage: Storage, session_id: str) -> list[str]:
    """Every status a session has had."""
    return [move["to_status"] for move in await storage.transitions(session_id)]


async def records(url: str) -> list[SessionRecord]:
    """All sessions of a database."""
    async with await Storage.open(url) as storage:
        return (await storage.list_sessions(limit=1000))[0]


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    """What a query of the database gives."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(str(make_url(url).database))) as connection:
            return connection.execute(statement).fetchall()
    return [tuple(row) for row in query(url, statement)]


def check_rows(url: str, record: SessionRecord) -> None:
    """Every event that the session's last worker emitted is stored, none of them twice, and it ended once."""
    outcome = Outcome.read(run_dir_of(record), record.attempts)
    assert outcome is not None
    here = f"session_id = '{record.session_id}'"
    heads = rows(url, f"SELECT head FROM producers WHERE {here}")
    left = [path.read_text()[-2000:] for path in (run_dir_of(record) / "spool").glob("*.jsonl")]
    assert (outcome.events,) in heads, f"{outcome.events} events, stored up to {heads}, left behind: {left}"
    twice = f"SELECT count(*) - count(DISTINCT CAST(data AS TEXT) || CAST(ts_us AS TEXT)) FROM metrics WHERE {here}"
    assert rows(url, twice) == [(0,)]
    ends = f"SELECT count(*) FROM transitions WHERE {here} AND to_status = 'completed'"
    assert rows(url, ends) == [(1,)]
