"""Episodes out of the logs of runs on this machine, listed and found by id beside the stored replays."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gymcast.server.cli_paths import CONFIG_FILE
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.storage import NotFoundError, Page, ReplayRecord, Storage
from gymcast.training.storage.cursors import decode, encode

from .problems import Problem

if TYPE_CHECKING:
    from gymcast.envs import EpisodeLog, LoggedEpisode

_ID: Final = re.compile(r"ep_([A-Za-z0-9-]{1,40})_(\d{1,6})_(\d{1,15})")
_LOGS_KEPT: Final = 8
ORDERS: Final = ("newest", "oldest", "best", "worst", "longest", "shortest")
OUTCOMES: Final = ("win", "draw", "loss")


def replay_id(session_id: str, lane: int, start: int) -> str:
    """The id of the episode that a lane of a session began at a place of its log."""
    return f"ep_{session_id}_{lane}_{start}"


class EpisodeShelf:
    """The episode logs of sessions whose run folder is on this machine. Files are read in threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._logs: OrderedDict[Path, EpisodeLog] = OrderedDict()
        self._reading = threading.Lock()

    async def find(self, wanted: str) -> ReplayRecord:
        """A replay by id, out of a log or stored. Raises ``NotFoundError``, and :class:`Problem` when it is damaged."""
        match = _ID.fullmatch(wanted)
        if match is None:
            return await self._storage.replay(wanted)
        session_id, lane, start = match[1], int(match[2]), int(match[3])
        record = await self._storage.get_session(session_id)
        found = await asyncio.to_thread(self._read, _folder(record.resources), lane, start)
        if found is None:
            raise NotFoundError("replay", wanted)
        episode, content = found
        return ReplayRecord(
            replay_id=wanted,
            session_id=session_id,
            timestamp=record.updated,
            env_id=episode.env_id,
            episode=episode.episode,
            timesteps=episode.end,
            summary=episode.summary(),
            content=content,
            decisions=[],
        )

    async def settings(self, replay: ReplayRecord) -> dict[str, Any] | None:
        """How the environment of a replay is made, from the folder of its run; ``None`` for a run of someone else."""
        record = await self._storage.get_session(replay.session_id)
        run_dir = (record.resources or {}).get("run_dir")
        return await asyncio.to_thread(_settings_in, Path(run_dir)) if isinstance(run_dir, str) else None

    async def page(
        self, session_id: str, *, lane: int | None, outcome: str | None, order: str, cursor: str | None, limit: int
    ) -> Page[dict[str, Any]]:
        """Logged episodes of a session: :meth:`LoggedEpisode.to_json` with ids. Raises ``NotFoundError``.

        The cursor remembers how far the log went at the first page, so that later pages do not shift in a growing log.
        """
        record = await self._storage.get_session(session_id)
        kind = f"episodes-{order}"
        until, offset = (None, 0)
        if cursor is not None:
            until, offset = (int(value) for value in decode(kind, cursor, (int, int)))
        found, end = await asyncio.to_thread(
            self._list, _folder(record.resources), lane, outcome, order, until, max(0, offset), limit + 1
        )
        items = [_item(session_id, episode) for episode in found[:limit]]
        following = encode(kind, end, max(0, offset) + limit) if len(found) > limit else None
        return Page(items, following)

    def _list(
        self,
        folder: Path | None,
        lane: int | None,
        outcome: str | None,
        order: Any,
        until: int | None,
        offset: int,
        limit: int,
    ) -> tuple[list[LoggedEpisode], int]:
        with self._reading:
            log = self._open(folder)
            if log is None:
                return [], 0
            end = log.end if until is None else until
            found = log.select(lane=lane, outcome=outcome, order=order, until=end, offset=offset, limit=limit)
            return found, end

    def _read(self, folder: Path | None, lane: int, start: int) -> tuple[LoggedEpisode, bytes] | None:
        from gymcast.envs import ReplayError

        with self._reading:
            log = self._open(folder)
            if log is None:
                return None
            try:
                episode = log.find(lane, start)
            except ReplayError:
                return None
            try:
                return episode, log.replay(episode).to_bytes()
            except (ReplayError, OSError) as error:
                raise Problem("conflict", f"This episode cannot be read: {error}") from error

    def _open(self, folder: Path | None) -> EpisodeLog | None:
        # Loaded on first use: it brings the games along.
        from gymcast.envs import EpisodeLog

        if folder is None or not folder.is_dir():
            return None
        log = self._logs.pop(folder, None)
        if log is None:
            log = EpisodeLog(folder)
        else:
            log.refresh()
        self._logs[folder] = log
        if len(self._logs) > _LOGS_KEPT:
            self._logs.popitem(last=False)
        return log


def _settings_in(run_dir: Path) -> dict[str, Any] | None:
    try:
        config = TrainingConfig.from_yaml(run_dir / CONFIG_FILE)
    except (ConfigError, OSError):
        return None
    options = dict(config.env_kwargs)
    if config.max_episode_steps is not None:
        options["max_episode_steps"] = config.max_episode_steps
    return {"env_id": config.env_id, "options": options, "extras": config.extras.to_json()}


def _folder(resources: dict[str, Any] | None) -> Path | None:
    """The log of a session; the folder is known from its manager, never from a client."""
    run_dir = (resources or {}).get("run_dir")
    return Path(run_dir) / "episodes" if isinstance(run_dir, str) else None


def _item(session_id: str, episode: LoggedEpisode) -> dict[str, Any]:
    facts = episode.to_json()
    return {
        "replay_id": replay_id(session_id, episode.lane, episode.start),
        "session_id": session_id,
        "timesteps": episode.end,
        **{name: value for name, value in facts.items() if name not in ("start", "end")},
        "summary": episode.summary(),
    }
