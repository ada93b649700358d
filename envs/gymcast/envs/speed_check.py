"""Does speed change the game? The same seeds and actions at several speeds, watched and not, compared by hash.

`verify_speed(env_id)` plays the same episodes as fast as possible, at 100 times real time, partly at real time, drawn,
and watched as the server shows episodes to spectators. Lanes are stepped side by side; actions are drawn from a stream
of their own. Everything every lane gives goes into one `TrajectoryHash`.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium

from gymcast.envs.errors import OptionValueError
from gymcast.envs.pacing import FASTEST, Pacer
from gymcast.envs.registry import GAMES, resolve_env_id
from gymcast.envs.replay import Replay, ReplayRecorder
from gymcast.envs.replay_player import replay_frames
from gymcast.envs.trajectory import TrajectoryHash
from gymcast.envs.vector import GameVectorEnv

GAME_LANES = 120  # every number of players divides it
OTHER_LANES = 8
WINDOWS = 6  # stretches of the play, evenly spread, that are played at real time
DRAWN_LANES = 6  # after a decision, in turn
SHOWN_EVERY = 8  # episodes
LONGEST_EPISODE = 10_000  # decisions; more than this on average, and the play ends before its episodes are over

_RESULTS = ("return", "length", "outcome", "kills", "deaths")

OnProgress = Callable[[str, int], None]
"""Told (mode, episodes over so far) now and then."""


@dataclass(frozen=True)
class Mode:
    """One way to play."""

    name: str
    what: str
    multiplier: float | None = None
    sampled: bool = False  # paced in a few stretches only
    drawn: bool = False
    spectated: bool = False


MODES = (
    Mode("headless", "unlimited, nothing drawn"),
    Mode("repeated", "the same a second time"),
    Mode("maximum", f"speed multiplier {FASTEST:g}", FASTEST),
    Mode("realtime", "speed multiplier 1, sampled", 1.0, sampled=True),
    Mode("drawn", "lanes drawn in turn after every decision", drawn=True),
    Mode("spectated", "every episode recorded, every 8th shown", spectated=True),
)


@dataclass(frozen=True)
class SpeedRun:
    """What came of one mode. Counts are of all lanes together."""

    mode: str
    what: str
    lanes: int = 0  # side by side
    episodes: int = 0
    decisions: int = 0
    paced: int = 0  # decisions that waited for their time
    shown: int = 0  # images and frames made
    seconds: float = 0.0  # wall clock
    rate: float | None = None  # game s per s of each lane, of paced ones while paced; None: its steps have no length
    lag: float = 0.0  # s behind the speed asked for
    sha256: str = ""
    skipped: str = ""  # why this mode cannot be played in this environment
    differs_at: int | None = None  # first decision of the lanes that went another way than in the first mode
    wrong_replays: int = 0  # recorded episodes that led to another result when they were shown

    @property
    def equal(self) -> bool:
        """Whether it went as in the first mode, or was left out."""
        return self.differs_at is None and self.wrong_replays == 0


def verify_speed(
    env_id: str,
    *,
    episodes: int = 1000,
    seed: int = 0,
    paced_seconds: float = 3.0,
    options: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> list[SpeedRun]:
    """Play `episodes` in every mode and compare; one `SpeedRun` for each, the first one what all are held to.

    `paced_seconds`: wall-clock time at real speed, in stretches spread over the play.

    Raises:
        UnknownEnvError, UnknownOptionError, OptionValueError: what was given is not there, not allowed, or the
            environment cannot be made.
    """
    env_id = resolve_env_id(env_id)
    given = dict(options or {})
    runs: list[SpeedRun] = []
    first: list[bytes] = []
    for mode in MODES:
        lanes: _Lanes | None = None
        try:
            lanes = _GameLanes(env_id, given, mode) if env_id in GAMES else _OtherLanes(env_id, given, mode)
            run, marks = _play(lanes, mode, episodes, seed, _stretches(lanes, len(first), paced_seconds), on_progress)
        except _CannotPlay as reason:
            runs.append(SpeedRun(mode.name, mode.what, skipped=str(reason)))
            continue
        finally:
            if lanes is not None:
                lanes.close()
        first = first or marks
        runs.append(replace(run, differs_at=_first_difference(first, marks)))
    return runs


def _first_difference(first: list[bytes], marks: list[bytes]) -> int | None:
    for number, (one, other) in enumerate(zip(first, marks, strict=False)):
        if one != other:
            return number
    return None if len(first) == len(marks) else min(len(first), len(marks))


class _CannotPlay(Exception):
    """This mode is not there for this environment, and why."""


class _Lanes:
    """Environments stepped side by side; what they give goes into `hash`."""

    count: int
    step_seconds: float | None

    def __init__(self) -> None:
        self.hash = TrajectoryHash()
        self.shown = self.wrong_replays = 0

    def reset(self, seed: int) -> None:
        """Begin the first episodes."""
        raise NotImplementedError

    def step(self) -> int:
        """Play one decision on every lane; how many episodes that ended."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the environments hold."""
        raise NotImplementedError


