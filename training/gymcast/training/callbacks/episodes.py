"""Every training episode, logged so that it can be played again: ``runs/X/episodes``."""

from __future__ import annotations

import json
import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gymnasium
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from gymcast.envs import GameVectorEnv
from gymcast.envs.action_codec import ActionCodec
from gymcast.envs.episode_log import cut
from gymcast.envs.foreign_make import NO_EXTRAS, EnvExtras
from gymcast.envs.replay_player import observation_check, outcome_of, to_codec
from gymcast.envs.segments import NO_COUNT, NO_OUTCOME, Block, SegmentHeader, episode_dtype
from gymcast.training.broadcast import Sink
from gymcast.training.episode_taps import FACTS_KEY, TappedDummyVecEnv, TappedSubprocVecEnv
from gymcast.training.episode_writer import EpisodeWriter
from gymcast.training.events import ErrorData
from gymcast.training.vec_env import GameVecEnv

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_BLOCK_ACTIONS: Final = 1 << 16
_BLOCK_STEPS: Final = (32, 4096)
_BLOCK_SECONDS: Final = 5.0
_FLUSH_SECONDS: Final = 10.0


class _Recorder:
    """Gathers the actions of all lanes and the episodes that end, and hands them over in blocks."""

    def __init__(self, writer: EpisodeWriter, header: SegmentHeader) -> None:
        self.header = header
        self._writer = writer
        self._dtype = episode_dtype(header.seats)
        low, high = _BLOCK_STEPS
        self._steps = max(low, min(high, _BLOCK_ACTIONS // header.rows))
        self._first = header.first
        self._begin()

    def _begin(self) -> None:
        self._count = 0
        self._actions = self.header.codec.empty(self._steps, self.header.rows)
        self._ended: list[NDArray[np.void]] = []

    @property
    def place(self) -> int:
        """Decisions so far, all lanes together."""
        return self._first + self._count * self.header.lanes

    def step(self, actions: NDArray[Any]) -> None:
        """The actions (rows, width) of one step."""
        self._actions[self._count] = actions
        self._count += 1

    def ended(self, games: NDArray[Any]) -> NDArray[np.void]:
        """A row to fill in for each of the games whose episode ended with this step."""
        rows = np.zeros(len(games), self._dtype)
        rows["game"], rows["end"] = games, self.place
        self._ended.append(rows)
        return rows

    @property
    def full(self) -> bool:
        """Whether a block is complete."""
        return self._count == self._steps

    def hand_over(self) -> None:
        """Give what was gathered to the writer."""
        if self._count:
            episodes = np.concatenate(self._ended) if self._ended else np.zeros(0, self._dtype)
            place = self.place
            self._writer.put(self.header, Block(self._first, self._actions[: self._count], episodes))
            self._first = place
            self._begin()


class _GameTap:
    """Records a native batch; a :class:`~gymcast.training.vec_env.StepListener`."""

    def __init__(self, env: GameVectorEnv, recorder: _Recorder) -> None:
        self._env = env
        self.recorder = recorder

    def before_step(self, obs: NDArray[Any], action_mask: NDArray[np.bool_], actions: NDArray[Any]) -> None:
        """Nothing: what was played is known afterwards, the actions of a policy for the other seats included."""

    def after_step(self) -> None:
        recorder, env = self.recorder, self._env
        recorder.step(env.inner_actions.reshape(recorder.header.rows, -1))
        if env.ended.size:
            self._note(env, env.ended[env.ended % env.seats == 0] // env.seats)
        if recorder.full:
            recorder.hand_over()

    def _note(self, env: GameVectorEnv, games: NDArray[Any]) -> None:
        rows, out, state = self.recorder.ended(games), env.batch.out, env.batch.state
        seats = self.recorder.header.seats
        lanes = games[:, None] * seats + np.arange(seats)
        rows["seed"] = state["seed"][games]
        rows["episode"] = state["episode"][games] - 1  # the next one has begun
        rows["length"] = out.final_length[lanes[:, 0]]
        rows["returns"], rows["outcomes"] = out.final_return[lanes], out.final_outcome[lanes]
        rows["kills"], rows["deaths"] = out.final_kills[lanes], out.final_deaths[lanes]
        last = env.batch.final_observation[lanes]
        rows["check"] = [observation_check(one) for one in last]


class _GymTap:
    """Records environments that are not gymcast's; a :class:`~gymcast.training.episode_taps.Tap`."""

    def __init__(self, env: VecEnv, writer: EpisodeWriter, header: SegmentHeader) -> None:
        self._space = env.action_space
        self._writer = writer
        self._header = header
        self.recorder: _Recorder | None = None

    def stepped(self, actions: NDArray[Any], dones: NDArray[np.bool_], infos: list[dict[str, Any]]) -> None:
        rows = to_codec(actions, self._space)
        if self.recorder is None:
            header = self._header
            if rows.dtype == np.float64 and header.codec.floats:  # as played, which need not be the space's type
                codec = ActionCodec.for_floats(header.codec.floats, "<f8")
                header = SegmentHeader(**{**vars(header), "codec": codec})
            self.recorder = _Recorder(self._writer, header)
        self.recorder.step(rows)
        # Of an episode whose worker failed nobody knows the end: it cannot be played again, and is left out.
        ended = np.array([lane for lane in np.flatnonzero(dones) if FACTS_KEY in infos[lane]], dtype=np.int64)
        if ended.size:
            for row, lane in zip(self.recorder.ended(ended), ended, strict=True):
                _fill(row, infos[int(lane)])
        if self.recorder.full:
            self.recorder.hand_over()


def _fill(row: np.void, info: dict[str, Any]) -> None:
    outcome, facts = outcome_of(info), info[FACTS_KEY]
    row["seed"], row["episode"], row["length"], row["returns"] = (
        facts[name] for name in ("seed", "index", "length", "return")
    )
    row["outcomes"] = NO_OUTCOME if outcome is None else outcome
    row["kills"], row["deaths"] = NO_COUNT, NO_COUNT
    row["check"] = observation_check(info["terminal_observation"])


class EpisodeLogCallback(BaseCallback):
    """Logs every episode of a training in ``folder``, at most ``max_mb`` MiB and about ``kept`` episodes of them.

    A native batch is logged as it is; any other environment has to come from
    :func:`~gymcast.training.vec_env.make_training_vec_env`. What lies in the folder behind the model's number of
    timesteps is cut off: a resumed run plays it again. What cannot be written is
    reported once, and training goes on. ``extras`` are the environment's packages and wrappers.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_mb: float | None = None,
        kept: int | None = None,
        sink: Sink | None = None,
        extras: EnvExtras = NO_EXTRAS,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._max_bytes = None if max_mb is None else round(max_mb * (1 << 20))
        self._kept = kept
        self._sink = sink
        self._extras = extras
        self._writer: EpisodeWriter | None = None
        self._tap: _GameTap | _GymTap | None = None
        self._taps: list[Any] = []
        self._reported: set[str] = set()
        self._next = 0.0

    def _on_training_start(self) -> None:
        base = self.training_env.unwrapped
        header = header_of(base, self.model.num_timesteps, self._extras)
        if header is None:
            log.warning("episodes are not logged: actions of %s, or the options, cannot be stored", base.action_space)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            cut(self.folder, self.model.num_timesteps)
        except OSError as error:
            self._report("replay_log_failed", f"episodes are not logged: {error}")
            return
        self._writer = EpisodeWriter(self.folder, max_bytes=self._max_bytes, kept=self._kept)
        if isinstance(base, GameVecEnv):
            self._tap, self._taps = _GameTap(base.env, _Recorder(self._writer, header)), base.listeners
        elif isinstance(base, TappedDummyVecEnv | TappedSubprocVecEnv):
            self._tap, self._taps = _GymTap(base, self._writer, header), base.taps
        self._taps.append(self._tap)

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now >= self._next and self._writer is not None:
            self._next = now + _BLOCK_SECONDS
            self._hand_over()
            self._look_for_problems(self._writer)
        return True

    def _on_training_end(self) -> None:
        self.close()

    def flush(self) -> None:
        """Have every step so far on the disk, as a checkpoint needs it; a slow disk is waited for a few seconds."""
        if self._writer is not None:
            self._hand_over()
            if not self._writer.flush(_FLUSH_SECONDS):
                log.warning("the episode log was not written within %g s", _FLUSH_SECONDS)
            self._look_for_problems(self._writer)

    def close(self) -> None:
        """Write what is left and stop recording; doing it again does nothing."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        self._taps.remove(self._tap)
        self._hand_over()
        if not writer.close(_FLUSH_SECONDS):
            log.warning("the episode log was not finished within %g s; its end is missing", _FLUSH_SECONDS)
        self._look_for_problems(writer)
        self._tap = None

    def _hand_over(self) -> None:
        recorder = None if self._tap is None else self._tap.recorder
        if recorder is not None:
            recorder.hand_over()

    def _look_for_problems(self, writer: EpisodeWriter) -> None:
        if writer.problem is not None:
            self._report("replay_log_failed", f"episodes are missing in the log: {writer.problem}")
        if writer.dropped:
            self._report("replay_log_behind", "episodes are missing in the log: the disk is too slow for all of them")

    def _report(self, code: str, message: str) -> None:
        if code in self._reported:
            return
        self._reported.add(code)
        log.warning("%s; training goes on", message)
        if self._sink is not None:
            self._sink.emit(ErrorData(code=code, message=message, detail={"folder": str(self.folder)}))


def header_of(base: VecEnv, first: int, extras: EnvExtras) -> SegmentHeader | None:
    """What a log of this environment says of it; None when its actions or options cannot be stored."""
    made_by = {"gymcast": version("gymcast"), "gymnasium": gymnasium.__version__}
    if isinstance(base, GameVecEnv):
        env = base.env
        box = env.options["action"] == "box"
        labels = [len(entries) for _, entries in env.game.action_labels]
        return SegmentHeader(
            env_id=env.game.id,
            version=env.game.version,
            options=dict(env.options),
            lanes=env.num_envs,
            games=env.num_games,
            seats=env.batch.learners,
            codec=ActionCodec.for_floats(5) if box else ActionCodec.for_groups(tuple(labels)),
            decision_seconds=env.decision_seconds,
            first=first,
            made_by=made_by,
        )
    if not isinstance(base, TappedDummyVecEnv | TappedSubprocVecEnv):
        raise ValueError(
            f"episodes of a {type(base).__name__} cannot be logged: make the environment with make_training_vec_env()"
        )
    codec = ActionCodec.for_space(base.action_space)
    spec = base.get_attr("spec", [0])[0]
    options = None if spec is None else _given_options(spec)
    if codec is None or options is None:
        return None
    return SegmentHeader(
        env_id=spec.id,
        version=spec.version or 0,
        options=options,
        lanes=base.num_envs,
        games=base.num_envs,
        seats=1,
        codec=codec,
        decision_seconds=None,
        first=first,
        made_by=made_by,
        extras=extras,
    )


def _given_options(spec: Any) -> dict[str, Any] | None:
    """The arguments the environment was made with, but for how it is drawn; None when they are no JSON values."""
    registered = gymnasium.registry[spec.id].kwargs if spec.id in gymnasium.registry else {}
    given = {
        name: value for name, value in spec.kwargs.items() if name != "render_mode" and registered.get(name) != value
    }
    try:
        json.dumps(given)
    except (TypeError, ValueError):
        return None
    return given
