"""A training in somebody's own script as a session of a server: announced, reported on and ended, whatever happens.

The callbacks of one model that name the same server share one :class:`ScriptSession`. Nothing here waits for the
server: events go to disk and from there to the server by the thread of :class:`~gymcast.training.broadcast.EventSink`.

How it ends: ``completed`` when ``learn()`` returns, ``cancelled`` after Ctrl-C or a wish of the server, ``failed`` with
the error when ``learn()`` raises. Stable-Baselines3 tells callbacks nothing of an error, so the background thread looks
whether ``learn()`` is still among the calls of the thread that trains.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import secrets
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

from gymcast.training.announce import Announcement
from gymcast.training.broadcast import EventSink
from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.config import TrainingConfig
from gymcast.training.events import DesiredState, Message, SessionStatus, TrainingStatusData, utc_now
from gymcast.training.http_client import HttpClient, check_url
from gymcast.training.script_spool import ScriptFolder, ScriptNote, spool_root
from gymcast.training.vec_env import GameVecEnv

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

log = logging.getLogger(__name__)

TOKEN_VARIABLE: Final = "GYMCAST_TOKEN"
SPOOL_BYTES: Final = 1 << 30
GATHER_SECONDS: Final = 0.4
STATUS_SECONDS: Final = 2.0
EXIT_SECONDS: Final = 5.0
EXIT_AWAY_SECONDS: Final = 1.0
_LONGEST_REASON: Final = 2000
# How Gymnasium writes environments: <TimeLimit<CartPoleEnv<CartPole-v1>>>, or <Own instance> without an id.
_SPEC: Final = re.compile(r"<\w+<([^<>\s]+)>>")
_CLASS: Final = re.compile(r"<(\w+) instance>")


@dataclass(frozen=True)
class ScriptOptions:
    """Where a script reports and what its session is called.

    Raises ``ValueError`` for a URL or a token that is none.
    """

    server: str
    token: str | None = field(default=None, repr=False)
    name: str | None = None
    model_generation: int = 1
    spool_dir: str | Path | None = None
    verbose: int = 1

    def __post_init__(self) -> None:
        check_url(self.server)
        if not re.fullmatch(r"[!-~]*", self.known_token or ""):
            raise ValueError(f"token= or {TOKEN_VARIABLE} is no token: it has spaces or other signs that none has")

    @property
    def known_token(self) -> str | None:
        """The token that was given, else the one of the environment."""
        given = (self.token or os.environ.get(TOKEN_VARIABLE) or "").strip()
        return given or None


class ScriptSession:
    """One session; made by :func:`join_session`."""

    def __init__(self, model: BaseAlgorithm, options: ScriptOptions) -> None:
        self.options = options
        self.algorithm = algorithm_name(model)
        self.env_id = env_name(model)
        self.progress = RunProgress(TrainingConfig())
        self.status: SessionStatus = "running"
        self.stopped = False
        """Whether the server wished for the end."""
        self.keeper: object | None = None
        """The callback that keeps ``progress`` current."""
        self._process = os.getpid()
        self._learning: _LearnCall | None = None
        self._joined = 0
        self._next_status = 0.0
        self._lock = threading.Lock()
        name = options.name or f"{self.algorithm} {self.env_id} {utc_now():%m-%d %H:%M}"
        announcement = Announcement(name[:128], self.algorithm, None, options.model_generation, self.env_id)
        self._announcement = announcement
        self._folder = self._make_folder(ScriptNote(options.server, announcement))
        self.sink = EventSink(
            options.server,
            self._announce,
            producer=f"script-{os.getpid()}-{secrets.token_hex(4)}",
            spool_dir=None if self._folder is None else self._folder.path,
            spool_max_bytes=SPOOL_BYTES,
            write_ahead=True,
            gather_seconds=GATHER_SECONDS,
            token=options.known_token,
            on_turn=self._look_after_learn,
            on_end=self._let_go,
        )
        _ALIVE.add(self)

    def _make_folder(self, note: ScriptNote) -> ScriptFolder | None:
        root = Path(self.options.spool_dir) if self.options.spool_dir is not None else spool_root()
        try:
            return ScriptFolder(root / f"{utc_now():%Y%m%d-%H%M%S}-{note.announcement.key[:8]}", note)
        except OSError as error:
            log.warning("no spool, so events wait in memory only while the server is away: %s", error)
            return None

    def _announce(self, client: HttpClient) -> str:
        session_id = self._announcement(client)
        self._note(session_id=session_id)
        if self.options.verbose:
            print(f"gymcast: watch this training at {client.url}/#/session/{session_id}", flush=True)
        return session_id

    def _note(self, **changes: Any) -> None:
        if self._folder is not None:
            try:
                self._folder.change(**changes)
            except OSError as error:
                log.warning("the note in %s cannot be written: %s", self._folder.path, error)

    # During learn()

    def enter(self, model: BaseAlgorithm) -> None:
        """A callback's training begins."""
        self._joined += 1
        if self._joined > 1:
            return
        total = int(model._total_timesteps)
        self.progress.config = TrainingConfig(total_timesteps=min(max(1, total), 10**13))
        self.progress.timesteps = model.num_timesteps
        self.progress.resume()
        self.keeper = None
        self.status = "running"
        self.sink.quiet = False
        self._note(ended=False)
        self._learning = _LearnCall(model)
        self.report("running")

    def tick(self) -> None:
        """Say every other second how far it is."""
        now = time.monotonic()
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            self.report("running")

    def emit(self, data: Message) -> None:
        """Send an event."""
        self.sink.emit(data)

    @property
    def desired(self) -> DesiredState:
        """What the server last asked for."""
        return self.sink.desired

    def report(self, status: SessionStatus, reason: str | None = None) -> None:
        """Tell the status and how far it is."""
        progress, ended = self.progress, status in ("completed", "failed", "cancelled")
        self.sink.emit(
            TrainingStatusData(
                status=status,
                phase="" if ended or status == "paused" else "training",
                reason=None if reason is None else reason[:_LONGEST_REASON],
                current_episode=progress.stats.episodes,
                timesteps=progress.timesteps,
                total_timesteps=progress.config.total_timesteps,
                progress=1.0 if status == "completed" else progress.progress,
                eta_seconds=None if ended else progress.eta_seconds,
            )
        )

    def leave(self) -> None:
        """A callback's training has ended as it should; with the last one the session ends."""
        self._joined -= 1
        if self._joined > 0:
            return
        call = self._take_call()
        if call is not None and call.end() and self.progress.progress < 1.0:
            self._end("cancelled", "interrupted (Ctrl-C)")
        elif self.stopped:
            self._end("cancelled", "stopped on request")
        else:
            self._end("completed", None)

    def _end(self, status: SessionStatus, reason: str | None) -> None:
        self.progress.pause()
        self._joined = 0
        self.status = status
        self.report(status, reason)
        self._note(ended=True)
        self.sink.quiet = True

    # When learn() ends by an error

    def _look_after_learn(self) -> None:
        """In the background thread: has ``learn()`` gone without a word?"""
        call = self._learning
        if call is not None and not call.runs():
            self.give_up()

    def give_up(self) -> None:
        """End a session whose ``learn()`` has been left by an error; does nothing for any other."""
        call = self._take_call()
        if call is None:
            return
        error, interrupted = call.error(), call.end()
        if isinstance(error, KeyboardInterrupt) or (error is None and interrupted):
            self._end("cancelled", "interrupted (Ctrl-C)")
        elif error is not None:
            self._end("failed", f"{type(error).__name__}: {error}")
        else:
            self._end("failed", "learn() was left by an error, and the script has gone on")

    def _take_call(self) -> _LearnCall | None:
        with self._lock:
            call, self._learning = self._learning, None
        return call

    def is_learning(self) -> bool:
        """Whether a ``learn()`` of this session is under way."""
        call = self._learning
        return call is not None and call.runs()

    # The end of the process

    def close(self) -> None:
        """Wait a bounded time for everything to arrive; what does not stays in the spool folder, as the log says."""
        if os.getpid() != self._process:
            return  # a forked child has the object, but neither its thread nor a say in it
        self.give_up()
        seconds = EXIT_AWAY_SECONDS if self.sink.trouble is not None else EXIT_SECONDS
        if self.sink.close(seconds):
            return
        where = "" if self._folder is None else f"; they wait in {self._folder.path}: gymcast sessions deliver"
        log.warning("not all events have reached %s%s", self.options.server, where)

    def _let_go(self, delivered: bool) -> None:
        """In the background thread, at its end."""
        _ALIVE.discard(self)
        if self._folder is not None:
            self._folder.close(delivered)