class _GameLanes(_Lanes):
    """A built-in game's batch."""

    def __init__(self, env_id: str, options: dict[str, Any], mode: Mode) -> None:
        super().__init__()
        self._env = env = GameVectorEnv(env_id, GAME_LANES, render_mode="rgb_array" if mode.drawn else None, **options)
        self._mode = mode
        self._draw = env.game.load_draw()
        self._recorder: ReplayRecorder | None = None
        self._step = self._recorded = 0
        self.count, self.step_seconds = GAME_LANES, env.decision_seconds

    def reset(self, seed: int) -> None:
        self._space = copy.deepcopy(self._env.action_space)
        self._space.seed(seed)
        observation, infos = self._env.reset(seed=seed)
        self.hash.update((observation, infos["action_mask"]))
        if self._mode.spectated:
            self._recorder = ReplayRecorder(self._env, lanes=range(self.count))

    def step(self) -> int:
        env, actions = self._env, self._space.sample()
        observation, reward, terminated, truncated, infos = env.step(actions)
        ended = env.ended
        finals = (env.final_obs[ended], env.episode_return[ended], env.outcome[ended], env.kills[ended])
        self.hash.update((observation, reward, terminated, truncated, infos["action_mask"], finals))
        if self._recorder is not None:
            for replay in self._recorder.finish():
                self._show(replay)
        if self._mode.drawn:
            self._draw_some()
        self._step += 1
        return int(ended.size)

    def _show(self, replay: Replay) -> None:
        """As for a spectator: stored and read, now and then played again and drawn for the page."""
        stored = Replay.from_bytes(replay.to_bytes())
        self._recorded += 1
        if self._recorded % SHOWN_EVERY == 1:
            view = replay_frames(stored)
            json.dumps(view)
            self.shown += len(view["frames"])
            self.wrong_replays += any(view["summary"][name] != replay.summary[name] for name in _RESULTS)

    def _draw_some(self) -> None:
        """The frames of some games for the page, and an image of one of them; another time of others."""
        env = self._env
        games = [(self._step * DRAWN_LANES + n) % env.num_games for n in range(DRAWN_LANES)]
        for game in games:
            json.dumps(self._draw.frame(env.batch, game))
        self._draw.rgb_array(env.batch, games[0])
        self.shown += DRAWN_LANES + 1

    def close(self) -> None:
        self._env.close()


