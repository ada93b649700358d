"""A whole ``gymcast train``: embedded server, one managed session, display, summary, and an end without orphans."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from gymcast.server.app import RunningServer
from gymcast.server.cli_browser import open_browser
from gymcast.server.cli_embed import WORKER_SECONDS, failures_explained, serving
from gymcast.server.cli_errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, UserError
from gymcast.server.cli_paths import database_url
from gymcast.server.cli_plan import DEFAULT_PORT, TrainPlan, more_options
from gymcast.server.cli_signals import StopRequests
from gymcast.server.cli_view import RunView
from gymcast.server.config import ServerConfig
from gymcast.server.display import Display, make_display
from gymcast.training.algorithm_table import AUTO
from gymcast.training.config import INITIAL_FILE
from gymcast.training.events import CHOSEN, RESUMED, TrainingStatusData
from gymcast.training.limits import ResourceLimits
from gymcast.training.sessions import SessionManager
from gymcast.training.storage import Committed
from gymcast.training.storage import __name__ as storage_package

_TICK_SECONDS: Final = 0.25
_LOG_BYTES: Final = 5_000_000


def run(plan: TrainPlan) -> int:
    """Carry out ``plan``; returns the exit code. Raises :class:`UserError`."""
    try:
        plan.runs_dir.mkdir(parents=True, exist_ok=True)
        if plan.initial is not None:
            plan.run_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(plan.initial, plan.run_dir / INITIAL_FILE)
        log_to(plan.runs_dir / "server.log")
        if plan.checkpoint_dir is not None:
            _keep_checkpoints_in(plan.checkpoint_dir, plan.run_dir)
    except OSError as error:
        place = error.filename or plan.runs_dir
        raise UserError(f"cannot write to {place}: {error.strerror}; name another folder: --runs-dir") from None
    with failures_explained():
        return asyncio.run(_run(plan))


def _keep_checkpoints_in(folder: Path, run_dir: Path) -> None:
    """A link from the run folder, so that whatever looks for a run's checkpoints there finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "checkpoints").symlink_to(folder.resolve(), target_is_directory=True)


def log_to(path: Path) -> None:
    """Send the log of this process to a file: the terminal belongs to the display."""
    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


async def _run(plan: TrainPlan) -> int:
    display = make_display(plan.output)
    # A person at the keyboard sees what is waited for, and has a second Ctrl-C.
    with StopRequests(in_time=(signal.SIGTERM, signal.SIGHUP)) as stops:
        config = ServerConfig.load(
            environ={}, port=plan.port or DEFAULT_PORT, database={"url": database_url(plan.runs_dir)}
        )
        limits = ResourceLimits.of_one(plan.config)
        async with serving(config, runs_dir=plan.runs_dir, limits=limits, any_port=plan.port is None) as (
            server,
            manager,
        ):
            if stops.count:
                return stops.exit_code
            return await _train(plan, server, manager, display, stops)


async def _train(
    plan: TrainPlan, server: RunningServer, manager: SessionManager, display: Display, stops: StopRequests
) -> int:
    session_id = await manager.create_session(plan.config, run_dir=plan.run_dir, resume=plan.resume)
    record = await manager.storage.get_session(session_id)
    view = RunView(
        title=title_of(plan),
        page_url=f"{server.url}/#/session/{session_id}",
        run_dir=str(plan.run_dir),
        more=more_options(plan),
    )
    view.apply(Committed(session_id, record))
    display.start(view)
    if plan.render and not await asyncio.to_thread(open_browser, view.page_url):
        display.note("No browser can be opened here; open the address above on any browser that reaches this machine.")

    def take(committed: Committed) -> None:
        if committed.session_id == session_id:
            view.apply(committed)
            for event in committed.events:
                reason = getattr(event.data, "reason", None) or ""
                if isinstance(event.data, TrainingStatusData) and reason.startswith((CHOSEN, RESUMED)):
                    display.note(f"{reason[:1].upper()}{reason[1:]}")

    unlisten = server.storage.listen(take)
    storage_log = logging.getLogger(storage_package)
    trouble = StorageTrouble(view)
    storage_log.addHandler(trouble)
    try:
        await _follow(session_id, manager, display, stops, lambda: view.status not in ("queued", "starting"))
        view.apply(Committed(session_id, await server.storage.get_session(session_id)))
        display.finish()
    finally:
        storage_log.removeHandler(trouble)
        unlisten()
        display.close()
    if stops.count:
        return stops.exit_code
    if view.refused:
        return EXIT_BAD_INPUT
    if plan.stay:
        display.note("The page stays up until Ctrl-C.")
        await stops.wait_for_more(0)
        if stops.exit_code != 130:
            return stops.exit_code
    return EXIT_FAILED if view.status == "failed" else EXIT_DONE


class StorageTrouble(logging.Handler):
    """Shows what the storage logs as an error: a database that refuses to store cannot bring its own warnings."""

    def __init__(self, view: RunView) -> None:
        super().__init__(logging.ERROR)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line; what follows in it is the statement that failed."""
        said = record.getMessage().splitlines()[0][:200]
        self._view.warn("storage", f"the database does not keep what happens now: {said}")


async def _follow(
    session_id: str, manager: SessionManager, display: Display, stops: StopRequests, begun: Callable[[], bool]
) -> None:
    """Show the session until its process is gone; the first signal stops it, the second kills it."""
    ended = asyncio.create_task(manager.wait(session_id))
    seen = 0
    while not ended.done():
        await asyncio.wait({ended}, timeout=_TICK_SECONDS)
        display.update()
        if stops.count > seen:
            seen = stops.count
            if seen == 1:
                first = "a checkpoint is saved first" if begun() else "nothing was trained yet"
                display.note(f"Stopping: {first}. Ctrl-C again ends it at once.")
                within = None if stops.first == signal.SIGINT else WORKER_SECONDS
                reason = f"stopped by {name_of(stops)}"
                await manager.stop_session(session_id, urgent=True, within=within, reason=reason)
            else:
                manager.kill_session(session_id)
    await ended


def name_of(stops: StopRequests) -> str:
    """What asked for the end, as people call it."""
    return "Ctrl-C" if stops.first in (None, signal.SIGINT) else stops.first.name


def title_of(plan: TrainPlan) -> str:
    """What is trained, in one line."""
    config = plan.config
    opponent = config.env_kwargs.get("opponent")
    parts = [
        f"{config.env_id}{f' against {opponent}' if opponent else ''}",
        "algorithm by the actions" if config.algorithm == AUTO else config.algorithm,
        f"{config.parallel_episodes:,} lanes",
    ]
    if config.seed is not None:
        parts.append(f"seed {config.seed}")
    limits: tuple[tuple[Any, Callable[[Any], str]], ...] = (
        (config.max_minutes, lambda value: f"{value:g} minutes"),
        (config.total_timesteps, lambda value: f"{value:,} decisions"),
        (config.max_episodes, lambda value: f"{value:,} episodes"),
    )
    parts += [text(value) for value, text in limits if value is not None]
    return ", ".join(parts)