class _LearnCall:
    """One call of ``learn()``, seen from outside."""

    def __init__(self, model: BaseAlgorithm) -> None:
        self._thread = threading.get_ident()
        self._frame = _learn_frame(model)
        self._interrupted = False
        self._previous: Any = None
        if threading.current_thread() is threading.main_thread():
            self._note_interrupts()

    def _note_interrupts(self) -> None:
        previous = signal.getsignal(signal.SIGINT)
        if not callable(previous):
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self._interrupted = True
            previous(number, frame)

        self._previous, self._handle = previous, handle
        signal.signal(signal.SIGINT, handle)

    def runs(self) -> bool:
        """Whether it is among the calls of its thread. Without knowing its frame: yes."""
        if self._frame is None:
            return True
        frame = sys._current_frames().get(self._thread)
        while frame is not None:
            if frame is self._frame:
                return True
            frame = frame.f_back
        return False

    def error(self) -> BaseException | None:
        """The error that ended it, as long as somebody handles it or Python has shown it."""
        if self._frame is None:
            return None
        return next((error for error in _errors() if self._frame in _frames(error.__traceback__)), None)

    def end(self) -> bool:
        """Give the signal handler back; returns whether there was a Ctrl-C."""
        self._frame = None
        if self._previous is not None and signal.getsignal(signal.SIGINT) is self._handle:
            with suppress(ValueError):  # only the main thread may; the handler that stays does no harm
                signal.signal(signal.SIGINT, self._previous)
        return self._interrupted