class _OtherLanes(_Lanes):
    """Environments that are not gymcast's, one beside the other."""

    def __init__(self, env_id: str, options: dict[str, Any], mode: Mode) -> None:
        super().__init__()
        if mode.spectated:
            raise _CannotPlay("spectators are shown built-in games only")
        try:
            first = gymnasium.make(env_id, disable_env_checker=True, **options)
        except (TypeError, ValueError, gymnasium.error.Error) as error:
            raise OptionValueError(f"{env_id} cannot be made with the options {options}: {error}") from error
        metadata = first.metadata
        first.close()
        if mode.drawn and "rgb_array" not in metadata.get("render_modes", ()):
            raise _CannotPlay("it has no render_mode rgb_array")
        if mode.drawn:
            options = {**options, "render_mode": "rgb_array"}
        self._drawn = mode.drawn
        self._envs = [gymnasium.make(env_id, disable_env_checker=True, **options) for _ in range(OTHER_LANES)]
        fps = metadata.get("render_fps")
        self._step = 0
        self.count, self.step_seconds = OTHER_LANES, 1.0 / float(fps) if fps else None

    def reset(self, seed: int) -> None:
        self._space = copy.deepcopy(self._envs[0].action_space)
        self._space.seed(seed)
        for lane, env in enumerate(self._envs):
            self.hash.update(env.reset(seed=seed + lane)[0])

    def step(self) -> int:
        ended = 0
        for env in self._envs:
            observation, reward, terminated, truncated, info = env.step(self._space.sample())
            self.hash.update(observation, reward, terminated, truncated, info)
            if terminated or truncated:
                ended += 1
                self.hash.update(env.reset()[0])
        if self._drawn:
            self._draw()
        self._step += 1
        return ended

    def _draw(self) -> None:
        """An image of one lane in turn."""
        try:
            self._envs[self._step % self.count].render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise _CannotPlay(f"it cannot be drawn here: {error}") from error
        self.shown += 1

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _stretches(lanes: _Lanes, steps: int, seconds: float) -> set[int]:
    """Which of `steps` decisions are played at real time: stretches evenly spread, `seconds` long together."""
    if lanes.step_seconds is None:
        return set()
    length = math.ceil(seconds / lanes.step_seconds / WINDOWS)
    starts = [window * steps // WINDOWS for window in range(WINDOWS)]
    return {step for start in starts for step in range(start, min(start + length, steps))}


def _play(
    lanes: _Lanes, mode: Mode, episodes: int, seed: int, stretches: set[int], on_progress: OnProgress | None
) -> tuple[SpeedRun, list[bytes]]:
    """Play one mode; what came of it, and the start of the hash after each decision."""
    if mode.multiplier is not None and lanes.step_seconds is None:
        raise _CannotPlay('it does not say how long a step is (metadata["render_fps"])')
    pacer = None if mode.multiplier is None else Pacer(lanes.step_seconds or 0.0, mode.multiplier)
    over = steps = paced = 0
    waiting = 0.0
    marks: list[bytes] = []
    lanes.reset(seed)
    started = then = time.perf_counter()
    while over < episodes and steps * lanes.count < LONGEST_EPISODE * episodes:
        over += lanes.step()
        marks.append(bytes.fromhex(lanes.hash.hexdigest()[:16]))
        if pacer is not None and (not mode.sampled or steps in stretches):
            if mode.sampled and steps - 1 not in stretches:
                pacer.restart()
                then = time.perf_counter()
            pacer.wait()
            now = time.perf_counter()
            waiting, then = waiting + now - then, now
            paced += 1
        steps += 1
        if on_progress is not None and steps % 16 == 0:
            on_progress(mode.name, min(over, episodes))
    seconds = time.perf_counter() - started
    if on_progress is not None:
        on_progress(mode.name, min(over, episodes))
    length, counted, wall = lanes.step_seconds, paced or steps, waiting or seconds
    run = SpeedRun(
        mode.name,
        mode.what,
        lanes=lanes.count,
        episodes=over,
        decisions=steps * lanes.count,
        paced=paced * lanes.count,
        shown=lanes.shown,
        seconds=seconds,
        rate=None if length is None else counted * length / wall,
        lag=0.0 if pacer is None else pacer.lag,
        sha256=lanes.hash.hexdigest(),
        wrong_replays=lanes.wrong_replays,
    )
    return run, marks