def _learn_frame(model: BaseAlgorithm) -> FrameType | None:
    """The outermost ``learn()`` of ``model`` among the calls under way."""
    found: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "learn" and frame.f_locals.get("self") is model:
            found = frame
        frame = frame.f_back
    return found


def _errors() -> Iterator[BaseException]:
    shown = getattr(sys, "last_value", None)
    handled: list[Any] = [*sys._current_exceptions().values(), shown]
    for item in handled:
        error = item[1] if isinstance(item, tuple) else item
        while isinstance(error, BaseException):
            yield error
            error = error.__context__


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


# What every callback of a model shares, by the server's URL. The model is not kept alive by it.
_OPEN: weakref.WeakKeyDictionary[Any, dict[str, ScriptSession]] = weakref.WeakKeyDictionary()
_ALIVE: set[ScriptSession] = set()


def join_session(model: BaseAlgorithm, options: ScriptOptions) -> ScriptSession:
    """The session for the ``learn()`` of ``model`` that has just begun; call its ``leave`` at the end.

    A ``learn()`` that counts its timesteps on goes on in the session of the one before, any other has a new one.
    """
    known = _OPEN.setdefault(model, {})
    key = options.server.rstrip("/")
    session = known.get(key)
    if session is not None and not session.is_learning():
        session.give_up()
        if model.num_timesteps == 0 or not (session.status == "completed" or session.stopped):
            session.sink.retire()
            session = None
    if session is None:
        session = known[key] = ScriptSession(model, options)
        weakref.finalize(model, EventSink.retire, session.sink).atexit = False
    session.enter(model)
    return session


def algorithm_name(model: BaseAlgorithm) -> str:
    """The class's name, as its authors know it."""
    return type(model).__name__.removeprefix("Batch")[:128]


def env_name(model: BaseAlgorithm) -> str:
    """The id of the environment, else the name of its class."""
    env = model.get_env()
    if env is None:
        return "unknown"
    base = env.unwrapped
    if isinstance(base, GameVecEnv):
        return base.env.game.id
    try:
        # As text, which says it all and travels from any worker; a worker dies of a value that cannot be pickled.
        text = str(env.env_method("__str__", indices=[0])[0])
    except (AttributeError, EOFError, OSError) as error:
        log.info("the environment does not tell its name: %s", error)
        text = ""
    found = _SPEC.search(text) or _CLASS.search(text)
    return (found[1] if found else type(base).__name__)[:128]


@atexit.register
def _close_all() -> None:
    for session in tuple(_ALIVE):
        session.close()
